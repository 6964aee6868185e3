"""Published curves beside ours: a panel of their own, because their data, tokenizer and model are others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from megalit.scaling.published import PublishedCurve
from megalit.scaling.report.drawing import LOSS, End, colour_of, label_ends, log_axis

_STREAMS = {
    "real": "real only",
    "self_distillation": "self-distillation",
    "latent_thoughts": "latent thoughts",
}


@dataclass(frozen=True)
class Beside:
    """The published curves over one axis and suite; there may be none, and then nothing is drawn or said."""

    curves: tuple[PublishedCurve, ...]

    @property
    def titles(self) -> tuple[str, ...]:
        """Of the panel, if there is one: a picture may be shown without its caption."""
        papers = dict.fromkeys(paper for curve in self.curves for paper in re.findall(r"arXiv [\d.]+\d", curve.source))
        return (f"published, not ours: {', '.join(papers)}",) if self.curves else ()

    @property
    def caption(self) -> str:
        """Where the points are from, to stand behind the figure's own caption."""
        if not self.curves:
            return ""
        sources = "; ".join(dict.fromkeys(curve.source for curve in self.curves))
        off = max(curve.precision for curve in self.curves)
        read = f" They were read off its figures and may be off by {off:g} nats." if off else ""
        return (
            f" The last panel, with open markers, shows published values: {sources}.{read} Their model, data and "
            "tokenizer are others, so compare shapes and orders, not heights."
        )

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """(published, curve, x, loss) of each point, for the table of numbers."""
        return [
            ("published", _label(curve), f"{x:g}", f"{y:g} ± {curve.precision:g}" if curve.precision else f"{y:g}")
            for curve in self.curves
            for x, y in curve.points
        ]

    def draw(self, canvas: Canvas, panels: Sequence[Axes], x_label: str) -> None:
        """Draw into the panel, if there is one: over members with the published asymptotes, else logarithmic in x."""
        for axes in panels:
            ends: list[End] = []
            x_values = sorted({x for curve in self.curves for x, _ in curve.points})
            infinity = 1.35 * x_values[-1]
            limits = any(curve.asymptote is not None for curve in self.curves)
            for curve in self.curves:
                x, y = (list(values) for values in zip(*curve.points, strict=True))
                label, colour = _label(curve), colour_of(_label(curve))
                axes.plot(x, y, "o:", color=colour, markerfacecolor="white", markersize=5, linewidth=1.4)
                if curve.asymptote is not None:
                    axes.plot([infinity], [curve.asymptote], "o", color=colour, markerfacecolor="white", markersize=5)
                    ends.append((infinity, curve.asymptote, f"{label} → {curve.asymptote:g}", colour))
                else:
                    ends.append((x[-1], y[-1], label, colour))
            if limits:
                axes.set_xticks([*x_values, infinity], [*(f"{x:g}" for x in x_values), "∞"])
            else:
                log_axis(axes.xaxis, x_values, "{:,.0f}".format)
            axes.set(xlabel=x_label, ylabel=LOSS)
            label_ends(canvas, axes, ends)


def _label(curve: PublishedCurve) -> str:
    """The curve's name as ours are called."""
    stream, comma, rest = curve.name.partition(",")
    return _STREAMS.get(stream, stream) + comma + re.sub(r"(\d+) generations", r"G = \1", rest)
