"""The points that laws are fitted to, and intervals of what is fitted."""

import math
from collections.abc import Sequence

import numpy as np

from megalit.errors import UserError
from megalit.scaling.laws import Array

# Two-sided share of the bootstrap that an interval holds.
CONFIDENCE = 0.95
Interval = tuple[float, float]


def checked_points(
    axes: dict[str, Sequence[float] | Array], losses: Sequence[float] | Array, coefficients: int
) -> tuple[dict[str, Array], Array]:
    """The points as arrays.

    Raises:
        UserError: as many points as coefficients are not there, at different places; or one cannot be used.
    """
    observed = np.asarray(losses, dtype=np.float64)
    at = {name: np.asarray(values, dtype=np.float64) for name, values in axes.items()}
    for name, values in at.items():
        if values.shape != observed.shape or values.ndim != 1:
            raise UserError(f"{len(values)} values of {name} came with {len(observed)} losses: give one loss for each")
        bad = np.flatnonzero(~np.isfinite(values) | (values <= 0))
        if len(bad):
            raise UserError(f"{name} = {values[bad[0]]:g} at point {bad[0] + 1} is not positive: leave that run out")
    bad = np.flatnonzero(~np.isfinite(observed) | (observed <= 0))
    if len(bad):
        place = ", ".join(f"{name} = {values[bad[0]]:g}" for name, values in at.items())
        raise UserError(f"the loss at {place} is {observed[bad[0]]:g}: leave that run out, or train it again")
    different = len(np.unique(np.stack(list(at.values())), axis=1).T) if len(observed) else 0
    if different < coefficients:
        names = " and ".join(at)
        raise UserError(
            f"{coefficients} coefficients need at least {coefficients} different values of {names}, and there "
            f"{'is' if different == 1 else 'are'} {different}: add runs"
        )
    return at, observed


def interval_of(draws: Array) -> Interval:
    """The middle 95% of draws."""
    rest = (1 - CONFIDENCE) / 2
    # Not interpolated: an infinite draw would make its neighbours infinite, too.
    low, high = np.quantile(draws, [rest, 1 - rest], method="nearest")
    return float(low), float(high)


def finite(interval: Interval) -> list[float | None]:
    """An interval for JSON: None where it has no end."""
    return [end if math.isfinite(end) else None for end in interval]
