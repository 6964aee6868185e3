"""Stopping a run that is told to: saved at the end of a step, and back in SLURM's queue."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import callbacks

from megalit.errors import UserError
from megalit.preemption import STOP, Preempted, requeue_job, say_stopped

# Seconds of a step from which on ranks agree at each: four long steps may take as long as is left after a signal.
_LONG_STEP = 5.0

Signal = Literal["SIGUSR1", "SIGUSR2", "SIGTERM", "SIGHUP", "SIGXCPU"]


@runtime_checkable
class SavesSteps(Protocol):
    """A checkpoint callback that saves when it is asked to (:class:`megalit.callbacks.Checkpoint`)."""

    def save(self, trainer: lightning.Trainer) -> None:
        """Save the step that has just ended: now, or behind the validation that follows it."""


class Preemption(callbacks.Checkpoint):
    """Saves and stops a run that is signalled, and puts its SLURM job back into the queue.

    The handler of a signal only sets a flag. Ranks agree on it at the end of a step, so a signal that finds one rank
    in a collective, or reaches one rank only, stops all of them at the same step. The run is saved by the trainer's
    own checkpoint callback, behind a validation that is due; then the first rank asks for the requeue, and every rank
    ends with code 75 (:class:`~megalit.preemption.Preempted`), never as a success; where nothing but Lightning's own
    variables tells a process its rank, the first one of each machine does, because Lightning, where it has started the
    others, takes their codes for failures. Lightning's handlers, which save in the middle of a step and call
    collectives while they are at it, stay out.

    It is of Lightning's checkpoint kind, so that it is called behind all others, when the step is complete. A script
    of your own calls ``torch.distributed.destroy_process_group()`` before it ends.

    Args:
        signals: which ask the run to stop.
        every_n_steps: optimizer steps between two agreements of the ranks, each a small all-reduce that waits for the
            device. One process alone looks at each step, and so do ranks whose steps are long (5 s). A step, a
            validation and a checkpoint have to fit between the signal and the end that it announces.
        requeue: put the SLURM job back into the queue.

    Raises:
        UserError: no step to agree at, or no callback that saves.
    """

    def __init__(
        self, signals: Sequence[Signal] = ("SIGUSR1", "SIGTERM"), every_n_steps: int = 4, requeue: bool = True
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"preemption.every_n_steps is {every_n_steps}: choose at least 1")
        self.signals = tuple(signals)
        self.every_n_steps = every_n_steps
        self.requeue = requeue
        self.requeue_job: Callable[[], bool] = requeue_job
        self._stopping = False
        # Until it is known how long a step takes.
        self._long_steps = True
        self._step_began = time.monotonic()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if not any(isinstance(callback, SavesSteps) for callback in trainer.checkpoint_callbacks):
            raise UserError("Preemption has nothing to save with: give the trainer megalit's Checkpoint callback, too")
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = _nothing
        if stage == "fit":
            STOP.install(self.signals)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Should another Lightning register its handlers in another way, ours are still the last.
        STOP.install(self.signals)
        if self._agreed(trainer, _LONG_STEP):
            self._leave(trainer)
        self._step_began = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        # From the end of the step before: with a validation or checkpoint between, the next agreement is early.
        now = time.monotonic()
        seconds, self._step_began = now - self._step_began, now
        is_due = trainer.world_size == 1 or self._long_steps or trainer.global_step % self.every_n_steps == 0
        if is_due and self._agreed(trainer, seconds):
            self._stopping = True
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, SavesSteps):
                    callback.save(trainer)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        # By now validation has run, the step is in the logs, and the checkpoint is whole. A run that was at its last
        # step does not come here: it ends as any other.
        if self._stopping:
            self._leave(trainer)

    def _agreed(self, trainer: lightning.Trainer, seconds: float) -> bool:
        """Whether any rank was told to stop; and have all ranks know whether steps are long, by the longest of theirs.

        Args:
            trainer: of this rank.
            seconds: that a step takes here.
        """
        told = STOP.received is not None
        if trainer.world_size == 1:
            return told
        # Together, as either alone: they decide alike when to agree next, or they would wait for each other.
        state = torch.tensor([float(told), seconds], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(state, torch.distributed.ReduceOp.MAX)
        any_told, longest = state.tolist()
        self._long_steps = longest >= _LONG_STEP
        return bool(any_told)

    def _leave(self, trainer: lightning.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        # SLURM kills all ranks as soon as the job is in its queue again: by then nobody has anything to lose.
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            requeued = self.requeue and self.requeue_job()
            say_stopped(STOP.received or "a signal to another rank", requeued, f" at step {trainer.global_step:,}")
        trainer.strategy.barrier()
        # Lightning kills the processes that it has started, and the first one, when one of them ends with a code.
        raise Preempted(0) if _was_started_by_another(trainer) else Preempted


def _was_started_by_another(trainer: lightning.Trainer) -> bool:
    """Whether the first process of this machine has started this one, and not torchrun or SLURM."""
    return trainer.local_rank > 0 and isinstance(
        getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment
    )


def _nothing() -> None:
    pass
