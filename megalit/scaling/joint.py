"""Asymptotes of asymptotes: over members at each size, then over sizes, then over tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megalit.errors import UserError
from megalit.scaling.engines import Objective
from megalit.scaling.fitting import AT_BOUND, PowerLawFit, fit_power_law, refit, with_remarks
from megalit.scaling.laws import Array
from megalit.scaling.points import Interval


@dataclass(frozen=True)
class JointFit:
    """One law over an axis, and the laws over the axes before it whose asymptotes are its points.

    Attributes:
        axis: of this law.
        fit: the law.
        inner: at each point of the law, the fit that gave the point; empty where the points are losses of runs.
    """

    axis: str
    fit: PowerLawFit
    inner: dict[float, "JointFit"]

    @property
    def asymptote(self) -> float:
        """The loss as all axes go to infinity, one after the other."""
        return self.fit.asymptote

    @property
    def asymptote_interval(self) -> Interval | None:
        return self.fit.asymptote_interval

    def walk(self, place: str = "") -> Iterator[tuple[str, str, PowerLawFit]]:
        """Every fit as (where it holds, axis, fit), inner ones first."""
        for value, inner in self.inner.items():
            yield from inner.walk(f"{place}{', ' if place else ''}{self.axis} = {value:g}")
        yield place, self.axis, self.fit


def joint_asymptote(
    points: Sequence[Mapping[str, float]],
    losses: Sequence[float],
    axes: Sequence[str] = ("K", "N"),
    *,
    bootstrap: int = 200,
    seed: int = 0,
    huber: float | None = None,
) -> JointFit:
    """Fit over the first axis wherever the others are equal, then over the next axis of those asymptotes, and so on.

    The joint recipe of arXiv 2509.14786: members K at each size N, then N, then tokens D. The bootstrap of an inner
    law goes into the points of the outer one, so that the last interval holds the uncertainty of all.

    Args:
        points: coordinates of each run, at least those in ``axes``.
        losses: in nats per token.
        axes: the order of the limits.
        bootstrap, seed, huber: as for :func:`megalit.scaling.fitting.fit_power_law`.

    Raises:
        UserError: an axis that a point lacks, or too few points for one of the laws, or an inner law without an
            asymptote above 0; the message names where.
    """
    for axis in axes:
        missing = sum(axis not in point for point in points)
        if missing:
            raise UserError(f"{missing} of {len(points)} points have no {axis}: leave them out, or the axis")
    return _joint(list(points), list(losses), list(axes), {"bootstrap": bootstrap, "seed": seed, "huber": huber}, "")


def _joint(
    points: list[Mapping[str, float]], losses: list[float], axes: list[str], settings: dict[str, Any], place: str
) -> JointFit:
    *before, axis = axes
    values = [point[axis] for point in points]
    inner: dict[float, JointFit] = {}
    if before:
        for number, value in enumerate(sorted(set(values))):
            here = [index for index, other in enumerate(values) if other == value]
            inner[value] = _joint(
                [points[index] for index in here],
                [losses[index] for index in here],
                before,
                # Draws of different laws are drawn apart.
                {**settings, "seed": settings["seed"] * 1009 + number + 1},
                f"{place}{axis} = {value:g}, ",
            )
        for value, found in inner.items():
            if found.asymptote <= AT_BOUND:
                raise UserError(
                    f"{place}{axis} = {value:g}: the law over {found.axis} has its asymptote at its bound 0, because "
                    f"the losses do not level off, so it gives the law over {axis} no point: add runs with a larger "
                    f"{found.axis}, or leave {axis} = {value:g} out"
                )
        values, losses = list(inner), [fit.asymptote for fit in inner.values()]
    try:
        fit = fit_power_law(values, losses, **settings)
    except UserError as error:
        raise UserError(f"{place}law over {axis}: {error}") from error
    drawn = [found.fit.draws for found in inner.values() if found.fit.draws is not None]
    if drawn and len(drawn) == len(inner):
        fit = _with_noise_of_points(fit, np.stack([draws[:, 2] for draws in drawn], axis=1), settings)
    return JointFit(axis, fit, inner)


def _with_noise_of_points(fit: PowerLawFit, asymptotes: Array, settings: dict[str, Any]) -> PowerLawFit:
    """The outer fit with a bootstrap over draws (m, n) of its points, and over how they scatter about the law."""
    random = np.random.default_rng(settings["seed"])
    scatter = (fit.deviation or 0.0) * random.standard_normal(asymptotes.shape)
    draws = refit(np.array(fit.x), asymptotes + scatter, Objective(settings["huber"]))
    return with_remarks(replace(fit, draws=draws))
