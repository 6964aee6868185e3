"""The picture of the results: loss against G, against the window and against the amount of real data."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

from estimates import STREAMS, baseline, of_seeds
from grid import Tuned
from results import Results
from spec import StreamName
from table import GROUPS

# The window of base.yaml.
WINDOW = 1024

# A stream has one colour in all panels.
COLOURS: dict[StreamName, str] = {"real": "0.4", "simple": "C0", "stitched": "C1"}


def draw(results: Results, best: Tuned) -> Any:
    """A matplotlib figure with the three panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained", dpi=110)
    of_g, of_window, of_data = figure.subplots(1, 3)
    real = list(of_seeds(results, best["real"]).values())
    if real:
        of_g.axhline(mean(real), color=COLOURS["real"], linestyle="--", label="real only")
    counts = sorted({best["simple"].generations, *(run.generations for run in GROUPS["generations"](best))})
    for stream in STREAMS[1:]:
        _line(of_g, stream, stream, [(g, _losses(results, replace(best[stream], generations=g))) for g in counts])
    lengths = {WINDOW}
    for stream in STREAMS:
        points = {WINDOW: _losses(results, best[stream])}
        for run in GROUPS["window"](best):
            if run.stream == stream:
                points[int(run.settings["data.context_length"])] = _losses(results, run)
        _line(of_window, stream, best[stream].recipe, sorted(points.items()))
        lengths |= set(points)
    points_of_data = baseline(results, best)
    of_data.plot(*zip(*points_of_data, strict=True), marker="o", label="real only", color=COLOURS["real"])
    for stream in STREAMS[1:]:
        reached, known = _losses(results, best[stream]), results.of(best["real"])
        if reached and known is not None:
            colour = COLOURS[stream]
            of_data.scatter([known.real_tokens], [mean(reached)], label=best[stream].recipe, zorder=3, color=colour)
    for axes, label, places in (
        (of_g, "G (generations of a document)", counts),
        (of_window, "window (tokens)", sorted(lengths)),
        (of_data, "unique real tokens", sorted({tokens for tokens, _ in points_of_data})),
    ):
        axes.set_xlabel(label)
        axes.set_xscale("log")
        if places:
            axes.set_xticks(places, [f"{place:,}" for place in places])
            axes.minorticks_off()
        axes.set_ylabel("loss (nats per token)")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return figure


def _losses(results: Results, run: Any) -> list[float]:
    return list(of_seeds(results, run).values())


def _line(axes: Any, stream: StreamName, label: str, points: Sequence[tuple[int, list[float]]]) -> None:
    there = [(at, losses) for at, losses in points if losses]
    if there:
        x, y = zip(*((at, mean(losses)) for at, losses in there), strict=True)
        spread = [stdev(losses) if len(losses) > 1 else 0.0 for _, losses in there]
        axes.errorbar(x, y, spread, marker="o", label=label, color=COLOURS[stream])
