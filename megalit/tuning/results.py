"""What a study knows so far: which points were run or are running, and what came out."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from megalit.tuning.space import Point, Space

# Attributes of a study, and of its trials.
SPACE, SEEDS, START, RETRIED = "space", "seeds", "start", "retried"
CLAIM, OUTCOME, STEPS, ERROR, BEAT = "claim", "outcome", "steps", "error", "beat"

Status = Literal["running", "done", "diverged", "failed", "abandoned"]


class Unit(NamedTuple):
    """What one trial runs."""

    point: Point
    seed: int


@dataclass(frozen=True)
class Claim:
    """One trial of a study: who runs or ran what, and what became of it.

    ``diverged`` is a result, an infinite loss. ``failed`` is none: the point is not known. ``abandoned`` says that
    its worker died or was stopped; the trial counts for nothing, and its run is continued by another one.
    """

    number: int
    unit: Unit
    status: Status
    loss: float | None
    steps: int | None
    error: str | None
    worker: dict[str, Any]


@dataclass(frozen=True)
class Score:
    """A point's loss over its seeds (infinite where one diverged) and what it costs."""

    loss: float
    steps: int
    losses: dict[int, float]
    is_complete: bool


class Results:
    """A study's trials as one reads them at this moment."""

    def __init__(self, study: Study) -> None:
        attributes = study.user_attrs
        self.space = Space.from_json(attributes[SPACE])
        self.seeds: tuple[int, ...] = tuple(attributes.get(SEEDS, (0,)))
        self.start = self.space.start(attributes.get(START, {})) if self.space.is_grid else ()
        retried = set(attributes.get(RETRIED, ()))
        trials = study.get_trials(deepcopy=False)
        self.claims = [claim for trial in trials if (claim := self._claim(trial)) is not None]
        self.valid: dict[Unit, Claim] = {
            claim.unit: claim
            for claim in self.claims
            if claim.status != "abandoned" and not (claim.status == "failed" and claim.number in retried)
        }

    def _claim(self, trial: FrozenTrial) -> Claim | None:
        if any(key not in trial.params for key in self.space.keys):
            return None
        worker = trial.user_attrs.get(CLAIM, {})
        unit = Unit(tuple(trial.params[key] for key in self.space.keys), worker.get("seed", self.seeds[0]))
        return Claim(
            number=trial.number,
            unit=unit,
            status=_status(trial),
            loss=trial.value if trial.state == TrialState.COMPLETE else None,
            steps=trial.user_attrs.get(STEPS),
            error=trial.user_attrs.get(ERROR),
            worker=worker,
        )

    @cached_property
    def points(self) -> list[Point]:
        """Points with at least one trial that counts, in the order in which they were first tried."""
        return list(dict.fromkeys(unit.point for unit in self.valid))

    def units(self, point: Point) -> list[Unit]:
        return [Unit(point, seed) for seed in self.seeds]

    def status(self, unit: Unit) -> Status | None:
        """What became of a unit; None where nobody has it."""
        claim = self.valid.get(unit)
        return claim.status if claim is not None else None

    def is_open(self, unit: Unit) -> bool:
        """Whether a unit's result is still to come."""
        return self.status(unit) in (None, "running")

    def first_free(self, units: Iterable[Unit]) -> Unit | None:
        return next((unit for unit in units if unit not in self.valid), None)

    def score(self, point: Point) -> Score | None:
        """The mean loss over the seeds that are done; None where there is none."""
        losses: dict[int, float] = {}
        steps = 0
        for unit in self.units(point):
            claim = self.valid.get(unit)
            if claim is not None and claim.status in ("done", "diverged"):
                losses[unit.seed] = math.inf if claim.loss is None else claim.loss
                steps = max(steps, claim.steps or 0)
        if not losses:
            return None
        mean = statistics.fmean(losses.values())
        return Score(mean, steps, losses, len(losses) == len(self.seeds))

    @cached_property
    def centre(self) -> Point | None:
        """The best point on the grid so far; the start while no other has a finite loss; None before any result.

        Ties are decided the cheap way, for fewer steps. Points that lack seeds count only while no point has all.
        """
        scores = {
            point: score
            for point in self.points
            if self.space.holds(point) and (score := self.score(point)) is not None and math.isfinite(score.loss)
        }
        complete = {point: score for point, score in scores.items() if score.is_complete}
        scores = complete or scores
        if scores:
            return min(scores, key=lambda point: (scores[point].loss, scores[point].steps, self.space.index(point)))
        return self.start if self.score(self.start) is not None else None

    @property
    def noise(self) -> float | None:
        """Standard error of the difference of two points' losses, by the spread of the seeds; None without any."""
        spreads = []
        for point in self.points:
            score = self.score(point)
            if score is not None and len(score.losses) > 1 and math.isfinite(score.loss):
                spreads.append(statistics.variance(score.losses.values()))
        return math.sqrt(statistics.fmean(spreads) * 2 / len(self.seeds)) if spreads else None

    def count(self, status: Status) -> int:
        return sum(claim.status == status for claim in self.valid.values())


def _status(trial: FrozenTrial) -> Status:
    if trial.state == TrialState.COMPLETE:
        return "done"
    if trial.state == TrialState.PRUNED:
        return "diverged"
    if trial.state == TrialState.FAIL:
        # Also what Optuna itself, or a person in a dashboard, has marked as failed.
        outcome: Status = trial.user_attrs.get(OUTCOME, "failed")
        return outcome
    return "running"
