"""Being told to stop: signals, and the way back into SLURM's queue.

Imports nothing heavy, because a signal may come while torch is still being imported.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Where a node died, the file system may hold its locks for so many seconds.
_LOCK_SECONDS = 180

# "Try again" in sysexits.h; SLURM takes any code but 0 for a failure.
STOPPED = 75
SIGNALS = ("SIGUSR1", "SIGTERM")


class Preempted(SystemExit):
    """A run that was told to stop has saved itself: the process ends with code 75, and the same command continues."""

    def __init__(self, code: int = STOPPED) -> None:
        super().__init__(code)


class StopSignals:
    """Signals that ask this process to stop. A handler only sets ``received``, however often it is called.

    Attributes:
        received: name of the first signal that came, or None.
        at_once: end the process in the handler, because nothing can be lost and no other rank waits for this one.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.at_once = False
        self._before: dict[str, Any] = {}

    def install(self, names: Sequence[str] = SIGNALS) -> None:
        """Handle these signals, and those handled before no longer."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python handles signals in the main thread
        for name in [name for name in self._before if name not in names]:
            self._restore(name)
        for name in names:
            before = signal.signal(signal.Signals[name], self._receive)
            self._before.setdefault(name, before)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the default signals for the time of a block."""
        self.received = None
        self.at_once = _is_alone()
        self.install()
        try:
            yield
        finally:
            self.at_once = False
            self.install(())

    def _restore(self, name: str) -> None:
        before = self._before.pop(name)
        signal.signal(signal.Signals[name], signal.SIG_DFL if before is None else before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = signal.Signals(number).name
        if self.at_once:
            say_stopped(self.received, requeue_job())
            os._exit(STOPPED)


STOP = StopSignals()
"""The signals of this process."""


def _is_alone() -> bool:
    return all(os.environ.get(name, "1") == "1" for name in ("WORLD_SIZE", "SLURM_NTASKS"))


def say_stopped(told_by: str, requeued: bool, where: str = "") -> None:
    """One line on standard error: why the process ends, and how its work goes on."""
    how = f"job {slurm_job()} is back in SLURM's queue and continues" if requeued else "the same command continues"
    print(f"megalit: stopped by {told_by}{where}: {how}", file=sys.stderr, flush=True)


def slurm_job() -> str | None:
    """The id of this process's SLURM job, ``ARRAY_TASK`` for an array's task; None outside SLURM."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def is_requeued() -> bool:
    """Whether SLURM has started this job before."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def lock_patience() -> float:
    """Seconds to wait for the lock of this job's work, which its own earlier start may seem to hold."""
    return _LOCK_SECONDS if is_requeued() else 0


def requeue_job() -> bool:
    """Put this process's SLURM job back into the queue, if there is one, and say whether that was done.

    A job that was cancelled, by its user for example, stays cancelled.
    """
    job = slurm_job()
    if job is None:
        return False
    try:
        shown = _scontrol("-o", "show", "job", job).stdout
        # A job that ends says why; while SLURM takes it off its nodes in order to start another, it still runs.
        if "JobState=RUNNING" not in shown and "Reason=TimeLimit" not in shown:
            return False
        return _scontrol("requeue", job).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False  # in a container without SLURM's commands, for example


def _scontrol(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=False)
