"""A picture of a sweep: the path of the best point over the grid, and the losses of the trials."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

from megalit.files import write_png
from megalit.tuning.certificate import certify
from megalit.tuning.results import Results
from megalit.tuning.space import Axis, Point

FILE = "sweep.png"
# More pairs of axes than these make no picture.
_MOST_PANELS = 11


def path_of_centres(results: Results) -> list[Point]:
    """The best point after each trial, in the order in which points were first tried; repeats left out."""
    path: list[Point] = []
    best = (math.inf, math.inf)
    for point in results.points:
        score = results.score(point)
        if score is not None and score.is_complete and (score.loss, score.steps) < best:
            best = (score.loss, score.steps)
            path.append(point)
    return path


def draw_sweep(results: Results, path: Path) -> None:
    """Draw to a PNG file: the losses of the points in order, and for each pair of axes the points, the path of the
    best one, and a star where it is now (filled where certified)."""
    from matplotlib.figure import Figure

    axes = results.space.axes
    pairs = list(combinations(range(len(axes)), 2))[: _MOST_PANELS - 1] or ([(0, 0)] if axes else [])
    columns = min(3, len(pairs) + 1)
    rows = math.ceil((len(pairs) + 1) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.8 * rows), layout="constrained", dpi=110)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    _draw_losses(panels[0], results)
    for panel, (first, second) in zip(panels[1:], pairs, strict=False):
        if first == second:
            _draw_line(panel, results)
        else:
            _draw_pair(panel, results, first, second)
    for panel in panels[len(pairs) + 1 :]:
        panel.set_axis_off()
    write_png(path, figure)


def _finite(results: Results) -> dict[Point, float]:
    scores = {point: results.score(point) for point in results.points}
    return {point: score.loss for point, score in scores.items() if score is not None and math.isfinite(score.loss)}


def _draw_losses(panel: Any, results: Results) -> None:
    losses = _finite(results)
    best, lowest = [], math.inf
    for loss in losses.values():
        lowest = min(lowest, loss)
        best.append(lowest)
    places = range(1, len(losses) + 1)
    panel.plot(places, list(losses.values()), "o", color="0.6", markersize=4, label="point")
    panel.step(places, best, where="post", color="tab:blue", label="best so far")
    panel.set_xlabel("points, in the order of the sweep")
    panel.set_ylabel("loss (nats per token)")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)


def _draw_line(panel: Any, results: Results) -> None:
    (axis,) = results.space.axes
    losses = _finite(results)
    found = sorted((axis.values.index(point[0]), loss) for point, loss in losses.items() if results.space.holds(point))
    panel.plot([place for place, _ in found], [loss for _, loss in found], "o-", color="tab:blue")
    _label(panel.xaxis, axis)
    panel.set_ylabel("loss (nats per token)")
    panel.grid(alpha=0.3)


def _draw_pair(panel: Any, results: Results, first: int, second: int) -> None:
    space = results.space

    def places(points: list[Point]) -> tuple[list[int], list[int]]:
        indices = [space.index(point) for point in points]
        return [index[first] for index in indices], [index[second] for index in indices]

    across = len(space.axes[first].values), len(space.axes[second].values)
    panel.plot(
        [x for x in range(across[0]) for _ in range(across[1])],
        [y for _ in range(across[0]) for y in range(across[1])],
        ".",
        color="0.85",
        markersize=3,
        zorder=1,
    )
    # The worst first, so that of points in one place the best is seen.
    losses = {point: loss for point, loss in _finite(results).items() if space.holds(point)}
    shown = sorted(losses, key=lambda point: -losses[point])
    if shown:
        dots = panel.scatter(
            *places(shown), c=[losses[point] for point in shown], cmap="viridis_r", s=42, zorder=2, edgecolors="none"
        )
        panel.figure.colorbar(dots, ax=panel, label="loss")
    other = [point for point in results.points if point not in losses and space.holds(point)]
    panel.plot(*places(other), "x", color="tab:red", zorder=2)
    path = [point for point in path_of_centres(results) if space.holds(point)]
    panel.plot(*places(path), "-", color="0.2", linewidth=1, zorder=3)
    certificate = certify(results)
    if certificate.point is not None:
        centre = tuple(certificate.point[key] for key in space.keys)
        face = "tab:red" if certificate.certified else "none"
        panel.plot(*places([centre]), "*", markersize=15, markeredgecolor="tab:red", markerfacecolor=face, zorder=4)
    _label(panel.xaxis, space.axes[first])
    _label(panel.yaxis, space.axes[second])


def _label(side: Any, axis: Axis) -> None:
    side.set_ticks(range(len(axis.values)), [str(value) for value in axis.values])
    side.set_label_text(axis.key)
    if side.axis_name == "x" and len(axis.values) > 5:
        side.set_tick_params(rotation=45)
