"""Loss of ensembles against their number of members, with the asymptotes of their laws."""

from typing import Any

import numpy as np

from megalit.errors import UserError
from megalit.scaling.fitting import fit_power_law
from megalit.scaling.report.drawing import (
    GREY,
    LOSS,
    Missing,
    Picture,
    label_ends,
    panels,
    shade_of,
    to_png,
)
from megalit.scaling.report.reading import Ensemble
from megalit.scaling.report.study import Setting, Study

_AVERAGES = {"probabilities": ("o", "-"), "logits": ("s", "--")}
_TITLE = "Loss against ensemble members"


def against_members(study: Study, suite: str) -> Picture | Missing:
    """Loss of the average of K = 1 … n members."""
    found = [(s, e) for s, e in study.ensembles if any(suite in suites for suites in e.losses.values())]
    if not found:
        return Missing(_TITLE, "train one, `megalit ensemble --members 5 --config …`, which writes ensemble.json")
    families = sorted({setting.family for setting, _ in found})
    canvas, axes = panels([str(family) for family in families])
    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    for panel, family in zip(axes, families, strict=True):
        here = [(setting, ensemble) for setting, ensemble in found if setting.family == family]
        members = max(len(suites[suite]) for _, e in here for suites in e.losses.values() if suite in suites)
        infinity = members * 1.35
        generations = sorted({setting.generations for setting, _ in here if setting.generations})
        ends = []
        for setting, ensemble in here:
            colour = shade_of(setting, generations)
            for average, suites in ensemble.losses.items():
                if not suites.get(suite):
                    continue
                label = _label(setting, ensemble, average, here)
                losses = suites[suite]
                x = np.arange(1, len(losses) + 1)
                marker, style = _AVERAGES.get(average, ("D", ":"))
                panel.plot(x, losses, marker, color=colour, markersize=4.5)
                fit = _fit(losses)
                row = [str(family), label, average, ", ".join(f"{loss:.3f}" for loss in losses)]
                if isinstance(fit, str):
                    panel.plot(x, losses, style, color=colour, linewidth=1.2, alpha=0.6)
                    ends.append((float(x[-1]), losses[-1], label, colour))
                    rows.append((*row, "–", "–"))
                    remarks.append(f"{label}: {fit}")
                    continue
                smooth = np.geomspace(1, members * 1.15, 80)
                panel.plot(smooth, fit.law.predict(smooth), style, color=colour, linewidth=1.4)
                low, high = fit.asymptote_interval
                panel.errorbar(
                    [infinity], [fit.asymptote], [[fit.asymptote - low], [high - fit.asymptote]],
                    fmt=marker, color=colour, markersize=5, capsize=3, markerfacecolor="white",
                )  # fmt: skip
                ends.append((infinity, fit.asymptote, f"{label} → {fit.asymptote:.3f}", colour))
                rows.append((*row, f"{fit.asymptote:.4f}", f"{low:.4f} to {high:.4f}"))
                remarks += [f"{label}: {remark}" for remark in fit.remarks]
        panel.axvline(members * 1.2, color=GREY, linewidth=0.8, linestyle=":")
        panel.set_xlim(0.8, infinity * 1.04)
        panel.set_xticks([*range(1, members + 1), infinity], [*map(str, range(1, members + 1)), "∞"])
        panel.set(xlabel="ensemble members (K)", ylabel=LOSS)
        label_ends(canvas, panel, ends)
    return Picture(
        "loss_vs_members",
        suite,
        _TITLE,
        "Loss of the average of the first K members: of their probabilities (circles, solid) or of their logits "
        "(squares, dashed). The lines are power laws; at ∞ stand their asymptotes with intervals.",
        to_png(canvas),
        ("model and data", "ensemble", "average of", "losses for K = 1 … n", "asymptote", "interval"),
        tuple(rows),
        tuple(remarks),
    )


def _fit(losses: tuple[float, ...]) -> Any:
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
