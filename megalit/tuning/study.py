"""A study that any number of workers on any nodes share: one Optuna journal on a shared file system.

Everything the workers need to know of each other is in the journal. A worker claims what it runs while it holds
the lock for asking; it shows that it lives by counting in its trial; the claim of one that no longer counts is
given up, and the run is continued by another worker.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.study import Study
from optuna.trial import Trial, TrialState

from megalit.differences import differences
from megalit.errors import UserError
from megalit.tuning.results import BEAT, CLAIM, ERROR, OUTCOME, RETRIED, SEEDS, SPACE, START, STEPS, Results
from megalit.tuning.space import Space
from megalit.tuning.trials import Outcome

JOURNAL = "study.journal"
# Of a new study. A folder's name may change, and its study is the same.
_NAME = "sweep"
# What a sweep is: results under another one could not be compared.
_SWEEP, _DECLARED = "sweep", "declared"
# Optuna breaks a lock that has not changed hands for so long, because its holder may be dead.
_LOCK_SECONDS = 30

optuna.logging.set_verbosity(optuna.logging.WARNING)


@cache
def this_machine() -> str | None:
    """A name that two processes share only if each can see whether the other lives; None where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def is_dead(worker: Mapping[str, Any]) -> bool:
    """Whether a claim's worker was a process of this machine and is gone."""
    if this_machine() is None or worker.get("machine") != this_machine():
        return False
    try:
        os.kill(worker["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


@dataclass(frozen=True)
class Lease:
    """Leave to ask, from a moment of the monotonic clock on."""

    began: float

    @property
    def is_over(self) -> bool:
        """Whether this process was away for so long that the lock may have passed to another one."""
        return time.monotonic() - self.began > _LOCK_SECONDS / 2


class SharedStudy:
    """One worker's view of a sweep's study.

    Args:
        folder: the sweep's folder.
        dead_after_seconds: a claim that has not been renewed for so long belongs to a dead worker.
        create: begin a study where there is none; otherwise the sweep has to be there.

    Raises:
        UserError: the journal is none, or holds no sweep.
    """

    def __init__(self, folder: Path, dead_after_seconds: float = 180.0, create: bool = True) -> None:
        self.folder = folder
        self.dead_after_seconds = dead_after_seconds
        path = folder / JOURNAL
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        elif not path.exists():
            raise UserError(f"{folder} holds no sweep: start one with `megalit sweep --output {folder}`")
        try:
            _mend(path)
            self._storage = JournalStorage(JournalFileBackend(str(path)))
            name = _held(self._storage, folder)
            if name is not None:
                self.study: Study = optuna.load_study(storage=self._storage, study_name=name)
            elif create:
                self.study = optuna.create_study(storage=self._storage, study_name=_NAME, load_if_exists=True)
        except ValueError as error:
            raise UserError(f"{path} is no journal of a study, or damaged ({error}): move it away") from error
        if not create and (name is None or SPACE not in self.study.user_attrs):
            raise UserError(f"{folder} holds a sweep that was stopped before it began: give its command again")
        # When a claim's count was last seen to change, by this process's own clock: those of nodes may differ.
        self._seen: dict[int, tuple[int, float]] = {}

    @property
    def results(self) -> Results:
        return Results(self.study)

    # The sweep -----------------------------------------------------------------------------------------

    def describe(
        self, sweep: Mapping[str, Any], space: Space, seeds: list[int], start: Mapping[str, Any], retry_failed: bool
    ) -> None:
        """Say what this study is; what an earlier command has begun is continued.

        Values may be added to a grid and seeds to the list; a grid that has grown stays so.

        Raises:
            UserError: the folder holds a sweep of something else.
        """
        with self.asking():
            held = self.study.user_attrs
            for name, then, now in differences(held.get(_SWEEP, sweep), sweep):
                raise UserError(
                    f"{self.folder} holds a sweep with another {name} ({then!r}, not {now!r}): choose another --output"
                )
            self.study.set_user_attr(_SWEEP, dict(sweep))
            if held.get(_DECLARED) != space.to_json():
                self._check_axes(space)
                self.study.set_user_attr(_DECLARED, space.to_json())
                self.study.set_user_attr(SPACE, space.to_json())
            self.study.set_user_attr(SEEDS, list(seeds))
            self.study.set_user_attr(START, dict(start))
            if retry_failed:
                failed = [claim.number for claim in self.results.claims if claim.status == "failed"]
                self.study.set_user_attr(RETRIED, failed)

    def _check_axes(self, space: Space) -> None:
        """Refuse axes that Optuna could not tell from those of the trials that are there."""
        if not self.study.trials:
            return
        held = Results(self.study).space
        by_number = self.study.user_attrs[_SWEEP].get("by_number", True)
        new = space.distributions(by_number)
        for key, old in held.distributions(by_number).items():
            try:
                optuna.distributions.check_distribution_compatibility(old, new[key])
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"{self.folder} holds a sweep whose space.{key} has values of another kind "
                    "(whole, positive or any numbers, or names): keep the kind, or choose another --output"
                ) from error

    def grow(self, space: Space) -> None:
        """Replace the grid by a larger one; to be called while asking."""
        self.study.set_user_attr(SPACE, space.to_json())

    # Claims --------------------------------------------------------------------------------------------

    @contextmanager
    def asking(self) -> Iterator["Lease"]:
        """Be the only worker that asks; what is unclaimed when this begins stays so until it ends."""
        guard = JournalFileSymlinkLock(str(self.folder / "asking"), grace_period=_LOCK_SECONDS)
        guard.acquire()
        try:
            yield Lease(time.monotonic())
        finally:
            with suppress(RuntimeError):  # somebody broke it
                guard.release()

    def claim(self, trial: Trial, seed: int) -> None:
        """Say that this process runs a trial; to be called while asking."""
        worker = {"seed": seed, "machine": this_machine(), "host": socket.gethostname(), "pid": os.getpid()}
        trial.set_user_attr(CLAIM, worker)

    def give_up(self, number: int, reason: str) -> None:
        """End a trial that counts for nothing: its run is for another one to continue."""
        self.tell(number, Outcome("interrupted", error=reason))

    def release_dead(self) -> None:
        """Give up what dead workers have claimed; to be called while asking."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get(CLAIM)
            if worker is None:
                self.give_up(trial.number, "its worker died while it asked")
            elif is_dead(worker) or self._is_silent(trial.number, trial.user_attrs.get(BEAT, 0)):
                self.give_up(trial.number, f"its worker, process {worker['pid']} on {worker['host']}, died")

    def _is_silent(self, number: int, beat: int) -> bool:
        now = time.monotonic()
        if self._seen.get(number, (None, 0.0))[0] != beat:
            self._seen[number] = (beat, now)
        return now - self._seen[number][1] > self.dead_after_seconds

    @contextmanager
    def alive(self, trial: Trial, lost: threading.Event) -> Iterator[None]:
        """Renew a claim until the block ends; set ``lost`` if it was given to another worker meanwhile."""
        done = threading.Event()

        def count() -> None:
            beat = 0
            while not done.wait(self.dead_after_seconds / 6):
                beat += 1
                try:
                    trial.set_user_attr(BEAT, beat)
                except optuna.exceptions.UpdateFinishedTrialError:
                    lost.set()
                    return
                except OSError:
                    continue  # a file system that is away for a moment

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def tell(self, number: int, outcome: Outcome) -> None:
        """Record what came out, unless the trial was given to another worker meanwhile."""
        status = "abandoned" if outcome.status == "interrupted" else outcome.status
        identity = self.study.get_trials(deepcopy=False)[number]._trial_id
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            for name, value in ((OUTCOME, status), (ERROR, outcome.error), (STEPS, outcome.steps)):
                if value is not None:
                    self._storage.set_trial_user_attr(identity, name, value)
            state = {"done": TrialState.COMPLETE, "diverged": TrialState.PRUNED}.get(status, TrialState.FAIL)
            values = [outcome.loss] if outcome.loss is not None and status == "done" else None
            self._storage.set_trial_state_values(identity, state, values)


def _held(storage: JournalStorage, folder: Path) -> str | None:
    """The name of the study that a journal holds.

    A folder's name was once its study's, so that one which was renamed may hold another study, without trials, besides.
    """
    studies = storage.get_all_studies()
    begun = [study for study in studies if SPACE in study.user_attrs]
    of_folder = [study for study in begun if study.study_name == folder.resolve().name]
    return next((study.study_name for study in [*of_folder, *begun, *studies]), None)


def _mend(path: Path) -> None:
    """Cut off half a line at the journal's end, which a full disk or a lost node may leave behind."""
    if not path.exists() or path.stat().st_size == 0:
        return
    guard = JournalFileSymlinkLock(str(path))
    guard.acquire()
    try:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                data = path.read_bytes()
                file.truncate(data.rfind(b"\n") + 1)
    finally:
        guard.release()
