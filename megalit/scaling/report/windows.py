"""What a model makes of its context: loss against the context's length, and against the position in the window."""

from collections.abc import Callable

import numpy as np

from megalit.scaling.report.drawing import (
    LOSS,
    Line,
    Missing,
    Picture,
    colour_of,
    draw_line,
    label_ends,
    log_axis,
    marker_of,
    panels,
    to_png,
)
from megalit.scaling.report.published import Beside
from megalit.scaling.report.reading import Curve, SuiteResult
from megalit.scaling.report.setting import Family, Setting
from megalit.scaling.report.study import Study

# Positions are joined into so many equal steps of the logarithm for drawing; single ones are all noise.
_STEPS = 24
_REMEDY = "measure finished runs, `megalit evaluate`, which writes evaluation.json beside the record"


def against_context_length(study: Study, suite: str) -> Picture | Missing:
    """Loss against tokens of context, as in arXiv 2603.18534's context-length figure."""
    return _curves(
        study,
        suite,
        name="loss_vs_context_length",
        title="Loss against context length",
        x_label="context length (tokens)",
        caption="The suite cut into windows of each length. A stream that teaches long context falls further to the "
        "right.",
        curve_of=lambda result: result.by_context_length,
        published="context length",
    )


def against_position(study: Study, suite: str) -> Picture | Missing:
    """Loss against the position in the window."""
    return _curves(
        study,
        suite,
        name="loss_by_position",
        title="Loss by position in the window",
        x_label="position in the window (tokens)",
        caption="Mean over the suite's windows; positions are joined in equal steps of the logarithm.",
        curve_of=lambda result: joined(result.by_position),
    )


def _curves(
    study: Study,
    suite: str,
    name: str,
    title: str,
    x_label: str,
    caption: str,
    curve_of: Callable[[SuiteResult], Curve],
    published: str | None = None,
) -> Picture | Missing:
    shown: list[tuple[Family, list[Line]]] = []
    rows: list[tuple[str, ...]] = []
    for family in study.compared:
        lines = []
        for setting, _ in study.best_by_stream(family, suite):
            curves = [
                curve
                for run in setting.runs
                if suite in run.evaluation.suites
                if (curve := curve_of(run.evaluation.suites[suite]))
            ]
            if not curves:
                continue
            line = _mean(setting, curves)
            lines.append(line)
            rows += [(str(family), setting.name, f"{x:,.0f}", f"{y:.4f}") for x, y in zip(line.x, line.y, strict=True)]
        if lines:
            shown.append((family, lines))
    if not shown:
        return Missing(title, _REMEDY)
    beside = Beside(study.published_over(published, suite) if published else ())
    canvas, axes = panels([*(str(family) for family, _ in shown), *beside.titles])
    beside.draw(canvas, axes[len(shown) :], x_label)
    rows += beside.rows
    for panel, (_, lines) in zip(axes, shown, strict=False):
        for line in lines:
            draw_line(panel, line)
        longest = max(x for line in lines for x in line.x)
        shortest = min(x for line in lines for x in line.x)
        powers = [float(2**k) for k in range(int(longest).bit_length()) if 2**k >= shortest]
        log_axis(panel.xaxis, powers or [longest], "{:,.0f}".format)
        panel.set(xlabel=x_label, ylabel=LOSS)
        label_ends(canvas, panel, [(line.x[-1], line.y[-1], line.label, line.colour) for line in lines])
    return Picture(
        name,
        suite,
        title,
        f"{caption} The best setting of each stream, mean over its seeds.{beside.caption}",
        to_png(canvas),
        ("model and data", "stream", x_label, LOSS),
        tuple(rows),
    )


def _mean(setting: Setting, curves: list[Curve]) -> Line:
    """Mean and deviation over seeds, where all of them were measured; the first seed's where that is nowhere."""
    shared = sorted(set.intersection(*({x for x, _ in curve} for curve in curves)))
    if not shared:
        curves = curves[:1]
        shared = sorted({x for x, _ in curves[0]})
    values = np.array([[dict(curve)[x] for x in shared] for curve in curves])
    deviation = values.std(axis=0, ddof=1).tolist() if len(curves) > 1 else []
    colour, marker = colour_of(setting.stream), marker_of(setting.stream)
    return Line(setting.name, colour, list(shared), values.mean(axis=0).tolist(), deviation, marker)


def joined(curve: Curve) -> Curve:
    """Many positions as few: means over equal steps of the logarithm."""
    if len(curve) <= _STEPS:
        return curve
    x, losses = np.array(curve).T
    # Zero has no place on a logarithmic axis.
    x = np.maximum(x, 1)
    steps = np.floor(_STEPS * np.log(x / x.min()) / np.log(x.max() / x.min())).clip(max=_STEPS - 1)
    return tuple(
        (float(np.exp(np.log(x[steps == step]).mean())), float(losses[steps == step].mean()))
        for step in np.unique(steps)
    )
