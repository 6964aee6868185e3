"""The certificate of a locally optimal point: what it beats, by how much, and what it does not say."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optuna.study import Study

from megalit.files import write_json
from megalit.tuning.results import Results
from megalit.tuning.space import SIDES, Point, Side, Space, Value

FILE = "certificate.json"


@dataclass(frozen=True)
class Neighbour:
    """One step from the point.

    Attributes:
        axis, side, value: where the step leads.
        status: ``done``, ``diverged``, ``failed``, ``running`` or ``missing``.
        loss: mean over the seeds; None where it is not finite or not known.
        margin: by how much the neighbour is worse; None where it has no finite loss.
    """

    axis: str
    side: Side
    value: Value
    status: str
    loss: float | None
    margin: float | None


@dataclass(frozen=True)
class Certificate:
    """Whether a point is known to be locally optimal.

    Attributes:
        certified: every neighbour is known, none is better, and the smallest margin exceeds the noise of the seeds.
        reason: why not.
        point: the best point, by key.
        loss: its mean loss over the seeds (nats per token); ``losses`` by seed.
        steps: optimizer steps of a run there.
        neighbours: those that exist.
        edges: where the point lies at the end of the grid, so that nothing is known beyond.
        smallest_margin: of the neighbours with a finite loss.
        noise: standard error of the difference of two points' mean losses, from the spread over the seeds of all
            points; None with one seed.
        trials: how many were run, by outcome.
        grid: points on the grid; None where it is none.
    """

    certified: bool
    reason: str | None
    point: dict[str, Value] | None = None
    loss: float | None = None
    losses: dict[int, float] = field(default_factory=dict)
    steps: int | None = None
    neighbours: list[Neighbour] = field(default_factory=list)
    edges: list[tuple[str, Side]] = field(default_factory=list)
    smallest_margin: float | None = None
    noise: float | None = None
    seeds: list[int] = field(default_factory=list)
    trials: dict[str, int] = field(default_factory=dict)
    grid: int | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the best point and all its neighbours are known, however small the margins are."""
        return self.point is not None and all(found.status in ("done", "diverged") for found in self.neighbours)

    def write(self, folder: Path) -> Path:
        """Write ``certificate.json``."""
        value: dict[str, Any] = asdict(self)
        write_json(folder / FILE, value)
        return folder / FILE


def is_certified(study: Study) -> bool:
    """Whether a study's best point is locally optimal beyond doubt; under ask and tell, the sign to stop."""
    return certify(Results(study)).certified


def certify(results: Results) -> Certificate:
    """What is known about the best point on the grid."""
    common: dict[str, Any] = {
        "noise": results.noise,
        "seeds": list(results.seeds),
        "trials": {status: results.count(status) for status in ("done", "diverged", "failed", "running")},
        "grid": results.space.size if results.space.is_grid else None,
    }
    point = results.centre
    score = results.score(point) if point is not None else None
    if point is None or score is None or not math.isfinite(score.loss):
        return Certificate(False, "no point has a finite loss", **common)
    neighbours, edges = _around(results, point, score.loss)
    margins = [neighbour.margin for neighbour in neighbours if neighbour.margin is not None]
    smallest = min(margins, default=None)
    return Certificate(
        certified=(reason := _doubt(results, score.is_complete, neighbours, smallest)) is None,
        reason=reason,
        point=dict(zip(results.space.keys, point, strict=True)),
        loss=score.loss,
        losses=score.losses,
        steps=score.steps,
        neighbours=neighbours,
        edges=edges,
        smallest_margin=smallest,
        **common,
    )


def _around(results: Results, point: Point, loss: float) -> tuple[list[Neighbour], list[tuple[str, Side]]]:
    neighbours: list[Neighbour] = []
    edges: list[tuple[str, Side]] = []
    for place, axis in enumerate(results.space.axes):
        for side in SIDES:
            beside = results.space.neighbour(point, place, side)
            if beside is None:
                edges.append((axis.key, side))
                continue
            score = results.score(beside)
            known = score.loss if score is not None and score.is_complete and math.isfinite(score.loss) else None
            neighbours.append(
                Neighbour(
                    axis=axis.key,
                    side=side,
                    value=beside[place],
                    status=_status(results, beside),
                    loss=known,
                    margin=None if known is None else known - loss,
                )
            )
    return neighbours, edges


def _status(results: Results, point: Point) -> str:
    """The word for a point with several seeds: the first of these that one of them has."""
    found = [results.status(unit) or "missing" for unit in results.units(point)]
    return next(status for status in ("failed", "running", "missing", "diverged", "done") if status in found)


def _doubt(results: Results, complete: bool, neighbours: list[Neighbour], smallest: float | None) -> str | None:
    if not results.space.is_grid:
        return "the space has ranges without a grid, so no neighbours"
    if not complete:
        return "the point lacks seeds"
    for status in ("failed", "running", "missing"):
        first = next((neighbour for neighbour in neighbours if neighbour.status == status), None)
        if first is not None:
            remedy = ": see its log, then --retry_failed" if status == "failed" else ""
            return f"the neighbour at {first.axis} {first.value} is {status}{remedy}"
    if smallest is not None and smallest < 0:
        return "a neighbour is better"
    noise = results.noise
    if noise is not None and smallest is not None and smallest < noise:
        return f"the smallest margin, {smallest:.4f}, is below the noise of the seeds, {noise:.4f}: give more seeds"
    return None


def growing_edges(results: Results) -> list[tuple[int, Side]]:
    """Where the best point lies at an end of the grid that can grow."""
    point = results.centre
    if point is None:
        return []
    space: Space = results.space
    return [
        (axis, side)
        for axis in range(len(space.axes))
        for side in SIDES
        if space.neighbour(point, axis, side) is None and space.grown(axis, side) is not None
    ]
