"""A progress line: tokens per second, loss, time left."""

import time
from datetime import timedelta
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

# Weight of the newest step in the running means.
_NEWEST = 0.05


class Progress(ProgressBar):
    """Shows a bar on a terminal, and a line every so often elsewhere (a log file, for example).

    Args:
        line_seconds: without a terminal, seconds between lines.
    """

    def __init__(self, line_seconds: float = 10.0) -> None:
        super().__init__()
        self.line_seconds = line_seconds
        # The names of streams are the user's, and no markup.
        self._console = Console(stderr=True, markup=False, emoji=False)
        self._bar: Bar | None = None
        self._enabled = True
        self._loss: float | None = None
        self._seconds_per_step: float | None = None
        self._printed_at = 0.0

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def is_enabled(self) -> bool:
        """Whether this is the rank that shows; a model's own ``print`` asks."""
        return self._enabled

    def print(self, *values: Any, **_: Any) -> None:
        """Say what a model says in the middle of training, above the bar."""
        self._console.print(*values, highlight=False, soft_wrap=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._step_began = self._printed_at = time.monotonic()
        if self._enabled and self._console.is_terminal:
            self._bar = Bar(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}", markup=False),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=trainer.num_training_batches, status="", completed=0)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._seconds_per_step = _mean(self._seconds_per_step, now - self._step_began)
        self._step_began = now
        if not self._enabled:
            return
        windows, length = batch["tokens"].shape
        rate = windows * length * trainer.world_size / self._seconds_per_step
        done, total = batch_idx + 1, int(trainer.num_training_batches)
        if self._bar is None and now - self._printed_at < self.line_seconds and 1 < done < total:
            return
        # Reading the loss waits for the device, so it is read only when it is shown.
        self._loss = float(outputs["loss"])
        left = timedelta(seconds=round((total - done) * self._seconds_per_step))
        status = f"loss {self._loss:.3f} | {rate:,.0f} tokens/s | {_epochs(trainer)}{left} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, status=status)
        else:
            self._printed_at = now
            self._console.print(f"step {done}/{total} | {status}", highlight=False, soft_wrap=True)

    def on_validation_start(self, *_: Any) -> None:
        self._validation_began = time.monotonic()

    def on_validation_end(self, *_: Any) -> None:
        if hasattr(self, "_step_began"):  # validation inside training is not training time
            self._step_began += time.monotonic() - self._validation_began

    def on_train_end(self, *_: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _epochs(trainer: lightning.Trainer) -> str:
    """How often each stream has been read, where the data module knows it."""
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "windows_seen"):
        return ""
    seen = data.windows_seen()
    parts = [f"{stream.name} {seen[stream.name] / stream.windows_per_epoch:.2f}" for stream in data.plan.streams]
    return f"epochs: {', '.join(parts)} | "


def _mean(running: float | None, value: float) -> float:
    return value if running is None else (1 - _NEWEST) * running + _NEWEST * value
