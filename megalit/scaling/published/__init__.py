"""Published points that runs of ours can be drawn beside, with where they are from and how they were read."""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

Reading = Literal["code", "text", "figure"]


@dataclass(frozen=True)
class PublishedCurve:
    """Losses that a paper published.

    Attributes:
        figure: what it belongs to: curves of one figure share an axis.
        name: of the curve, as ours are called where they mean the same.
        x_axis: what the points lie over; None where they are bars, whose ``labels`` say what each is.
        y_axis: what was measured, in nats per token where it is a loss.
        points: (x, y); the x of bars is their place.
        labels: of the points, where they are bars.
        asymptote: the published limit of the curve, or None.
        source: paper or code.
        read: from the authors' ``code`` or ``text``, or off their ``figure``.
        precision: how far a value may be off by the reading; 0 where it was printed.
    """

    figure: str
    name: str
    x_axis: str | None
    y_axis: str
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...]
    asymptote: float | None
    source: str
    read: Reading
    precision: float


def load_published() -> list[PublishedCurve]:
    """All published curves, in the order of the file."""
    curves = []
    for file in sorted(files(__package__).iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".json"):
            continue
        held = json.loads(file.read_text())
        for curve in held["curves"]:
            bars = curve.get("bars")
            points = list(enumerate(bars.values())) if bars else [tuple(point) for point in curve["points"]]
            curves.append(
                PublishedCurve(
                    figure=curve["figure"],
                    name=curve["name"],
                    x_axis=curve.get("x_axis"),
                    y_axis=curve.get("y_axis", "loss, iid"),
                    points=tuple((float(x), float(y)) for x, y in points),
                    labels=tuple(bars or ()),
                    asymptote=curve.get("asymptote"),
                    source=curve.get("source", held["source"]),
                    read=curve["read"],
                    precision=curve["precision"],
                )
            )
    return curves
