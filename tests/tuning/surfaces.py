"""Toy losses over a grid, and a runner that gives them at once."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from megalit.files import fingerprint
from megalit.tuning import ConvexSampler, Results, Space
from megalit.tuning.results import SPACE, Unit
from megalit.tuning.space import Point
from megalit.tuning.study import SharedStudy
from megalit.tuning.trials import Outcome, Stopped
from megalit.tuning.worker import Worker

# The grids of arXiv 2509.14786.
PAPER = {
    "lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "wd": [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4],
    "epochs": [1, 2, 4, 8, 16, 32, 64],
}


def noise(unit: Unit, scale: float) -> float:
    """The same for a unit in every process."""
    return scale * (int(fingerprint([*unit.point, unit.seed]), 16) / 16**16 - 0.5)


def ridge(unit: Unit) -> float:
    """A narrow valley: more epochs want more decay and a lower rate. Bumps make it not quite convex."""
    lr, wd, epochs = unit.point
    x, y, z = math.log10(lr / 2e-3), math.log2(wd / 0.8 + 0.1), math.log2(epochs / 14)  # type: ignore[operator]
    return 3.5 + 0.3 * (x + 0.15 * z) ** 2 + 0.02 * (y - 0.7 * z) ** 2 + 0.004 * z**2 + noise(unit, 0.004)


class Toy:
    """A runner that knows the loss of each point, and counts what it is asked for."""

    def __init__(self, loss: Callable[[Unit], float], seconds: float = 0.0) -> None:
        self.loss, self.seconds = loss, seconds
        self.asked: Counter[Unit] = Counter()

    def __call__(self, unit: Unit, space: Space, slot: int, stopped: Stopped) -> Outcome:
        self.asked[unit] += 1
        if self.seconds:
            threading.Event().wait(self.seconds)
        loss = self.loss(unit)
        if loss == -1:
            return Outcome("failed", error="out of memory")
        if not math.isfinite(loss):
            return Outcome("diverged", error="not finite")
        return Outcome("done", loss, steps=int(sum(value for value in unit.point if isinstance(value, int))))


def open_study(
    folder: Path, space: Mapping[str, Any], seeds: Sequence[int] = (0,), start: Mapping[str, Any] | None = None,
    retry_failed: bool = False, by_number: bool = True,
) -> SharedStudy:  # fmt: skip
    study = SharedStudy(folder)
    study.describe({"by_number": by_number}, Space.parse(space), list(seeds), start or {}, retry_failed)
    return study


def sweep(study: SharedStudy, runner: Toy, sampler: BaseSampler | None = None, **settings: Any) -> Results:
    Worker(study, sampler or ConvexSampler(), runner, **settings).run(threading.Event())
    return study.results


def ask_and_tell(space: Space, loss: Callable[[Unit], float]) -> Results:
    """The search as Optuna's users know it, without a journal."""
    study = optuna.create_study(sampler=ConvexSampler())
    study.set_user_attr(SPACE, space.to_json())
    while ConvexSampler().wanted(Results(study)):
        trial = study.ask(space.distributions(by_number=True))
        value = loss(Unit(tuple(trial.params[key] for key in space.keys), 0))
        if math.isfinite(value):
            study.tell(trial, value)
        else:
            study.tell(trial, state=TrialState.PRUNED)
    return Results(study)


def is_local_optimum(point: Point, space: Space, loss: Callable[[Point], Any]) -> bool:
    """By its definition, without any of the search's code."""
    for axis, held in enumerate(space.axes):
        place = held.values.index(point[axis])
        for step in (-1, 1):
            if 0 <= place + step < len(held.values):
                beside = (*point[:axis], held.values[place + step], *point[axis + 1 :])
                if loss(beside) <= loss(point):
                    return False
    return True
