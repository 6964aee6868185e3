"""The power law with an asymptote, fitted to a few points, with what is to be said against the result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from megalit.scaling.engines import Objective, Solution, multi_start, variable_projection
from megalit.scaling.laws import Array, PowerLaw
from megalit.scaling.points import Interval, checked_points, finite, interval_of

# Steeper than anything a loss does; at this exponent the law has reached its asymptote at the second point.
MAX_EXPONENT = 10.0
# An asymptote of no more nats is 0, its bound.
AT_BOUND = 1e-9
Engine = Literal["multi_start", "variable_projection"]

_COEFFICIENTS = 3
_STARTS = [(exponent, share) for exponent in (0.1, 0.3, 0.7, 1.5, 4.0) for share in (0.0, 0.8)]


@dataclass(frozen=True)
class PowerLawFit:
    """A fitted law and how far it may be trusted.

    Attributes:
        law: the coefficients.
        x, losses: the points.
        objective: what was minimized, at the law: half the sum of squares, or Huber's sum.
        deviation: of the points about the law, in nats; None where there are no more points than coefficients.
        draws: coefficients of the bootstrap, shape (draws, 3) in the order A, B, C; None without deviation.
        remarks: what to know before the numbers are used, in words.
    """

    law: PowerLaw
    x: tuple[float, ...]
    losses: tuple[float, ...]
    objective: float
    deviation: float | None
    remarks: tuple[str, ...] = ()
    draws: Array | None = field(default=None, repr=False, compare=False)

    @property
    def asymptote(self) -> float:
        """The loss as x goes to infinity."""
        return self.law.C

    @property
    def asymptote_interval(self) -> Interval | None:
        """Where 95% of the bootstrap's asymptotes lie; None where nothing says how sure it is."""
        return self.intervals.get("C")

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95% interval of each coefficient by name; empty without a bootstrap."""
        if self.draws is None:
            return {}
        return {name: interval_of(column) for name, column in zip("ABC", self.draws.T, strict=True)}

    def prediction_interval(self, x: float) -> Interval | None:
        """Where 95% of the bootstrap's laws pass at ``x``; a run there also has its own noise."""
        if self.draws is None:
            return None
        A, B, C = self.draws.T
        return interval_of(A / x**B + C)

    def remarks_at(self, x: float) -> tuple[str, ...]:
        """What to know before ``law.predict(x)`` is used."""
        low, high = min(self.x), max(self.x)
        if low <= x <= high:
            return ()
        times, end = (x / high, f"the largest point ({high:g})") if x > high else (low / x, f"the smallest ({low:g})")
        return (f"extrapolation: x = {x:g} is {times:.3g} times beyond {end}",)

    def to_json(self) -> dict[str, Any]:
        """Everything but the draws, for files."""
        return {
            "law": "power",
            "form": "A / x^B + C",
            "coefficients": {"A": self.law.A, "B": self.law.B, "C": self.law.C},
            "intervals_95": {name: finite(interval) for name, interval in self.intervals.items()},
            "objective": self.objective,
            "deviation": self.deviation,
            "points": [{"x": x, "loss": loss} for x, loss in zip(self.x, self.losses, strict=True)],
            "remarks": list(self.remarks),
        }


def fit_power_law(
    x: Sequence[float] | Array,
    losses: Sequence[float] | Array,
    *,
    bootstrap: int = 200,
    seed: int = 0,
    huber: float | None = None,
    engine: Engine = "multi_start",
    deviation: float | None = None,
) -> PowerLawFit:
    """Fit L(x) = A / x^B + C with A, C >= 0 and 0 <= B <= 10.

    Least squares in the loss, as in the published fits (arXiv 2509.14786), or Huber's loss. Intervals are of a
    parametric bootstrap: noise is drawn anew around the law and the law fitted again. With few points the size of that
    noise is itself uncertain, so it is drawn, too (as in Student's t).

    Args:
        x: parameters, tokens, members or generations, all positive; the unit is free and A is in it.
        losses: in nats per token, one for each x; several runs at the same x are several points.
        bootstrap: draws for the intervals; 0 for none.
        seed: of the bootstrap.
        huber: residual, in nats, beyond which a point counts linearly; None for least squares.
        engine: how the minimum is found; both give the same.
        deviation: known standard deviation of a run's loss, in nats (of seeds, for example); estimated from the
            points if None, which needs more than three of them.

    Raises:
        UserError: fewer than three different x, losses that are not finite, x that are not positive.
    """
    at, observed = checked_points({"x": x}, losses, _COEFFICIENTS)
    objective = Objective(huber)
    unit = _unit(at["x"])
    solve = _multi_start if engine == "multi_start" else _projected
    solution = solve(at["x"] / unit, observed, objective)
    A, B, C = solution.coefficients
    law = PowerLaw(float(A * unit**B), float(B), float(C))
    residuals = law.predict(at["x"]) - observed
    freedom = len(observed) - _COEFFICIENTS
    found = deviation
    if found is None and freedom > 0:
        found = float(np.sqrt(np.sum(residuals**2) / freedom))
    draws = None
    if found is not None and bootstrap > 0:
        random = np.random.default_rng(seed)
        noise = found * random.standard_normal((bootstrap, len(observed)))
        if deviation is None:
            noise *= np.sqrt(freedom / random.chisquare(freedom, (bootstrap, 1)))
        draws = refit(at["x"], law.predict(at["x"]) + noise, objective)
    fit = PowerLawFit(
        law=law,
        x=tuple(at["x"].tolist()),
        losses=tuple(observed.tolist()),
        objective=solution.objective,
        deviation=found,
        draws=draws,
    )
    return with_remarks(fit)


def with_remarks(fit: PowerLawFit) -> PowerLawFit:
    """The same fit with its remarks made anew."""
    return replace(fit, remarks=tuple(_remarks(fit)))


# Engines ---------------------------------------------------------------------------------------------------


def _multi_start(x: Array, losses: Array, objective: Objective) -> Solution:
    starts = []
    for exponent, share in _STARTS:
        C = share * float(losses.min())
        column = x**-exponent
        starts.append((float(column @ (losses - C) / (column @ column)), exponent, C))
    return multi_start(_model(x), losses, objective, starts, *_BOUNDS)


def _projected(x: Array, losses: Array, objective: Objective) -> Solution:
    if objective == Objective():
        closed = _zoom(x, losses)
        return Solution(closed, objective.value(_model(x)(closed)[0] - losses))
    found = variable_projection(lambda e: _columns(x, e[0]), losses, objective, [np.geomspace(1e-3, MAX_EXPONENT, 60)])
    A, C, B = found.coefficients
    return Solution(np.array([A, B, C]), found.objective)


_BOUNDS = ((0.0, 0.0, 0.0), (np.inf, MAX_EXPONENT, np.inf))


def _columns(x: Array, exponent: float) -> Array:
    return np.stack([x**-exponent, np.ones_like(x)], axis=1)


def _model(x: Array) -> Any:
    logarithms = np.log(x)

    def model(coefficients: Array) -> tuple[Array, Array]:
        A, B, C = coefficients
        falling = x**-B
        return A * falling + C, np.stack([falling, -A * logarithms * falling, np.ones_like(x)], axis=1)

    return model


def refit(x: Array, losses: Array, objective: Objective) -> Array:
    """Coefficients (m, 3) of the laws of many sets of losses (m, n) at the same x (n,)."""
    unit = _unit(x)
    found = np.array([_zoom(x / unit, row) for row in losses])
    if objective != Objective():
        model = _model(x / unit)
        pairs = zip(losses, found, strict=True)
        found = np.array([multi_start(model, row, objective, [start], *_BOUNDS).coefficients for row, start in pairs])
    found[:, 0] *= unit ** found[:, 1]
    return found


def _unit(x: Array) -> float:
    """With x in this unit the coefficients are of the size of the losses, whatever the user's unit is."""
    return float(np.exp(np.mean(np.log(x))))


def _zoom(x: Array, losses: Array) -> Array:
    """Variable projection in closed form for squares: a grid of exponents, made finer around its best point."""
    low, high = math.log(1e-3), math.log(MAX_EXPONENT)
    for size in (80, 20, 20, 20, 20, 20):
        grid = np.linspace(low, high, size)
        columns = x ** -np.exp(grid)[:, None]
        centred = columns - columns.mean(axis=1, keepdims=True)
        spread = np.maximum(np.sum(centred**2, axis=1), 1e-300)
        A = np.maximum(centred @ losses / spread, 0)
        C = losses.mean() - A * columns.mean(axis=1)
        # Where the asymptote would be negative it is 0, and the other coefficient alone is fitted.
        A = np.where(C < 0, columns @ losses / np.sum(columns**2, axis=1), A)
        C = np.maximum(C, 0)
        errors = np.sum((A[:, None] * columns + C[:, None] - losses) ** 2, axis=1)
        best = int(np.argmin(errors))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, size - 1)]
    return np.array([A[best], np.exp(grid[best]), C[best]])


# What is to be said ----------------------------------------------------------------------------------------


def _remarks(fit: PowerLawFit) -> list[str]:
    law, x, losses = fit.law, np.array(fit.x), np.array(fit.losses)
    span = float(losses.max() - losses.min())
    order = np.argsort(x)
    said = []
    if fit.deviation is None:
        said.append("as many points as coefficients: the law passes through them and nothing says how sure it is")
    elif len(x) == _COEFFICIENTS + 1 and fit.draws is not None:
        said.append("one point more than coefficients: the intervals rest on a single residual")
    residuals = law.predict(x) - losses
    typical = float(np.sqrt(np.mean(residuals**2)))
    unexplained = np.sum(residuals**2) / max(float(np.sum((losses - losses.mean()) ** 2)), 1e-300)
    if span > 0 and unexplained > 0.1:
        said.append(f"bad fit: the points lie {typical:.3g} nats from the law on average, of a range of {span:.3g}")
    if law.A * law.B == 0 or law.predict(float(x.min())) - law.predict(float(x.max())) < 1e-9:
        return [*said, "flat: the losses do not fall with x, so the asymptote is their mean"]
    if law.C <= AT_BOUND:
        said.append("the asymptote is at its bound 0: the points do not show where the loss levels off")
    if law.B > MAX_EXPONENT * 0.999:
        said.append(f"B is at its bound {MAX_EXPONENT:g}: after the first point the loss no longer falls")
    beyond = float(law.predict(float(x.max()))) - law.C
    seen = float(law.predict(float(x.min())) - law.predict(float(x.max())))
    if beyond > seen:
        said.append(
            f"extrapolation: from the last point (x = {x[order[-1]]:g}) to the asymptote the loss falls by "
            f"{beyond:.3g}, over the points only by {seen:.3g}"
        )
    return said + _flat_directions(fit, span)


def _flat_directions(fit: PowerLawFit, span: float) -> list[str]:
    said = []
    for name, (low, high) in fit.intervals.items():
        if name == "C":
            if high - low > max(span, 1e-12):
                said.append(f"flat direction: anything from {low:.3f} to {high:.3f} is an asymptote of these points")
        elif high > 10 * max(low, 1e-300) and high > 1e-9:
            said.append(f"flat direction: {name} is hardly determined (95%: {low:.3g} to {high:.3g})")
    return said
