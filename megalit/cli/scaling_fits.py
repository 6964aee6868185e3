"""Fits by the name of a law, ready to be printed and written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megalit.errors import UserError
from megalit.scaling.chinchilla import HUBER, LawFit, fit_chinchilla, fit_data_constrained
from megalit.scaling.fitting import Engine, Interval, PowerLawFit, fit_power_law
from megalit.scaling.joint import joint_asymptote
from megalit.scaling.laws import Chinchilla

Row = dict[str, float]


@dataclass(frozen=True)
class Fitted:
    """One fit in words.

    Attributes:
        title: which points it is of.
        fit: the fit itself.
        lines: predictions and comparisons.
    """

    title: str
    fit: PowerLawFit | LawFit
    lines: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def law(self) -> str:
        return f"L = {self.fit.law}"

    @property
    def coefficients(self) -> dict[str, float]:
        return dict(vars(self.fit.law)) if isinstance(self.fit, PowerLawFit) else self.fit.coefficients

    @property
    def intervals(self) -> dict[str, Interval]:
        return self.fit.intervals

    @property
    def asymptote(self) -> str:
        return "C" if isinstance(self.fit, PowerLawFit) else "E"

    @property
    def remarks(self) -> tuple[str, ...]:
        return self.fit.remarks

    def to_json(self) -> dict[str, Any]:
        return {"title": self.title, **self.fit.to_json(), **self.extra}


def fit_points(
    rows: Sequence[Row],
    *,
    law: str,
    axes: Sequence[str],
    loss: str,
    by: str | None = None,
    below: float | None = None,
    predict: Sequence[float] = (),
    bootstrap: int = 200,
    seed: int = 0,
    huber: float | None = None,
    engine: Engine = "multi_start",
    deviation: float | None = None,
) -> list[Fitted]:
    """Fit a law by its name to rows of numbers; see ``megalit scaling fit --help`` for the settings.

    Raises:
        UserError: axes that the law does not have, or points that cannot be fitted.
    """
    inside = [row for row in rows if below is None or row[axes[0]] <= below]
    outside = [row for row in rows if below is not None and row[axes[0]] > below]
    if below is not None and not inside:
        raise UserError(f"below: no point has {axes[0]} of at most {below:g}: choose more")
    draws = {"bootstrap": bootstrap, "seed": seed}
    if law == "power":
        if len(axes) != 1:
            raise UserError(f"axes: a power law has one axis, and {len(axes)} are given: choose one, or --law joint")
        fits = []
        for group in sorted({row[by] for row in rows}) if by else [None]:
            mine = [row for row in inside if by is None or row[by] == group]
            others = [row for row in outside if by is None or row[by] == group]
            where = f" at {by} = {group:g}" if group is not None else ""
            try:
                fit = fit_power_law(
                    _column(mine, axes[0]),
                    _column(mine, loss),
                    huber=huber,
                    engine=engine,
                    deviation=deviation,
                    **draws,
                )
            except UserError as error:
                raise UserError(f"law over {axes[0]}{where}: {error}") from error
            fits.append(
                _power(f"{loss} over {axes[0]}{where}, {len(mine)} points", fit, axes[0], loss, others, predict)
            )
        return fits
    if by is not None or predict:
        raise UserError(f"by and predict are for power laws, not for --law {law}: leave them out")
    if law == "joint":
        joint = joint_asymptote(inside, _column(inside, loss), axes, huber=huber, **draws)
        titles = [
            (f"{loss} over {axis}" if axis == axes[0] else f"asymptotes over {axis}")
            + (f" at {place}" if place else "")
            for place, axis, _ in joint.walk()
        ]
        return [Fitted(title, fit) for title, (_, _, fit) in zip(titles, joint.walk(), strict=True)]
    losses, size = _column(inside, loss), HUBER if huber is None else huber
    if law == "chinchilla":
        _need(law, axes, 2)
        N, D = (_column(inside, axis) for axis in axes)
        fit = fit_chinchilla(N, D, losses, huber=size, engine=engine, **draws)
        return [
            Fitted(
                f"{loss} over {axes[0]} and {axes[1]}, {len(inside)} points", fit, *_held_out(fit, axes, loss, outside)
            )
        ]
    _need(law, axes, 3)
    once = [row for row in inside if row[axes[1]] <= row[axes[2]]]
    try:
        base = fit_chinchilla(*(_column(once, axis) for axis in axes[:2]), _column(once, loss), huber=size, **draws)
    except UserError as error:
        raise UserError(
            f"law of the {len(once)} points that repeat nothing ({axes[1]} <= {axes[2]}): {error}"
        ) from error
    assert isinstance(base.law, Chinchilla)
    N, D, U = (_column(inside, axis) for axis in axes)
    repeated = fit_data_constrained(N, D, U, losses, base=base.law, huber=size, **draws)
    return [
        Fitted(f"{loss} of what is read once, {len(once)} points", base),
        Fitted(f"{loss} with repetition, {len(inside)} points", repeated, *_held_out(repeated, axes, loss, outside)),
    ]


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows]


def _need(law: str, axes: Sequence[str], count: int) -> None:
    if len(axes) != count:
        raise UserError(f"axes: --law {law} has {count} axes, and {len(axes)} are given: name {count}")


def _power(
    title: str, fit: PowerLawFit, axis: str, loss: str, outside: Sequence[Row], predict: Sequence[float]
) -> Fitted:
    lines, extra = [], {}
    for x in predict:
        if x <= 0:
            raise UserError(f"predict: {axis} = {x:g} is not positive: choose another value")
        interval = fit.prediction_interval(x)
        between = f" (95%: {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        words = "; ".join(["", *fit.remarks_at(x)])
        lines.append(f"at {axis} = {x:g}: {fit.law.predict(x):.4f}{between}{words}")
        extra.setdefault("predictions", []).append({"x": x, "loss": fit.law.predict(x), "interval_95": interval})
    compared, held = _compare([({axis: row[axis]}, row[loss], fit.law.predict(row[axis])) for row in outside])
    return Fitted(title, fit, [*lines, *compared], {**extra, **held})


def _held_out(fit: LawFit, axes: Sequence[str], loss: str, rows: Sequence[Row]) -> tuple[list[str], dict[str, Any]]:
    predict: Any = fit.law.predict
    places = [{axis: row[axis] for axis in axes} for row in rows]
    return _compare([(place, row[loss], predict(*place.values())) for place, row in zip(places, rows, strict=True)])


def _compare(rows: Sequence[tuple[Row, float, float]]) -> tuple[list[str], dict[str, Any]]:
    """Points that were not fitted: loss, prediction and what the prediction is off by."""
    lines, values = [], []
    for place, loss, predicted in rows:
        at = ", ".join(f"{axis} = {value:g}" for axis, value in place.items())
        lines.append(f"held out at {at}: loss {loss:.4f}, predicted {predicted:.4f} ({predicted / loss - 1:+.2%})")
        values.append({**place, "loss": loss, "predicted": predicted})
    return lines, {"held_out": values} if values else {}
