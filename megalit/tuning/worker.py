"""A worker: asks the shared study what to run, runs it, tells what came out, until the search is over."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal

from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import Trial

from megalit.files import fingerprint
from megalit.tuning.certificate import certify, growing_edges
from megalit.tuning.results import Results, Unit
from megalit.tuning.samplers import FixedSampler, GridSampler
from megalit.tuning.space import Point
from megalit.tuning.study import SharedStudy
from megalit.tuning.trials import Outcome, Runner

# Failures at the beginning, without any result between them, after which the base configuration is to blame.
_HOPELESS = 3
# What a sampler may repeat, on a space without a grid, before it is taken to have nothing new.
_REPEATS = 20


@dataclass(frozen=True)
class Task:
    """A claimed trial."""

    trial: Trial
    unit: Unit


@dataclass
class Worker:
    """Runs trials one after another.

    Attributes:
        study: the shared study; of this worker alone.
        sampler: proposes points.
        runner: runs them.
        trials: points to try, at most; None for as many as the search needs.
        extend: grow the grid where the search ends at its edge.
        can_run: whether a point is legal at all; the grid does not grow to one that is not.
        slot: which share of the machine this worker's trials get.
        on_start, on_end: told of each trial.
    """

    study: SharedStudy
    sampler: BaseSampler
    runner: Runner
    trials: int | None = None
    extend: bool = False
    can_run: Callable[[Point], bool] = lambda point: True
    slot: int = 0
    on_start: Callable[[Unit], None] = lambda unit: None
    on_end: Callable[[Unit, Outcome], None] = lambda unit, outcome: None

    def run(self, stop: threading.Event) -> None:
        """Work until the search is over or ``stop`` is set."""
        pause = 0.05
        while not stop.is_set():
            task = self.next()
            if task == "over":
                return
            if task == "wait":
                # Other workers have what is needed; one of them may die.
                stop.wait(pause)
                pause = min(pause * 1.5, 10.0)
                continue
            pause = 0.05
            self._run(task, stop)

    def _run(self, task: Task, stop: threading.Event) -> None:
        lost = threading.Event()
        outcome = Outcome("interrupted", error="its worker ended by an error")
        try:
            self.on_start(task.unit)
            with self.study.alive(task.trial, lost):
                space = self.study.results.space
                outcome = self.runner(task.unit, space, self.slot, lambda: stop.is_set() or lost.is_set())
        finally:
            self.study.tell(task.trial.number, outcome)
        self.on_end(task.unit, outcome)

    def next(self) -> Task | Literal["wait", "over"]:
        """Claim what to run next."""
        with self.study.asking() as lease:
            self.study.release_dead()
            results = self.study.results
            try:
                if isinstance(self.sampler, GridSampler):
                    task = self._from_grid(self.sampler, results)
                else:
                    task = self._from_sampler(results)
            except UpdateFinishedTrialError:
                # It slept before it could claim, and another worker, that broke the lock, took it for dead.
                return "wait"
            if isinstance(task, Task) and lease.is_over:
                self.study.give_up(task.trial.number, "its worker slept while it asked")
                return "wait"
        return task

    def _from_grid(self, sampler: GridSampler, results: Results) -> Task | Literal["wait", "over"]:
        wanted = [] if _is_hopeless(results) else self._affordable(sampler.wanted(results), results)
        if not wanted and self.extend and self._grow(results):
            results = self.study.results
            wanted = self._affordable(sampler.wanted(results), results)
        unit = results.first_free(wanted)
        if unit is None:
            return "wait" if wanted else "over"
        return self._ask(FixedSampler(unit.point, by_number=True), unit)

    def _affordable(self, wanted: list[Unit], results: Results) -> list[Unit]:
        """What is wanted, without new points beyond the budget."""
        if self.trials is None or len(results.points) < self.trials:
            return wanted
        return [unit for unit in wanted if unit.point in results.points]

    def _grow(self, results: Results) -> bool:
        """Grow the grid past each edge on which its best point lies, where there is something to run beyond."""
        space, centre = results.space, results.centre
        if centre is None or not certify(results).is_settled:
            return False
        for axis, side in growing_edges(results):
            larger = space.grown(axis, side)
            beyond = larger.neighbour(centre, axis, side) if larger is not None else None
            if larger is not None and beyond is not None and self.can_run(beyond):
                space = larger
        if space == results.space:
            return False
        self.study.grow(space)
        return True

    def _from_sampler(self, results: Results) -> Task | Literal["wait", "over"]:
        begun = [unit for point in results.points for unit in results.units(point) if results.is_open(unit)]
        abandoned = {claim.unit for claim in results.claims if claim.status in ("abandoned", "failed")}
        begun += [unit for unit in abandoned if unit not in results.valid and unit not in begun]
        unit = results.first_free(begun)
        if unit is not None:
            return self._ask(FixedSampler(unit.point, by_number=False), unit)
        if _is_hopeless(results) or (self.trials is not None and len(results.points) >= self.trials):
            return "wait" if begun else "over"
        return self._new_point(results) or ("wait" if begun else "over")

    def _new_point(self, results: Results) -> Task | None:
        """What the sampler proposes; where it repeats itself, another one, as long as there is one."""
        known = set(results.points)
        if results.space.is_grid and len(known) >= results.space.size:
            return None
        for _ in range(1 if results.space.is_grid else _REPEATS):
            task = self._ask(self.sampler, None)
            if task.unit.point not in known:
                return task
            self.study.give_up(task.trial.number, "the sampler repeated a point")
        if not results.space.is_grid:
            return None
        free = [point for point in product(*(axis.values for axis in results.space.axes)) if point not in known]
        point = min(free, key=lambda point: fingerprint([results.seeds[0], *point]))
        return self._ask(FixedSampler(point, by_number=False), Unit(point, results.seeds[0]))

    def _ask(self, sampler: BaseSampler, unit: Unit | None) -> Task:
        study, results = self.study.study, self.study.results
        study.sampler = sampler
        trial = study.ask(results.space.distributions(by_number=isinstance(self.sampler, GridSampler)))
        unit = unit or Unit(tuple(trial.params[key] for key in results.space.keys), results.seeds[0])
        self.study.claim(trial, unit.seed)
        return Task(trial, unit)


def _is_hopeless(results: Results) -> bool:
    return results.count("failed") >= _HOPELESS and not results.count("done") and not results.count("diverged")
