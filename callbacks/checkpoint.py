"""Checkpoints that exist whole or not at all, by step and by time."""

import errno
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import callbacks
from lightning.pytorch.strategies import ModelParallelStrategy

from megalit.errors import UserError
from megalit.evaluation.checkpoints import CHECKPOINTS, checkpoint_folder
from megalit.evaluation.shared_folder import check_shards, newest_of_all
from megalit.files import publish
from megalit.modeling.optimizer_states import by_name, by_position

# How often ranks agree on the clock; one small broadcast each time.
_CLOCK_STEPS = 20

# What may pass while a run goes on, and how often in a row a run goes on without having been saved.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TRIES = 3


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
        self._must = False
        self._unsaved = 0

    @staticmethod
    def clear(run: Path) -> None:
        """Remove a run's checkpoints, what the writing of one has left, and their folder if nothing else is in it."""
        folder = checkpoint_folder(run)
        for checkpoint in folder.glob(CHECKPOINTS):
            _remove(checkpoint)
        for abandoned in folder.glob(f".{CHECKPOINTS}.*"):
            _delete(abandoned)
        with suppress(OSError):
            folder.rmdir()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Have all ranks go on from one checkpoint: weights of two states would be averaged all the same.

        Raises:
            UserError: the run's folder is not shared by all nodes, or shows the checkpoint to one of them too late.
        """
        if stage != "fit" or trainer.world_size == 1:
            return
        newest = newest_of_all(Path(trainer.default_root_dir), self.continues)
        if newest is not None and newest != self.continues:
            self.continues = newest
            _load_instead(trainer, newest)
            if trainer.is_global_zero:
                _say(f"continuing from {newest}, which showed late")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            for abandoned in checkpoint_folder(Path(trainer.default_root_dir)).glob(f".{CHECKPOINTS}.*"):
                _delete(abandoned)
        trainer.strategy.barrier()
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step = trainer.global_step
        by_step = any(every and step % every == 0 for every in (self.every_n_steps, self.keep_every_n_steps))
        if by_step or self._clock_says_so(trainer, step):
            self._save_in_order(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Save the step that has just ended, because the run is to stop: now, or behind the validation that follows it.

        Raises:
            OSError: it cannot be written, be it only because the disk is full.
        """
        self._must = True
        self._save_in_order(trainer)

    def _save_in_order(self, trainer: lightning.Trainer) -> None:
        # A run that dies in a validation would skip it if the checkpoint stood before it.
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
            self._must = True
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
        """Save now. A run that need not stop goes on where the disk is full: its state is good, and space may be freed.

        Raises:
            OSError: it cannot be written; of a full disk, where this must be saved or for the third time in a row.
        """
        folder = checkpoint_folder(Path(trainer.default_root_dir))
        target = folder / f"step-{trainer.global_step:09d}.ckpt"
        full = self._write(trainer, target)
        self._saved_at = time.monotonic()
        self._unsaved = self._unsaved + 1 if full else 0
        if full is not None:
            if self._must or self._unsaved == _TRIES:
                raise full
            if trainer.is_global_zero:
                step, why = trainer.global_step, full.strerror
                _say(f"step {step:,} is not saved ({why}): free space; the run goes on and tries again at the next one")
            return
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            earlier = sorted(path for path in folder.glob(CHECKPOINTS) if path.name <= target.name)
            earlier = [path for path in earlier if not self._stays(path)]
            for old in earlier[: -self.keep]:
                _remove(old)

    def _write(self, trainer: lightning.Trainer, target: Path) -> OSError | None:
        """Write a checkpoint; on all ranks, what the rank that writes says where there is no room for it."""
        if isinstance(trainer.strategy, ModelParallelStrategy) and trainer.strategy._save_distributed_checkpoint:
            self._save_shards(trainer, target)
            return None
        full = None
        try:
            trainer.save_checkpoint(target, weights_only=False)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            full = error
            # Where Lightning has the others wait until the checkpoint is written.
            trainer.strategy.barrier()
        return trainer.strategy.broadcast(full)

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
        check_shards(hidden)
        if trainer.is_global_zero:
            publish(hidden, target)
        trainer.strategy.barrier()


def _say(text: str) -> None:
    print(f"megalit: {text}", file=sys.stderr, flush=True)


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
