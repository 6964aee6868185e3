"""Checkpoints that exist whole or not at all, by step and by time."""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.strategies import ModelParallelStrategy

from megalit.errors import UserError
from megalit.evaluation.checkpoints import checkpoint_folder, newest_checkpoint, shards
from megalit.files import first_unseen, publish, remove_leftovers
from megalit.modeling.optimizer_states import by_name, by_position

# How often ranks agree on the clock; one small broadcast each time.
_CLOCK_STEPS = 20

# A shared file system may show a node what another has written only after so many seconds; NFS after up to 60.
_PATIENCE = 120.0


class Checkpoint(callbacks.Checkpoint):
    """Saves the whole state of training into ``checkpoints/`` of the run folder.

    A checkpoint is a file, or a folder where the model is sharded (each rank writes its part); either has its name
    only when it is complete.

    Args:
        every_n_steps: save after so many optimizer steps; null leaves it to the clock.
        every_minutes: save when so long has passed since the last one; null leaves it to the steps.
        keep: the newest checkpoints that stay.
        keep_every_n_steps: save after so many optimizer steps, too, and let those checkpoints stay, as a way back from
            a loss that rises. They take their room on the disk for good, so there are none unless they are asked for.

    Attributes:
        continues: what this rank goes on from; None is the beginning.

    Raises:
        UserError: no checkpoint would ever be kept.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_minutes: float | None = 10.0,
        keep: int = 2,
        keep_every_n_steps: int | None = None,
    ) -> None:
        if keep < 1:
            raise UserError(f"checkpoint.keep is {keep}: keep at least 1")
        for name, steps in (("every_n_steps", every_n_steps), ("keep_every_n_steps", keep_every_n_steps)):
            if steps is not None and steps < 1:
                raise UserError(f"checkpoint.{name} is {steps}: choose at least 1, or null")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.keep_every_n_steps = keep_every_n_steps
        self.continues: Path | None = None
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._waiting = False

    @staticmethod
    def folder(run: Path) -> Path:
        """Where a run's checkpoints are."""
        return checkpoint_folder(run)

    @staticmethod
    def newest(run: Path) -> Path | None:
        """The newest checkpoint of a run, or None. Whatever has its final name is complete."""
        return newest_checkpoint(run)

    @staticmethod
    def clear(run: Path) -> None:
        """Remove a run's checkpoints, what the writing of one has left, and their folder if nothing else is in it."""
        folder = Checkpoint.folder(run)
        for checkpoint in folder.glob("step-*.ckpt"):
            _remove(checkpoint)
        for abandoned in folder.glob(".step-*.ckpt.*"):
            _delete(abandoned)
        with suppress(OSError):
            folder.rmdir()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Have all ranks go on from the newest checkpoint that any of them has found.

        A file system may show a node late what another has written, so a node waits for a checkpoint that it does not
        see yet: weights of two states would be averaged all the same.

        Raises:
            UserError: a node does not see what the first one writes, so that it could not go on after the next start,
                and a sharded checkpoint would be scattered over the nodes; or it does not see the checkpoint.
        """
        if stage != "fit" or trainer.world_size == 1:
            return
        root = Path(trainer.default_root_dir)
        with _token(root) if trainer.is_global_zero else nullcontext("") as token:
            here = self.continues.name if self.continues else ""
            told = _of_all_ranks(trainer, (token, here))
            token, newest = told[0][0], max(name for _, name in told)
            awaited = [root / token, *([self.folder(root) / newest] if newest != here else [])]
            unseen = _of_all_ranks(trainer, first_unseen(awaited, _PATIENCE))
        for rank, path in enumerate(unseen):
            if path is not None and path.name == token:
                raise UserError(
                    f"rank {rank} does not see what rank 0 writes into {root}: choose a --run on storage that all "
                    "nodes share, and start all of them in the same folder"
                )
            if path is not None:
                raise UserError(
                    f"rank {rank} does not see {path}, which another rank would go on from: the file system shows it "
                    "late, so give the command again, or look why it is not there"
                )
        if newest != here:
            self.continues = awaited[-1]
            _load_instead(trainer, self.continues)
            if trainer.is_global_zero:
                print(f"megalit: continuing from {self.continues}, which showed late", file=sys.stderr, flush=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            for abandoned in self.folder(Path(trainer.default_root_dir)).glob(".step-*.ckpt.*"):
                _delete(abandoned)
        trainer.strategy.barrier()
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step = trainer.global_step
        by_step = any(every and step % every == 0 for every in (self.every_n_steps, self.keep_every_n_steps))
        if by_step or self._clock_says_so(trainer, step):
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Save the step that has just ended: now, or behind the validation that follows it.

        A run that dies in a validation would skip it if the checkpoint stood before it.
        """
        self._waiting = _validates_now(trainer)
        if not self._waiting and trainer.global_step != self._saved_step:
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._waiting:
            self._waiting = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Not when training ends: callbacks that average weights have put the average into the model by then.
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loop: Any = checkpoint.get("loops", {}).get("fit_loop")
        if loop is not None and trainer.global_step and not self._is_over(trainer):
            # Lightning counts an epoch that was stopped early as completed, and would not go on with it.
            loop["epoch_progress"]["current"].update(processed=0, completed=0)
        checkpoint["optimizer_states"] = [
            by_name(state, trainer, pl_module, optimizer)
            for optimizer, state in zip(trainer.optimizers, checkpoint.get("optimizer_states", []), strict=True)
        ]

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["optimizer_states"] = [by_position(state) for state in checkpoint.get("optimizer_states", [])]

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
        target = folder / f"step-{trainer.global_step:09d}.ckpt"
        sharded = isinstance(trainer.strategy, ModelParallelStrategy) and trainer.strategy._save_distributed_checkpoint
        if sharded:
            self._save_shards(trainer, target)
        else:
            trainer.save_checkpoint(target, weights_only=False)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            earlier = sorted(path for path in folder.glob("step-*.ckpt") if path.name <= target.name)
            earlier = [path for path in earlier if not self._stays(path)]
            for old in earlier[: -self.keep]:
                _remove(old)

    def _stays(self, checkpoint: Path) -> bool:
        step = checkpoint.stem.removeprefix("step-")
        return self.keep_every_n_steps is not None and step.isdecimal() and int(step) % self.keep_every_n_steps == 0

    @staticmethod
    def _save_shards(trainer: lightning.Trainer, target: Path) -> None:
        """Every rank writes its part into a hidden folder, which gets its name when all are on the disk.

        Raises:
            UserError: a part is missing; the checkpoints that are there stay.
        """
        hidden = target.with_name(f".{target.name}.writing")
        trainer.save_checkpoint(hidden, weights_only=False)
        trainer.strategy.barrier()
        unseen = first_unseen(shards(hidden), _PATIENCE) if trainer.is_global_zero else None
        unseen = trainer.strategy.broadcast(unseen)
        if unseen is not None:
            raise UserError(
                f"{unseen} was written and is not there, so {target.name} would never be read: choose a --run on "
                "storage that all nodes share"
            )
        if trainer.is_global_zero:
            publish(hidden, target)
        trainer.strategy.barrier()


@contextmanager
def _token(folder: Path) -> Iterator[str]:
    """The name of a hidden file in a run's folder, by which others see that it is the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder / "token")
    with tempfile.NamedTemporaryFile(prefix=".token.", suffix=".tmp", dir=folder) as file:
        yield Path(file.name).name


def _of_all_ranks(trainer: lightning.Trainer, value: Any) -> list[Any]:
    """Each rank's value, by rank, on all of them."""
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def _load_instead(trainer: lightning.Trainer, checkpoint: Path) -> None:
    """Have Lightning go on from this checkpoint, whatever it was told before."""
    connector: Any = trainer._checkpoint_connector
    load = connector.resume_start

    def resume_start(_: Path | None = None, weights_only: bool | None = None) -> None:
        connector.resume_start = load  # for what comes behind this training
        load(checkpoint, weights_only)

    connector.resume_start = resume_start


def _validates_now(trainer: lightning.Trainer) -> bool:
    """Whether Lightning validates after the batch that has just ended."""
    loop: Any = trainer.fit_loop.epoch_loop
    every = trainer.val_check_batch
    # A data set without held-out documents has a validation that is skipped, and nobody is told of its end.
    if not loop._should_check_val_epoch() or loop.val_loop.skip or every is None or every == float("inf"):
        return False
    return (loop.batch_idx + 1) % int(every) == 0


def _remove(checkpoint: Path) -> None:
    # A folder is removed file by file: without its name it is no checkpoint in the meantime.
    doomed = checkpoint.with_name(f".{checkpoint.name}.removed")
    checkpoint.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
