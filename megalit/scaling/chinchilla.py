"""Laws in parameters and tokens: Chinchilla's third approach, and the law of repeated epochs on top of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from megalit.errors import UserError
from megalit.scaling.engines import Objective, Solution, multi_start, project, variable_projection
from megalit.scaling.fitting import Engine
from megalit.scaling.laws import Array, Chinchilla, DataConstrained
from megalit.scaling.points import Interval, checked_points, finite, interval_of

# Residuals of the logarithm beyond this count linearly (Hoffmann et al., arXiv 2203.15556, appendix D.3).
HUBER = 1e-3
# Repetitions that are worth as much as new tokens to any run: then R* has no upper end.
UNBOUNDED = 1e4
_EXPONENTS = (0.1, 0.25, 0.4, 0.6, 0.9)
_LARGEST_EXPONENT = 3.0


@dataclass(frozen=True)
class LawFit:
    """A fitted law in several coordinates and how far it may be trusted.

    Attributes:
        law: the law.
        coefficients: what was fitted, by name.
        objective: the sum of Huber's loss over the points, of residuals of the logarithm.
        points: how many there were.
        ranges: smallest and largest value of each coordinate.
        remarks: what to know before the numbers are used, in words.
        draws: coefficients of the bootstrap over points, shape (draws, coefficients), or None.
    """

    law: Chinchilla | DataConstrained
    coefficients: dict[str, float]
    objective: float
    points: int
    ranges: dict[str, Interval]
    remarks: tuple[str, ...] = ()
    draws: Array | None = field(default=None, repr=False, compare=False)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95% interval of each coefficient by name; empty without a bootstrap."""
        if self.draws is None:
            return {}
        return {name: interval_of(column) for name, column in zip(self.coefficients, self.draws.T, strict=True)}

    def remarks_at(self, **place: float) -> tuple[str, ...]:
        """What to know before the law is used at a place, given by coordinate.

        Raises:
            UserError: a coordinate that the law does not have.
        """
        said = []
        for name, value in place.items():
            if name not in self.ranges:
                raise UserError(f"the law has no coordinate {name}: give {', '.join(self.ranges)}")
            low, high = self.ranges[name]
            if value > high:
                said.append(
                    f"extrapolation: {name} = {value:g} is {value / high:.3g} times beyond the largest ({high:g})"
                )
            elif value < low:
                said.append(
                    f"extrapolation: {name} = {value:g} is {low / value:.3g} times below the smallest ({low:g})"
                )
        return tuple(said)

    def to_json(self) -> dict[str, Any]:
        """Everything but the draws, for files."""
        constrained = isinstance(self.law, DataConstrained)
        base = self.law.base if isinstance(self.law, DataConstrained) else self.law
        return {
            "law": "data_constrained" if constrained else "chinchilla",
            "coefficients": {**vars(base), **{k: v for k, v in self.coefficients.items() if k.startswith("R_")}},
            "intervals_95": {name: finite(interval) for name, interval in self.intervals.items()},
            "objective": self.objective,
            "points": self.points,
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "remarks": list(self.remarks),
        }


def fit_chinchilla(
    N: Sequence[float] | Array,
    D: Sequence[float] | Array,
    losses: Sequence[float] | Array,
    *,
    tied: bool = False,
    bootstrap: int = 200,
    seed: int = 0,
    huber: float = HUBER,
    engine: Engine = "multi_start",
) -> LawFit:
    """Chinchilla's third approach: Huber's loss of the logarithm of E + A / N^alpha + B / D^beta, summed.

    The three terms are added as exp(a - alpha ln N), exp(b - beta ln D) and exp(e), so that each stays positive.
    The starts are a grid of exponents with the best linear coefficients for each.

    Args:
        N: parameters; D: training tokens; losses: in nats per token.
        tied: one exponent for both, as in the base law of arXiv 2305.16264.
        bootstrap: draws for the intervals, points drawn with replacement; 0 for none.
        seed: of the bootstrap.
        huber: residual of the logarithm beyond which a point counts linearly.
        engine: how the minimum is found; both give the same.

    Raises:
        UserError: fewer points than coefficients, or points that cannot be used.
    """
    names = ["A", "B", "E", "alpha"] + ([] if tied else ["beta"])
    at, observed = checked_points({"N": N, "D": D}, losses, len(names))
    for name, values in at.items():
        if len(np.unique(values)) < 2:
            raise UserError(f"all points have {name} = {values[0]:g}, so nothing is known of its exponent: add runs")
    centre = {name: float(np.mean(np.log(values))) for name, values in at.items()}
    logarithms = np.stack([np.log(at[name]) - centre[name] for name in ("N", "D")], axis=1)
    objective = Objective(huber, logarithmic=True)
    solution = _solve(logarithms, observed, objective, tied, engine)
    draws = None
    if bootstrap > 0:
        random = np.random.default_rng(seed)
        rows = []
        for _ in range(bootstrap):
            chosen = random.integers(0, len(observed), len(observed))
            drawn = _descend(logarithms[chosen], observed[chosen], objective, [solution.coefficients], tied)
            rows.append(_outer(drawn.coefficients, centre, tied))
        draws = np.array(rows)
    coefficients = dict(zip(names, _outer(solution.coefficients, centre, tied), strict=True))
    law = Chinchilla(**{"beta": coefficients["alpha"], **coefficients})
    fit = LawFit(law, coefficients, solution.objective, len(observed), _ranges(at), draws=draws)
    rivals = [_outer(rival.coefficients, centre, tied) for rival in solution.rivals]
    return _with_remarks(fit, law.predict(at["N"], at["D"]), observed, rivals)


def _solve(logarithms: Array, losses: Array, objective: Objective, tied: bool, engine: Engine) -> Solution:
    """Coefficients (a, b, e, alpha[, beta]) in centred coordinates."""
    exponents = [(e,) * 2 for e in _EXPONENTS] if tied else list(product(_EXPONENTS, repeat=2))
    if engine == "multi_start":
        starts = []
        for pair in exponents:
            linear = project(_columns(logarithms, np.array(pair)), losses, Objective()).coefficients
            # A term that is not needed here may be needed elsewhere.
            logs = np.log(np.maximum(linear, 1e-3 * losses.min()))
            starts.append([*logs, *pair[: 1 if tied else 2]])
        return _descend(logarithms, losses, objective, starts, tied)
    axis = np.linspace(0.05, 1.2, 12)
    found = variable_projection(
        lambda e: _columns(logarithms, np.array([e[0], e[-1]])), losses, objective, [axis] * (1 if tied else 2)
    )
    with np.errstate(divide="ignore"):
        return Solution(np.concatenate([np.log(found.coefficients[:3]), found.coefficients[3:]]), found.objective)


def _descend(logarithms: Array, losses: Array, objective: Objective, starts: Any, tied: bool) -> Solution:
    def model(coefficients: Array) -> tuple[Array, Array]:
        alpha, beta = coefficients[3], coefficients[-1]
        terms = _columns(logarithms, np.array([alpha, beta])) * np.exp(coefficients[:3])
        slopes = -terms[:, :2] * logarithms
        if tied:
            slopes = slopes.sum(axis=1, keepdims=True)
        return terms.sum(axis=1), np.concatenate([terms, slopes], axis=1)

    size = 1 if tied else 2
    lower, upper = [-30.0] * 3 + [0.0] * size, [30.0] * 3 + [_LARGEST_EXPONENT] * size
    return multi_start(model, losses, objective, starts, lower, upper)


def _columns(logarithms: Array, exponents: Array) -> Array:
    return np.concatenate([np.exp(-exponents * logarithms), np.ones((len(logarithms), 1))], axis=1)


def _outer(inner: Array, centre: dict[str, float], tied: bool) -> list[float]:
    """Coefficients in the user's units."""
    a, b, e, alpha, beta = (*inner[:4], inner[-1])
    found = [math.exp(a + alpha * centre["N"]), math.exp(b + beta * centre["D"]), math.exp(e), float(alpha)]
    return found if tied else [*found, float(beta)]


def fit_data_constrained(
    N: Sequence[float] | Array,
    D: Sequence[float] | Array,
    U: Sequence[float] | Array,
    losses: Sequence[float] | Array,
    *,
    base: Chinchilla,
    bootstrap: int = 200,
    seed: int = 0,
    huber: float = HUBER,
) -> LawFit:
    """Fit R_D* and R_N* of the law of repeated epochs, with the law of single epochs held fixed.

    Args:
        N: parameters; D: training tokens; U: unique tokens among them; losses: in nats per token.
        base: law of the runs that read each token once.
        bootstrap, seed, huber: as for :func:`fit_chinchilla`.

    Raises:
        UserError: fewer points than coefficients, points that cannot be used, or no token that is repeated.
    """
    at, observed = checked_points({"N": N, "D": D, "U": U}, losses, 2)
    if not np.any(at["D"] > at["U"]):
        raise UserError("no point has more training tokens D than unique tokens U: add runs that repeat their data")
    if base.alpha <= 0 or base.beta <= 0 or base.A <= 0 or base.B <= 0:
        raise UserError(f"the base law {base} is flat in parameters or tokens: fit it to runs that differ in both")
    objective = Objective(huber, logarithmic=True)

    def solve(rows: npt.NDArray[np.int64], starts: Any) -> Solution:
        where = {name: values[rows] for name, values in at.items()}

        def predicted(logarithms: Array) -> Array:
            R_D, R_N = np.exp(logarithms)
            return np.asarray(DataConstrained(base, R_D, R_N).predict(where["N"], where["D"], where["U"]))

        def model(logarithms: Array) -> tuple[Array, Array]:
            step = 1e-5
            sides = [(predicted(logarithms + d) - predicted(logarithms - d)) / (2 * step) for d in step * np.eye(2)]
            return predicted(logarithms), np.stack(sides, axis=1)

        limit = math.log(UNBOUNDED)
        return multi_start(model, observed[rows], objective, starts, [-7.0] * 2, [limit] * 2)

    everything = np.arange(len(observed))
    solution = solve(everything, product(np.log([1.0, 5.0, 25.0, 500.0]), repeat=2))
    draws = None
    if bootstrap > 0:
        random = np.random.default_rng(seed)
        resampled = [random.integers(0, len(observed), len(observed)) for _ in range(bootstrap)]
        starts = [solution.coefficients, np.log([15.0, 5.0])]
        found = np.exp([solve(rows, starts).coefficients for rows in resampled])
        draws = np.where(found > 0.99 * UNBOUNDED, np.inf, found)
    coefficients = dict(zip(("R_D", "R_N"), np.exp(solution.coefficients).tolist(), strict=True))
    law = DataConstrained(base, **coefficients)
    fit = LawFit(law, coefficients, solution.objective, len(observed), _ranges(at), draws=draws)
    rivals = [np.exp(rival.coefficients).tolist() for rival in solution.rivals]
    return _with_remarks(fit, np.asarray(law.predict(at["N"], at["D"], at["U"])), observed, rivals)


# What is to be said ----------------------------------------------------------------------------------------


def _ranges(at: dict[str, Array]) -> dict[str, Interval]:
    return {name: (float(values.min()), float(values.max())) for name, values in at.items()}


def _with_remarks(fit: LawFit, predicted: Array, losses: Array, rivals: Sequence[Sequence[float]]) -> LawFit:
    said = []
    if rivals:
        columns = zip(fit.coefficients, zip(fit.coefficients.values(), *rivals, strict=True), strict=True)
        ranges = ", ".join(f"{name} {min(values):.4g} to {max(values):.4g}" for name, values in columns)
        said.append(f"several minima are within 1% as good: {ranges}")
    if fit.points <= 2 * len(fit.coefficients):
        said.append(f"{fit.points} points for {len(fit.coefficients)} coefficients: predictions are safer than these")
    typical = float(np.median(np.abs(np.log(predicted / losses))))
    spread = float(np.std(np.log(losses)))
    if typical > 0.3 * spread > 0:
        said.append(
            f"bad fit: half of the points lie more than {typical:.1%} from the law; losses vary by {spread:.1%}"
        )
    for name, value in fit.coefficients.items():
        said += _bound(name, value)
    for name, (low, high) in fit.intervals.items():
        if math.isinf(high):
            said.append(f"flat direction: {name} is bounded only from below (95%: {low:.3g} and more)")
        elif high > 3 * max(low, 1e-300):
            said.append(f"flat direction: {name} is hardly determined (95%: {low:.3g} to {high:.3g})")
    return replace(fit, remarks=tuple(said))


def _bound(name: str, value: float) -> list[str]:
    if name in ("alpha", "beta") and not 1e-6 < value < 0.999 * _LARGEST_EXPONENT:
        return [f"{name} is at its bound {value:.3g}: the points do not show how the loss falls"]
    if name.startswith("R_") and not 1e-3 < value < 0.99 * UNBOUNDED:
        return [f"{name} is at its bound {value:.3g}: the points do not show what repetition costs"]
    if name == "E" and value < 1e-6:
        return ["E is at its bound 0: the points do not show where the loss levels off"]
    return []
