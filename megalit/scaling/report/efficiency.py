"""Data efficiency: how much real data a result is worth, by the law of the baseline over nested real subsets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from megalit.errors import UserError
from megalit.scaling.data_efficiency import DataEfficiency
from megalit.scaling.data_efficiency import data_efficiency as efficiency_of
from megalit.scaling.fitting import PowerLawFit, fit_power_law
from megalit.scaling.report.drawing import (
    GREY,
    LOSS,
    Missing,
    Picture,
    canvas_of,
    colour_of,
    head,
    log_axis,
    marker_of,
    plain,
    to_png,
)
from megalit.scaling.report.setting import REAL_ONLY, Family, Loss, Setting, short
from megalit.scaling.report.study import Study

_TITLE = "Data efficiency"
# In nats per token, from the smallest subset to all documents; below it the law is flat and has no inverse.
_LEAST_FALL = 1e-6


@dataclass(frozen=True)
class _Baseline:
    """Real documents alone at several amounts of data, and their law."""

    points: list[tuple[Setting, Loss]]
    fit: PowerLawFit


@dataclass(frozen=True)
class _Result:
    """A result, and what it is worth in data."""

    label: str
    stream: str
    loss: float
    worth: DataEfficiency


def data_efficiency(study: Study, suite: str) -> Picture | Missing:
    """The baseline's law L(D), and D_eff(L) / D_eff(L of the baseline) of everything else (arXiv 2603.18534)."""
    remedy = (
        "train real documents alone on nested subsets, `megalit fit --config configs/stream/real.yaml "
        "--data.real_fraction 0.25`, 0.5 and 1 at least, and a synthetic stream on all of them"
    )
    shown: list[tuple[Family, _Baseline, list[_Result]]] = []
    remarks: list[str] = []
    for family in study.families:
        try:
            baseline = _baseline(study, family, suite)
            results = _results(study, family, suite, baseline) if baseline else []
        except UserError as error:
            remedy = f"{error}; {remedy}"
            if family in study.compared:
                remarks.append(f"Not shown: {family}, {error}.")
            continue
        if baseline and results:
            shown.append((family, baseline, results))
    if not shown:
        return Missing(_TITLE, remedy)
    canvas, axes = canvas_of([max(3.4, 1.2 + 0.24 * len(results)) for _, _, results in shown], columns=2)
    rows: list[tuple[str, ...]] = []
    for (left, right), (family, baseline, results) in zip(axes, shown, strict=True):
        head(left, str(family))
        _draw_law(left, baseline)
        _draw_results(right, results)
        law = baseline.fit.law
        remarks.append(f"Law of the baseline ({family}): L(D) = {law}, x in tokens.")
        remarks += baseline.fit.remarks
        most = max(x for x in baseline.fit.x)
        if any(result.worth.tokens > most for result in results):
            remarks.append(
                f"Extrapolation: the baseline was trained on up to {short(most)} tokens; what is worth more rests on "
                "the law alone."
            )
        rows += [
            (
                str(family),
                result.label,
                f"{result.loss:.4f}",
                _factor(result.worth.factor),
                "–" if result.worth.interval is None else " to ".join(map(_factor, result.worth.interval)),
                short(result.worth.tokens) if math.isfinite(result.worth.tokens) else "∞",
            )
            for result in results
        ]
    return Picture(
        "data_efficiency",
        suite,
        _TITLE,
        "Left: real documents alone on nested subsets, and their law with its 95% interval (bootstrap). Right: the "
        "real data that the baseline would need for each result, as a multiple of what its own loss is worth. The "
        "intervals are those of the baseline's law; the noise of a result's own seeds comes on top.",
        to_png(canvas),
        ("model and data", "result", LOSS, "times the data", "interval (95%)", "real tokens it is worth"),
        tuple(rows),
        tuple(dict.fromkeys(remarks)),
    )


def _baseline(study: Study, family: Family, suite: str) -> _Baseline | None:
    """The best setting on real documents alone for each amount of them, with this family's model and context."""
    points = []
    for other in study.families:
        if other.kin == family.kin:
            points += [(setting, loss) for setting, loss in study.best(other, suite) if setting.stream == REAL_ONLY]
    if len(points) < 3:
        return None
    # Every seed is a point: their scatter is what the intervals rest on.
    pairs = [(setting.family.real_tokens, value) for setting, loss in points for value in loss.values]
    fit = fit_power_law([float(x) for x, _ in pairs], [loss for _, loss in pairs])
    if fit.law.predict(min(fit.x)) - fit.law.predict(max(fit.x)) < _LEAST_FALL:
        raise UserError(
            "the losses on real documents alone do not fall with more of them, so no worth follows: tune them"
        )
    return _Baseline(points, fit)


def _results(study: Study, family: Family, suite: str, baseline: _Baseline) -> list[_Result]:
    """Streams and ensembles of a family; the baseline's own loss there is the reference."""
    reference = next((loss.mean for setting, loss in baseline.points if setting.family == family), None)
    if reference is None:
        return []
    losses = [(s.name, s.stream, loss.mean) for s, loss in study.best(family, suite) if s.stream != REAL_ONLY]
    for setting, ensemble in study.ensembles:
        found = [suites[suite] for suites in ensemble.losses.values() if suites.get(suite)]
        if setting.family == family and found:
            members, loss = max(len(values) for values in found), min(values[-1] for values in found)
            losses.append((f"{setting.name}, K = {members}", setting.stream, loss))
    return [
        _Result(label, stream, loss, efficiency_of(loss, baseline.fit, reference_loss=reference))
        for label, stream, loss in losses
    ]


def _draw_law(axes: Axes, baseline: _Baseline) -> None:
    x = [float(setting.family.real_tokens) for setting, _ in baseline.points]
    losses = [loss.mean for _, loss in baseline.points]
    deviations = [loss.deviation or 0.0 for _, loss in baseline.points]
    colour = colour_of("real only")
    axes.errorbar(x, losses, deviations, fmt="o", color=colour, markersize=4.5, capsize=3)
    smooth = np.geomspace(min(x) / 1.2, max(x) * 3, 100)
    axes.plot(smooth, baseline.fit.law.predict(smooth), color=colour, linewidth=1.4)
    bands = [band for value in smooth if (band := baseline.fit.prediction_interval(float(value)))]
    if bands:
        low, high = zip(*bands, strict=True)
        axes.fill_between(smooth, low, high, color=colour, alpha=0.12, linewidth=0)
    log_axis(axes.xaxis, x, short)
    axes.set(xlabel="unique real tokens (D)", ylabel=LOSS)


def _draw_results(axes: Axes, results: Sequence[_Result]) -> None:
    """One row for each result; what has no finite end is an arrow out of the picture."""
    known = [result.worth.factor for result in results if math.isfinite(result.worth.factor)]
    ends = [end for r in results for end in r.worth.interval or () if math.isfinite(end)]
    # A wide interval must not press all points to one side.
    limit = 1.05 * min(max([*ends, *known, 2.0]), 2.5 * max(known, default=2.0))
    first = min([1.0, *known, *ends]) * 0.9
    # Narrow axes hold about six ticks.
    steps = (1, 2, 5) if limit / first < 25 else (1, 3) if limit / first < 250 else (1,)
    ticks = [step * 10.0**power for power in range(-3, 7) for step in steps]
    log_axis(axes.xaxis, [tick for tick in ticks if first <= tick <= limit], "{:g}".format)
    axes.set_xlim(first, limit)
    for row, result in enumerate(results):
        colour = colour_of(result.stream)
        factor = result.worth.factor
        if math.isfinite(factor):
            axes.plot([factor], [row], marker_of(result.stream), color=colour, markersize=5.5)
        if result.worth.interval is not None:
            low, high = result.worth.interval
            axes.plot([low, min(high, limit)], [row, row], color=colour, linewidth=1.6)
        if not math.isfinite(factor) or (result.worth.interval is not None and result.worth.interval[1] > limit):
            axes.plot([limit], [row], ">", color=colour, markersize=6, clip_on=False)
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(results)), [f"{plain(r.label)}  {_factor(r.worth.factor)}" for r in results])
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("data efficiency (times the real data)")


def _factor(factor: float) -> str:
    return f"{factor:.2f}×" if math.isfinite(factor) else "∞"
