"""Checkpoints that exist whole or not at all, by step and by time."""

import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import callbacks

from megalit.errors import UserError
from megalit.files import write_atomic

# How often ranks agree on the clock; one small broadcast each time.
_CLOCK_STEPS = 20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary name, flushes it to the disk and renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            write_atomic(Path(path), lambda file: torch.save(checkpoint, file))
        except RuntimeError as error:
            # torch's writer covers what the disk said with an error of its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


class Checkpoint(callbacks.Checkpoint):
    """Saves the whole state of training into ``checkpoints/`` of the run folder.

    Args:
        every_n_steps: save after so many optimizer steps; null leaves it to the clock.
        every_minutes: save when so long has passed since the last one; null leaves it to the steps.
        keep: the newest checkpoints that stay.

    Raises:
        UserError: no checkpoint would ever be kept.
    """

    def __init__(self, every_n_steps: int | None = None, every_minutes: float | None = 10.0, keep: int = 2) -> None:
        if keep < 1:
            raise UserError(f"checkpoint.keep is {keep}: keep at least 1")
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"checkpoint.every_n_steps is {every_n_steps}: choose at least 1, or null")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self._saved_at = time.monotonic()
        self._saved_step = -1

    @staticmethod
    def folder(run: Path) -> Path:
        """Where a run's checkpoints are."""
        return run / "checkpoints"

    @staticmethod
    def newest(run: Path) -> Path | None:
        """The newest checkpoint of a run, or None. Whatever has its final name is complete."""
        return max(Checkpoint.folder(run).glob("step-*.ckpt"), default=None)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step = trainer.global_step
        by_step = self.every_n_steps is not None and step % self.every_n_steps == 0
        if by_step or self._clock_says_so(trainer, step):
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loop: Any = checkpoint.get("loops", {}).get("fit_loop")
        if loop is not None and trainer.global_step and not self._is_over(trainer):
            # Lightning counts an epoch that was stopped early as completed, and would not go on with it.
            loop["epoch_progress"]["current"].update(processed=0, completed=0)

    @staticmethod
    def _is_over(trainer: lightning.Trainer) -> bool:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        return bool(progress.processed >= trainer.num_training_batches)

    def _clock_says_so(self, trainer: lightning.Trainer, step: int) -> bool:
        if self.every_minutes is None or (trainer.world_size > 1 and step % _CLOCK_STEPS):
            return False
        due = time.monotonic() - self._saved_at > 60 * self.every_minutes
        return bool(trainer.strategy.broadcast(due)) if trainer.world_size > 1 else due

    def _save(self, trainer: lightning.Trainer) -> None:
        folder = self.folder(Path(trainer.default_root_dir))
        trainer.save_checkpoint(folder / f"step-{trainer.global_step:09d}.ckpt", weights_only=False)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step-*.ckpt"))[: -self.keep]:
                old.unlink()
