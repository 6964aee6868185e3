"""Checkpoints that exist whole or not at all, by step and by time."""

import shutil
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

# How often ranks agree on the clock; one small broadcast each time.
_CLOCK_STEPS = 20

# A shared file system may show a node what another has written only after so many seconds; NFS after up to 60.
_PATIENCE = 120.0


def _by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """An optimizer's state by parameter name, from one by parameter number."""
    return {
        "state": {names[number]: value for number, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]
        ],
    }


def _numbered(
    trainer: lightning.Trainer, model: lightning.LightningModule, optimizer: torch.optim.Optimizer
) -> list[str]:
    """Names of the parameters in the order in which an optimizer's state counts them.

    Torch's optimizers count them by their groups, Lightning's sharded strategy by the model, where it gathers them.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if isinstance(trainer.strategy, ModelParallelStrategy):
        return list(names.values())
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _by_position(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by parameter number, as torch's optimizers have it, from one by parameter name."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: place for place, name in enumerate(names)}
    return {
        "state": {number[name]: value for name, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]
        ],
    }


def _has(state: dict[str, Any], kind: type) -> bool:
    """Whether a state's parameters go by numbers (``int``) or names (``str``)."""
    return any(isinstance(key, kind) for group in state.get("param_groups", ()) for key in group["params"])


class Checkpoint(callbacks.Checkpoint):
    """Saves the whole state of training into ``checkpoints/`` of the run folder.

    A checkpoint is a file, or a folder where the model is sharded (each rank writes its part); either has its name
    only when it is complete.

    Args:
        every_n_steps: save after so many optimizer steps; null leaves it to the clock.
        every_minutes: save when so long has passed since the last one; null leaves it to the steps.
        keep: the newest checkpoints that stay.

    Attributes:
        continues: what this rank goes on from; None is the beginning.

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
        """Have all ranks agree on where they go on, before any of them reads it.

        Raises:
            UserError: a node does not see what the first one writes, so that it could not go on after the next start,
                and a sharded checkpoint would be scattered over the nodes; or it sees other checkpoints, whose weights
                would be averaged all the same.
        """
        if stage != "fit" or trainer.world_size == 1:
            return
        root = Path(trainer.default_root_dir)
        with _token(root) if trainer.is_global_zero else nullcontext("") as token:
            here = self.continues.name if self.continues else "the beginning"
            told = _of_all_ranks(trainer, (token, here))
            unseen = _of_all_ranks(trainer, first_unseen([root / told[0][0]], _PATIENCE))
        blind = next((rank for rank, path in enumerate(unseen) if path is not None), None)
        if blind is not None:
            raise UserError(
                f"rank {blind} does not see what rank 0 writes into {root}: choose a --run on storage that all nodes "
                "share, and start all of them in the same folder"
            )
        found = [name for _, name in told]
        if len(set(found)) > 1:
            others = next(rank for rank, name in enumerate(found) if name != found[0])
            raise UserError(
                f"rank 0 would go on from {found[0]} and rank {others} from {found[others]}: the file system shows it "
                "late, so give the command again"
            )

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            for abandoned in self.folder(Path(trainer.default_root_dir)).glob(".step-*.ckpt.*"):
                _delete(abandoned)
        trainer.strategy.barrier()
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step = trainer.global_step
        by_step = self.every_n_steps is not None and step % self.every_n_steps == 0
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
            _by_name(state, _numbered(trainer, pl_module, optimizer)) if _has(state, int) else state
            for optimizer, state in zip(trainer.optimizers, checkpoint.get("optimizer_states", []), strict=True)
        ]

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = checkpoint.get("optimizer_states", [])
        checkpoint["optimizer_states"] = [_by_position(state) if _has(state, str) else state for state in states]

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
            for old in earlier[: -self.keep]:
                _remove(old)

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
