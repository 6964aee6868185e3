"""Pictures of what was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megalit.evaluation.results import Evaluation, over_runs
from megalit.files import write_png

# A legend with a line for each of more runs hides the curves.
_MOST_RUNS = 8


def plot_curves(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Draw loss by position and by context length to a PNG file: a line for each run, or the mean over many runs."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.suites))
    figure = Figure(figsize=(11, 4.0 * max(1, len(names))), layout="constrained", dpi=120)
    grid = figure.subplots(max(1, len(names)), 2, squeeze=False)
    for row, name in zip(grid, names, strict=False):
        by_position, by_length = row
        for label, suite in _lines(evaluations, name):
            _draw(by_position, suite["by_position"], label, marker=None)
            _draw(by_length, suite["by_context_length"], label, marker="o")
        by_position.set(xlabel="tokens of context", title=f"{name}: by position in the window")
        by_length.set(xlabel="context length (tokens)", title=f"{name}: by context length")
        lengths = sorted({x for _, suite in _lines(evaluations, name) for x, *_ in suite["by_context_length"]})
        if lengths:
            by_length.set_xscale("log", base=2)
            by_length.set_xticks(lengths, [f"{int(length):,}" for length in lengths])
            by_length.minorticks_off()
        for axes in row:
            axes.set_ylabel("loss (nats per token)")
            axes.grid(alpha=0.3)
        by_position.legend(frameon=False)
    write_png(path, figure)


def _lines(evaluations: Sequence[Evaluation], name: str) -> list[tuple[str, dict[str, Any]]]:
    """A label and curves of [x, loss] or [x, mean, deviation] points."""
    found = [evaluation for evaluation in evaluations if name in evaluation.suites]
    if len(found) > _MOST_RUNS:
        spread = over_runs([Evaluation("", "", {name: evaluation.suites[name]}) for evaluation in found])
        return [(f"mean of {len(found)} runs", spread["suites"][name])]
    return [
        (
            f"{evaluation.model} ({evaluation.suites[name].nats_per_token:.3f})",
            {
                "by_position": evaluation.suites[name].by_position,
                "by_context_length": evaluation.suites[name].by_context_length,
            },
        )
        for evaluation in found
    ]


def _draw(axes: Any, points: Sequence[Sequence[float]], label: str, marker: str | None) -> None:
    if not points:
        return
    columns = list(zip(*points, strict=True))
    (line,) = axes.plot(columns[0], columns[1], marker=marker, markersize=4, label=label)
    if len(columns) > 2:
        low = [middle - (width or 0) for middle, width in zip(columns[1], columns[2], strict=True)]
        high = [middle + (width or 0) for middle, width in zip(columns[1], columns[2], strict=True)]
        axes.fill_between(columns[0], low, high, color=line.get_color(), alpha=0.2, linewidth=0)
