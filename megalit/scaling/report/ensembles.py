"""Loss of ensembles against their number of members, with the asymptotes of their laws."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from megalit.errors import UserError
from megalit.scaling.fitting import PowerLawFit, fit_power_law
from megalit.scaling.report.drawing import (
    GREY,
    LOSS,
    End,
    Missing,
    Picture,
    label_ends,
    panels,
    shade_of,
    to_png,
)
from megalit.scaling.report.published import Beside
from megalit.scaling.report.reading import Ensemble
from megalit.scaling.report.setting import NOT_ALIKE, Setting, are_alike
from megalit.scaling.report.study import Study

_AVERAGES = {"probabilities": ("o", "-"), "logits": ("s", "--")}
_TITLE = "Loss against ensemble members"


@dataclass(frozen=True)
class _Curve:
    """One average of one ensemble."""

    label: str
    average: str
    colour: Any
    losses: tuple[float, ...]
    is_alike: bool


def against_members(study: Study, suite: str) -> Picture | Missing:
    """Loss of the average of K = 1 … n members."""
    found = [(s, e) for s, e in study.ensembles if any(suites.get(suite) for suites in e.losses.values())]
    if not found:
        return Missing(_TITLE, "train one, `megalit ensemble --members 5 --config …`, which writes ensemble.json")
    families = sorted({setting.family for setting, _ in found})
    beside = Beside(study.published_over("members", suite))
    canvas, axes = panels([*map(str, families), *beside.titles])
    beside.draw(canvas, axes[len(families) :], "ensemble members (K)")
    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    for panel, family in zip(axes, families, strict=False):
        curves = _curves([(setting, ensemble) for setting, ensemble in found if setting.family == family], suite)
        members = max(len(curve.losses) for curve in curves)
        infinity = members * 1.35
        ends = []
        for curve in curves:
            fit = _fit(curve.losses)
            ends.append(_draw(panel, curve, fit, members * 1.15, infinity))
            said = [fit] if isinstance(fit, str) else fit.remarks
            if not isinstance(fit, str) and not curve.is_alike:
                said = [*said, NOT_ALIKE]
            remarks += [f"{curve.label}: {remark}" for remark in said]
            losses = ", ".join(f"{loss:.3f}" for loss in curve.losses)
            rows.append((str(family), curve.label, curve.average, losses, *_asymptote(fit)))
        panel.axvline(members * 1.2, color=GREY, linewidth=0.8, linestyle=":")
        panel.set_xlim(0.8, infinity * 1.04)
        panel.set_xticks([*range(1, members + 1), infinity], [*map(str, range(1, members + 1)), "∞"])
        panel.set(xlabel="ensemble members (K)", ylabel=LOSS)
        label_ends(canvas, panel, ends)
    for theirs in beside.curves:
        losses = ", ".join(f"{loss:.3f}" for _, loss in theirs.points)
        limit = "–" if theirs.asymptote is None else f"{theirs.asymptote:g}"
        rows.append(("published", theirs.name, "logits", losses, limit, "–"))
    return Picture(
        "loss_vs_members",
        suite,
        _TITLE,
        "Loss of the average of the first K members: of their probabilities (circles, solid) or of their logits "
        "(squares, dashed). The lines are power laws; at ∞ stand their asymptotes with 95% intervals." + beside.caption,
        to_png(canvas),
        ("model and data", "ensemble", "average of", "losses for K = 1 … n", "asymptote", "interval"),
        tuple(rows),
        tuple(remarks),
    )


def _curves(found: list[tuple[Setting, Ensemble]], suite: str) -> list[_Curve]:
    generations = sorted({setting.generations for setting, _ in found if setting.generations})
    return [
        _Curve(
            _label(setting, ensemble, average, found),
            average,
            shade_of(setting, generations),
            suites[suite],
            are_alike([(member.folder, member.record) for member in ensemble.members]),
        )
        for setting, ensemble in found
        for average, suites in ensemble.losses.items()
        if suites.get(suite)
    ]


def _draw(axes: Axes, curve: _Curve, fit: PowerLawFit | str, last: float, infinity: float) -> End:
    """Draw the points, and the law to its asymptote where there is one; give the place of the label."""
    marker, style = _AVERAGES.get(curve.average, ("D", ":"))
    x = np.arange(1, len(curve.losses) + 1)
    axes.plot(x, curve.losses, marker, color=curve.colour, markersize=4.5)
    if isinstance(fit, str):
        axes.plot(x, curve.losses, style, color=curve.colour, linewidth=1.2, alpha=0.6)
        return float(x[-1]), curve.losses[-1], curve.label, curve.colour
    smooth = np.geomspace(1, last, 80)
    axes.plot(smooth, fit.law.predict(smooth), style, color=curve.colour, linewidth=1.4)
    if fit.asymptote_interval is not None:
        axes.plot([infinity] * 2, fit.asymptote_interval, "_-", color=curve.colour, linewidth=1.4, markersize=8)
    axes.plot([infinity], [fit.asymptote], marker, color=curve.colour, markersize=5, markerfacecolor="white")
    return infinity, fit.asymptote, f"{curve.label} → {fit.asymptote:.3f}", curve.colour


def _asymptote(fit: PowerLawFit | str) -> tuple[str, str]:
    """The asymptote and its interval for the table."""
    if isinstance(fit, str):
        return "–", "–"
    interval = fit.asymptote_interval
    return f"{fit.asymptote:.4f}", "–" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _fit(losses: tuple[float, ...]) -> PowerLawFit | str:
    """The law of an ensemble's losses, or in words why there is none."""
    try:
        return fit_power_law(list(range(1, len(losses) + 1)), list(losses))
    except UserError as error:
        return f"no asymptote ({error})"


def _label(setting: Setting, ensemble: Ensemble, average: str, here: list[tuple[Setting, Ensemble]]) -> str:
    """The stream, with whatever else it takes to tell this line from the others."""
    label = setting.name
    if sum(other.name == setting.name for other, _ in here) > 1:
        label = f"{label} ({ensemble.name})"
    return f"{label}, {average}" if len(ensemble.losses) > 1 else label
