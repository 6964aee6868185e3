"""Two ways to find the coefficients of a law; that they agree is a test of both.

:func:`multi_start` descends in all coefficients at once from many starts. :func:`variable_projection` walks only over
the exponents, because for given exponents a sum of powers is linear in everything else (Golub and Pereyra 1973).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import least_squares, minimize, nnls

from megalit.errors import UserError
from megalit.scaling.laws import Array

# Coefficients of shape (p,) -> predicted losses (n,) and their derivatives (n, p).
Model = Callable[[Array], tuple[Array, Array]]
# Exponents -> columns (n, k) whose non-negative combination predicts the losses.
Basis = Callable[[Array], Array]


@dataclass(frozen=True)
class Objective:
    """What is minimized: the sum over the points, not the mean.

    Attributes:
        huber: half squares up to this residual, linear beyond (Huber 1964); None for squares throughout.
        logarithmic: residuals of the logarithm of the loss, else of the loss itself.
    """

    huber: float | None = None
    logarithmic: bool = False

    def residuals(self, predicted: Array, losses: Array) -> Array:
        return np.log(predicted) - np.log(losses) if self.logarithmic else predicted - losses

    def derivatives(self, predicted: Array, jacobian: Array) -> Array:
        return jacobian / predicted[:, None] if self.logarithmic else jacobian

    def value(self, residuals: Array) -> float:
        size = np.abs(residuals)
        if self.huber is None:
            return float(np.sum(size**2) / 2)
        inside = np.minimum(size, self.huber)
        return float(np.sum(inside * (size - inside / 2)))

    def weights(self, residuals: Array) -> Array:
        """Weights with which least squares has the same gradient."""
        if self.huber is None:
            return np.ones_like(residuals)
        return self.huber / np.maximum(np.abs(residuals), self.huber)


@dataclass(frozen=True)
class Solution:
    """Coefficients and the objective that they reach."""

    coefficients: Array
    objective: float


def multi_start(
    model: Model,
    losses: Array,
    objective: Objective,
    starts: Iterable[Sequence[float] | Array],
    lower: Sequence[float],
    upper: Sequence[float],
) -> Solution:
    """The best local minimum found from all starts.

    Squares are minimized by a trust-region method, Huber's loss by L-BFGS.

    Raises:
        UserError: no start leads anywhere, because the losses or coordinates are of no usable size.
    """
    descend = _squares if objective.huber is None else _lbfgs
    best: Solution | None = None
    with np.errstate(all="ignore"):
        for start in starts:
            inside = np.clip(np.asarray(start, dtype=np.float64), lower, upper)
            if not np.all(np.isfinite(model(inside)[0])):
                continue
            coefficients = descend(model, losses, objective, inside, (lower, upper))
            value = objective.value(objective.residuals(model(coefficients)[0], losses))
            if np.isfinite(value) and (best is None or value < best.objective):
                best = Solution(coefficients, value)
    if best is None:
        raise UserError("the law cannot be computed at these points: check the units of their coordinates and losses")
    return best


def _squares(model: Model, losses: Array, objective: Objective, start: Array, bounds: Any) -> Array:
    def residuals(coefficients: Array) -> Array:
        return objective.residuals(model(coefficients)[0], losses)

    def jacobian(coefficients: Array) -> Array:
        return objective.derivatives(*model(coefficients))

    found = least_squares(
        residuals, start, jacobian, bounds=bounds, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=500
    )
    return np.asarray(found.x, dtype=np.float64)


def _lbfgs(model: Model, losses: Array, objective: Objective, start: Array, bounds: Any) -> Array:
    # The minimizer's tolerances are absolute, for values around 1.
    unit = (objective.huber or 1.0) ** 2

    def value_and_gradient(coefficients: Array) -> tuple[float, Array]:
        predicted, jacobian = model(coefficients)
        residuals = objective.residuals(predicted, losses)
        pull = objective.weights(residuals) * residuals
        return objective.value(residuals) / unit, pull @ objective.derivatives(predicted, jacobian) / unit

    options = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-14, "gtol": 1e-9, "maxcor": 20}
    limits = list(zip(*bounds, strict=True))
    found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=limits, options=options)
    return np.asarray(found.x, dtype=np.float64)


def variable_projection(
    basis: Basis, losses: Array, objective: Objective, grid: Sequence[Sequence[float] | Array]
) -> Solution:
    """The best exponents by a grid and a simplex from its best points, the best linear coefficients inside.

    Returns:
        the linear coefficients, in the order of the basis, followed by the exponents.
    """

    def at(exponents: Array) -> Solution:
        return project(basis(exponents), losses, objective)

    corners = sorted((at(np.array(point)).objective, point) for point in product(*grid))
    limits = [(min(axis), max(axis)) for axis in grid]
    options = {"xatol": 1e-9, "fatol": 0.0, "maxiter": 400}
    found = [
        minimize(lambda e: at(e).objective, point, method="Nelder-Mead", bounds=limits, options=options)
        for _, point in corners[:3]
    ]
    exponents = min(found, key=lambda result: result.fun).x
    solution = at(exponents)
    return Solution(np.concatenate([solution.coefficients, exponents]), solution.objective)


def project(columns: Array, losses: Array, objective: Objective) -> Solution:
    """The non-negative combination of columns (n, k) that is nearest to the losses (n,).

    Anything but plain squares is solved by Gauss-Newton steps on reweighted squares.
    """
    if objective == Objective():
        coefficients, _ = nnls(columns, losses)
        return Solution(coefficients, objective.value(columns @ coefficients - losses))
    # The nearest in relative terms is where the steps begin.
    coefficients, _ = nnls(columns / losses[:, None], np.ones_like(losses))
    predicted = columns @ coefficients
    residuals = objective.residuals(predicted, losses)
    value = objective.value(residuals)
    for _ in range(60):
        slopes = objective.derivatives(predicted, columns)
        weights = np.sqrt(objective.weights(residuals))
        target, _ = nnls(weights[:, None] * slopes, weights * (slopes @ coefficients - residuals))
        step = 1.0
        while True:
            moved = coefficients + step * (target - coefficients)
            residuals_there = objective.residuals(columns @ moved, losses)
            value_there = objective.value(residuals_there)
            if value_there <= value or step < 1e-3:
                break
            step /= 2
        if not value_there < value * (1 - 1e-13):
            break
        coefficients, predicted = moved, columns @ moved
        residuals, value = residuals_there, value_there
    return Solution(coefficients, value)
