"""Running one trial: an ordinary ``megalit fit``, in a process and a folder of its own."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from megalit.errors import UserError
from megalit.files import fingerprint, lock
from megalit.preemption import STOPPED
from megalit.scaling.records import read_record
from megalit.tuning.results import Unit
from megalit.tuning.space import Space, Value

# How `megalit fit` says that a run diverged (model.nonfinite: stop).
_NOT_FINITE = "is not finite at step"
# What tells a process that it is one of many of a job. A trial is a run of its own, on what its worker has.
_JOB_VARIABLES = ("SLURM_", "PMI_", "PMIX_", "OMPI_")
_RANK_VARIABLES = {"RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_LONGEST_NAME = 180
_POLL_SECONDS = 0.2

# Asked now and then whether a trial is to stop.
Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        status: ``diverged`` has no finite loss; ``interrupted`` is to be continued.
        loss: nats per token.
        steps: optimizer steps of the whole run.
        error: the last line of what went wrong.
    """

    status: Literal["done", "diverged", "failed", "interrupted"]
    loss: float | None = None
    steps: int | None = None
    error: str | None = None


class Runner(Protocol):
    """Runs a unit to its end, or until ``stopped`` says so."""

    def __call__(self, unit: Unit, space: Space, slot: int, stopped: Stopped) -> Outcome: ...


def run_name(unit: Unit, space: Space) -> str:
    """A readable name of a unit, the same on any grid that holds it: ``learning_rate=0.003,...,seed=0``."""
    ends = [key.rpartition(".")[2] for key in space.keys]
    keys = [end if ends.count(end) == 1 else key for key, end in zip(space.keys, ends, strict=True)]
    pairs = [*zip(keys, unit.point, strict=True), ("seed", unit.seed)]
    name = ",".join(f"{key}={str(value).replace('/', '_')}" for key, value in pairs)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{fingerprint(pairs)}"


@dataclass(frozen=True)
class FitRunner:
    """Trials as processes of this machine.

    Attributes:
        arguments: of ``megalit fit``: the base configuration.
        folder: of the sweep; runs lie in its ``runs``, what they say in its ``logs``.
        suite: the validation suite whose loss counts.
        workers: how many trials run at a time; they share the machine's GPUs and cores evenly.
        gpus: identifiers of the GPUs to share.
        base_seed: see :func:`trial_flags`.
        grace_seconds: how long a trial that is to stop has to save itself.
    """

    arguments: Sequence[str]
    folder: Path
    suite: str = "iid"
    workers: int = 1
    gpus: Sequence[str] = ()
    base_seed: int | None = None
    grace_seconds: float = 120.0

    def __call__(self, unit: Unit, space: Space, slot: int, stopped: Stopped) -> Outcome:
        """Run a unit, or continue its run."""
        name = run_name(unit, space)
        run, log = self.folder / "runs" / name, self.folder / "logs" / f"{name}.log"
        if not _wait_until_free(run, stopped):
            return Outcome("interrupted", error="stopped before it began")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(unit, space, run),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment(slot),
                # Ctrl-C is for the worker, which asks its trial to save itself; ranks of a trial are asked together.
                start_new_session=True,
            )
            was_stopped = self._wait(process, stopped)
        return self._outcome(process.returncode, was_stopped, run, log)

    def command(self, unit: Unit, space: Space, run: Path) -> list[str]:
        return [sys.executable, "-m", "megalit", "fit", *self.arguments, *trial_flags(unit, space, run, self.base_seed)]

    def environment(self, slot: int) -> dict[str, str]:
        found: Mapping[str, str] = os.environ
        kept = {
            name: value
            for name, value in found.items()
            if not name.startswith(_JOB_VARIABLES) and name not in _RANK_VARIABLES
        }
        if self.workers > 1:
            kept.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.workers)))
            if self.gpus:
                share = max(1, len(self.gpus) // self.workers)
                first = slot * share % len(self.gpus)
                kept["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[first : first + share])
        return kept

    def _wait(self, process: "subprocess.Popen[bytes]", stopped: Stopped) -> bool:
        """Wait for a process to end; whether it was told to, by this worker or by a signal of its own."""
        while process.poll() is None:
            if stopped():
                _signal_group(process, signal.SIGTERM)
                try:
                    process.wait(self.grace_seconds)
                except subprocess.TimeoutExpired:
                    _signal_group(process, signal.SIGKILL)
                    process.wait()
                return True
            time.sleep(_POLL_SECONDS)
        # SLURM signals a worker and its trial together, and the trial may be the first to end.
        return stopped() or process.returncode in (STOPPED, -signal.SIGTERM, -signal.SIGUSR1)

    def _outcome(self, code: int, was_stopped: bool, run: Path, log: Path) -> Outcome:
        error = last_error(log)
        if code == 0:
            record = read_record(run)
            if record.status == "finished":
                if self.suite not in record.losses:
                    known = ", ".join(record.losses) or "none"
                    return Outcome("failed", error=f"the record has no suite '{self.suite}' (it has: {known})")
                loss = record.losses[self.suite]["nats_per_token"]
                if loss is None or not math.isfinite(loss):
                    return Outcome("diverged", steps=record.steps, error="its loss is not finite")
                return Outcome("done", loss, record.steps)
        if was_stopped:
            return Outcome("interrupted", error="stopped")
        if code == 0:
            return Outcome("failed", error=f"it stopped before its end: {error}")
        if _NOT_FINITE in error:
            return Outcome("diverged", error=error)
        return Outcome("failed", error=error if code > 0 else f"killed by signal {-code}; its last line: {error}")


def last_error(log: Path) -> str:
    """The line of a log that says what went wrong."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16_384))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("megalit: error:")]
    return (said or lines or ["it said nothing"])[-1].removeprefix("megalit: error: ")


def flags(keys: Sequence[str], values: Sequence[Value]) -> list[str]:
    """Settings as arguments of ``megalit fit``."""
    said = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    return [f"--{key}={value}" for key, value in zip(keys, said, strict=True)]


def seed_flags(seed: int) -> list[str]:
    """One seed for model and data, also where the base states its own: a run's saved configuration does."""
    return [f"--{key}={seed}" for key in ("seed_everything", "model.seed", "data.init_args.seed")]


def trial_flags(unit: Unit, space: Space, run: Path, base_seed: int | None = None) -> list[str]:
    """What a trial adds to the base: its seed, its point and its folder.

    Args:
        base_seed: with this one the base runs as it is, also where it sets model and data seed apart; None where the
            sweep names its seeds.
    """
    seeds = [f"--seed_everything={unit.seed}"] if unit.seed == base_seed else seed_flags(unit.seed)
    # The point comes behind: it may hold a seed of its own.
    return [*seeds, *flags(space.keys, unit.point), f"--run={run}"]


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _wait_until_free(run: Path, stopped: Stopped) -> bool:
    """Wait while a trial whose worker died trains on in the folder: what it does is not lost."""
    while not stopped():
        try:
            with lock(run, busy="it trains still"):
                return True
        except UserError:
            time.sleep(_POLL_SECONDS)
    return False
