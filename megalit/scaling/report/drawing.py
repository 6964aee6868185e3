"""The look of the report's pictures: colours, panels, lines that carry their own labels."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from megalit.scaling.report.setting import Setting

# Okabe and Ito's colours, which stay apart for colour-blind readers and in grey.
_COLOURS = {
    "real only": "#444444",
    "simple": "#E69F00",
    "stitched": "#0072B2",
    "latent thoughts": "#009E73",
    "self-distillation": "#CC79A7",
}
_OTHER = "#D55E00"
_MARKERS = {"real first": "^", "real absent": "v", "order drawn": "D"}
GREY = "#666666"
LOSS = "validation loss (nats per token)"
_WIDTH, _HEIGHT = 7.2, 4.0
_DPI = 200
_LONGEST_LABEL = 40


# Where a line ends, what it is called, and its colour.
End = tuple[float, float, str, Any]


@dataclass(frozen=True)
class Picture:
    """One figure of the report.

    Attributes:
        name: of its file, without ending and suite.
        suite: of validation documents.
        title, caption: what it shows.
        png: the picture.
        header, rows: the numbers behind it.
        remarks: what a reader must know before believing it.
    """

    name: str
    suite: str
    title: str
    caption: str
    png: bytes
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Name of the picture's file; a suite's name may hold anything."""
        return re.sub(r"[^\w.-]+", "-", f"{self.name}_{self.suite}") + ".png"

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """The header as the page's tables want it: texts with (no) explanations."""
        return tuple((name, "") for name in self.header)


@dataclass(frozen=True)
class Missing:
    """A figure for which there are no data, and the run that would give them."""

    title: str
    remedy: str


@dataclass
class Line:
    """What is drawn in one colour, with its label at its right end."""

    label: str
    colour: str
    x: list[float]
    y: list[float]
    deviation: list[float | None] = field(default_factory=list)
    marker: str = "o"
    style: str = "-"


def colour_of(stream: str) -> str:
    """A stream has one colour in all figures."""
    return next((colour for name, colour in _COLOURS.items() if stream.startswith(name)), _OTHER)


def ink(colour: Any) -> Any:
    """A colour dark enough for small type on white."""
    return tuple(0.72 * part for part in to_rgb(colour))


def marker_of(stream: str) -> str:
    return next((marker for name, marker in _MARKERS.items() if name in stream), "o")


def shade_of(setting: Setting, all_generations: Sequence[int]) -> Any:
    """The stream's colour, paler for fewer generations."""
    rank = all_generations.index(setting.generations) + 1 if setting.generations in all_generations else 1
    strength = 0.35 + 0.65 * rank / len(all_generations) if len(all_generations) > 1 and setting.generations else 1.0
    return tuple(1 - strength * (1 - part) for part in to_rgb(colour_of(setting.stream)))


def canvas_of(heights: Sequence[float], columns: int = 1) -> tuple[Canvas, list[list[Axes]]]:
    """A picture of rows of axes, with their heights in inches."""
    canvas = Canvas(figsize=(_WIDTH, sum(heights)), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(canvas)
    grid = canvas.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
        axes.tick_params(labelsize=8.5)
    return canvas, [list(row) for row in grid]


def panels(titles: Sequence[str]) -> tuple[Canvas, list[Axes]]:
    """Axes one below the other."""
    canvas, grid = canvas_of([_HEIGHT] * len(titles))
    for (axes,), title in zip(grid, titles, strict=True):
        head(axes, title)
    return canvas, [axes for (axes,) in grid]


def head(axes: Axes, title: str) -> None:
    """A quiet title at the left."""
    axes.set_title(title, fontsize=9, loc="left", color=GREY)


def draw_line(axes: Axes, line: Line) -> None:
    """A line with its points, and bars of one standard deviation where there are several seeds."""
    axes.plot(line.x, line.y, line.style, marker=line.marker, color=line.colour, linewidth=1.6, markersize=4.5)
    bars = [(x, y, d) for x, y, d in zip(line.x, line.y, line.deviation, strict=False) if d]
    if bars:
        x, y, deviations = zip(*bars, strict=True)
        axes.errorbar(x, y, deviations, fmt="none", ecolor=line.colour, elinewidth=1.2, capsize=3)


def log_axis(axis: XAxis, values: Sequence[float], write: Callable[[float], str]) -> None:
    """A logarithmic axis with a tick at each value, as far as they are not too near to each other."""
    ordered = sorted(set(values))
    axis.axes.set_xscale("log")
    kept: list[float] = []
    gap = (ordered[-1] / ordered[0]) ** (1 / 14)
    for value in ordered:
        if not kept or value / kept[-1] >= max(gap, 1.1):
            kept.append(value)
    axis.set_major_locator(FixedLocator(kept))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def label_ends(canvas: Canvas, axes: Axes, ends: Sequence[End]) -> None:
    """Write each line's label right of the axes, at the height of its end, moved apart where they would overlap."""
    if not ends:
        return
    canvas.draw_without_rendering()
    box = axes.get_window_extent()
    gap = 8.5 * 1.35 / 72 * canvas.dpi / box.height
    placed = sorted(
        (
            (axes.transAxes.inverted().transform(axes.transData.transform((x, y))), label, colour)
            for x, y, label, colour in ends
        ),
        key=lambda end: end[0][1],
    )
    heights = _apart([float(point[1]) for point, _, _ in placed], gap)
    for (point, label, colour), height in zip(placed, heights, strict=True):
        axes.annotate(
            plain(label),
            xy=(point[0], point[1]),
            xytext=(1.03, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=8.5,
            color=ink(colour),
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics, short enough to stand beside a picture."""
    if len(text) > _LONGEST_LABEL:
        text = f"{text[: _LONGEST_LABEL // 2]}…{text[-_LONGEST_LABEL // 2 + 1 :]}"
    return text.replace("$", r"\$")


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved as little as it takes for neighbours to be a gap apart.

    Labels that touch become a block, which is centred on the mean of its members' heights.
    """
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _top(blocks[-2], gap) + gap > _bottom(blocks[-1], gap):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [_bottom(block, gap) + gap * number for block in blocks for number in range(len(block))]


def _bottom(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) + gap * (len(block) - 1) / 2


def to_png(canvas: Canvas) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
