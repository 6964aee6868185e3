"""Fits by the name of a law, ready to be printed and written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from megalit.errors import UserError
from megalit.scaling.chinchilla import HUBER, LawFit, fit_chinchilla, fit_data_constrained
from megalit.scaling.fitting import Engine, PowerLawFit, fit_power_law
from megalit.scaling.joint import joint_asymptote
from megalit.scaling.laws import Chinchilla
from megalit.scaling.points import Interval

Row = dict[str, float]

# Tokens over unique tokens up to which a run repeats nothing: its last batch is filled, so an epoch is a bit more.
_ONCE = 1.02


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


@dataclass(frozen=True)
class How:
    """What all fits share; see ``megalit scaling fit --help``."""

    bootstrap: int = 200
    seed: int = 0
    huber: float | None = None
    engine: Engine = "multi_start"
    deviation: float | None = None

    @property
    def of_logarithms(self) -> float:
        return HUBER if self.huber is None else self.huber


@dataclass(frozen=True)
class Table:
    """The points to fit, and those held out because their first axis is above a bound."""

    rows: list[Row]
    held_out: list[Row]
    axes: Sequence[str]
    loss: str

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]

    @property
    def coordinates(self) -> list[list[float]]:
        return [self.column(axis) for axis in self.axes]

    @property
    def losses(self) -> list[float]:
        return self.column(self.loss)

    def where(self, keep: Callable[[Row], bool]) -> "Table":
        kept = [[row for row in rows if keep(row)] for rows in (self.rows, self.held_out)]
        return Table(kept[0], kept[1], self.axes, self.loss)

    def check_axes(self, law: str, count: int) -> None:
        if len(self.axes) != count:
            raise UserError(f"axes: --law {law} needs {count} of them, and {len(self.axes)} are given: name {count}")


def split(rows: Sequence[Row], axes: Sequence[str], loss: str, below: float | None) -> Table:
    """The points, with those above ``below`` held out.

    Raises:
        UserError: none is left to fit.
    """
    inside = [row for row in rows if below is None or row[axes[0]] <= below]
    if not inside:
        raise UserError(f"below: no point has {axes[0]} of at most {below:g}: choose more")
    return Table(inside, [row for row in rows if below is not None and row[axes[0]] > below], axes, loss)


def fit_power(table: Table, how: How, by: str | None = None, predict: Sequence[float] = ()) -> list[Fitted]:
    """A power law over one axis, one for each value of the key ``by``.

    Raises:
        UserError: another number of axes, or points that cannot be fitted.
    """
    table.check_axes("power", 1)
    if by is None:
        return [_power(table, how, predict, "")]
    values = sorted(set(table.column(by)))
    return [_power(table.where(_has(by, value)), how, predict, f" at {by} = {value:g}") for value in values]


def _has(key: str, value: float) -> Callable[[Row], bool]:
    return lambda row: row[key] == value


def _power(table: Table, how: How, predict: Sequence[float], where: str) -> Fitted:
    (axis,), (x,) = table.axes, table.coordinates
    try:
        fit = fit_power_law(
            x,
            table.losses,
            bootstrap=how.bootstrap,
            seed=how.seed,
            huber=how.huber,
            engine=how.engine,
            deviation=how.deviation,
        )
    except UserError as error:
        raise UserError(f"law over {axis}{where}: {error}") from error
    lines: list[str] = []
    predictions: list[dict[str, Any]] = []
    for place in predict:
        if place <= 0:
            raise UserError(f"predict: {axis} = {place:g} is not positive: choose another value")
        interval = fit.prediction_interval(place)
        between = f" (95%: {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        words = "; ".join(["", *fit.remarks_at(place)])
        lines.append(f"at {axis} = {place:g}: {fit.law.predict(place):.4f}{between}{words}")
        predictions.append({"x": place, "loss": fit.law.predict(place), "interval_95": interval})
    compared, held = _held_out(table, lambda row: fit.law.predict(row[axis]))
    extra = {**({"predictions": predictions} if predictions else {}), **held}
    return Fitted(f"{table.loss} over {axis}{where}, {len(x)} points", fit, [*lines, *compared], extra)


def fit_joint(table: Table, how: How) -> list[Fitted]:
    """Asymptotes over the first axis wherever the others are equal, then over the next."""
    joint = joint_asymptote(
        table.rows, table.losses, table.axes, bootstrap=how.bootstrap, seed=how.seed, huber=how.huber
    )
    fits = []
    for place, axis, fit in joint.walk():
        what = f"{table.loss} over {axis}" if axis == table.axes[0] else f"asymptotes over {axis}"
        fits.append(Fitted(f"{what} at {place}" if place else what, fit))
    return fits


def fit_parameters_and_tokens(table: Table, how: How) -> list[Fitted]:
    """Chinchilla's third approach."""
    table.check_axes("chinchilla", 2)
    fit = _chinchilla(table, how)
    predict: Any = fit.law.predict
    compared = _held_out(table, lambda row: predict(*(row[axis] for axis in table.axes)))
    return [Fitted(f"{table.loss} over {' and '.join(table.axes)}, {len(table.rows)} points", fit, *compared)]


def fit_repeated_epochs(table: Table, how: How) -> list[Fitted]:
    """Chinchilla's law of the points that repeat nothing, and what repetition costs of all."""
    table.check_axes("data_constrained", 3)
    _, tokens, unique = table.axes
    once = table.where(lambda row: row[tokens] <= _ONCE * row[unique])
    try:
        base = _chinchilla(once, how)
    except UserError as error:
        count = len(once.rows)
        raise UserError(
            f"law of the {count} points that repeat nothing ({tokens} <= {_ONCE} {unique}): {error}"
        ) from error
    assert isinstance(base.law, Chinchilla)
    N, D, U = table.coordinates
    fit = fit_data_constrained(
        N, D, U, table.losses, base=base.law, bootstrap=how.bootstrap, seed=how.seed, huber=how.of_logarithms
    )
    predict: Any = fit.law.predict
    compared = _held_out(table, lambda row: predict(*(row[axis] for axis in table.axes)))
    return [
        Fitted(f"{table.loss} where nothing is repeated, {len(once.rows)} points", base),
        Fitted(f"{table.loss} with repetition, {len(table.rows)} points", fit, *compared),
    ]


def _chinchilla(table: Table, how: How) -> LawFit:
    N, D = table.coordinates[:2]
    return fit_chinchilla(
        N, D, table.losses, bootstrap=how.bootstrap, seed=how.seed, huber=how.of_logarithms, engine=how.engine
    )


def _held_out(table: Table, predict: Callable[[Row], float]) -> tuple[list[str], dict[str, Any]]:
    """Points that were not fitted: loss, prediction and what the prediction is off by."""
    lines, values = [], []
    for row in table.held_out:
        place = {axis: row[axis] for axis in table.axes}
        loss, predicted = row[table.loss], predict(row)
        at = ", ".join(f"{axis} = {value:g}" for axis, value in place.items())
        lines.append(f"held out at {at}: loss {loss:.4f}, predicted {predicted:.4f} ({predicted / loss - 1:+.2%})")
        values.append({**place, "loss": loss, "predicted": predicted})
    return lines, {"held_out": values} if values else {}


def show(fitted: Fitted) -> None:
    """Print a fit: its law, coefficients with intervals, predictions and remarks."""
    print(f"{fitted.title}\n  {fitted.law}")
    for name, value in fitted.coefficients.items():
        interval = fitted.intervals.get(name)
        between = f"   95%: {interval[0]:.5g} to {interval[1]:.5g}" if interval else ""
        meaning = "  (asymptote, nats per token)" if name == fitted.asymptote else ""
        print(f"  {name:<6} {value:<12.6g}{between}{meaning}")
    for line in fitted.lines:
        print(f"  {line}")
    for remark in fitted.remarks:
        print(f"  ! {remark}")
