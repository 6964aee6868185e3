"""How much data a result is worth.

Three published definitions, each with its function: inverting the law of the baseline (:func:`data_efficiency`),
interpolating its losses (:func:`interpolated_data_efficiency`), and comparing the tokens that two runs need for the
same loss (:func:`tokens_to_same_loss`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megalit.errors import UserError
from megalit.scaling.fitting import PowerLawFit
from megalit.scaling.laws import Array, PowerLaw
from megalit.scaling.points import Interval, finite, interval_of


@dataclass(frozen=True)
class DataEfficiency:
    """What a loss is worth in real data.

    Attributes:
        factor: times the data that was there; infinite for a loss that no amount of data reaches by the law.
        interval: its 95% interval, or None where nothing says how sure it is.
        tokens: real tokens that the baseline needs for the loss, in the unit of its points.
        method: ``inverted law`` or ``piecewise interpolation``.
        remarks: what to know before the number is used, in words.
    """

    factor: float
    interval: Interval | None
    tokens: float
    method: str
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For files: None where a number is infinite."""
        return {
            "factor": self.factor if math.isfinite(self.factor) else None,
            "interval_95": None if self.interval is None else finite(self.interval),
            "tokens": self.tokens if math.isfinite(self.tokens) else None,
            "method": self.method,
            "remarks": list(self.remarks),
        }


def data_efficiency(
    loss: float,
    baseline: PowerLawFit,
    *,
    tokens: float | None = None,
    reference_loss: float | None = None,
) -> DataEfficiency:
    """The amount of real data with which the baseline has this loss, over the amount that was used.

    The law of the baseline's losses over nested subsets of real data is inverted: D_eff(L) = (A / (L - C))^(1 / B)
    (arXiv 2603.18534). Efficiency is D_eff(loss) / D_eff(reference_loss), as published, or D_eff(loss) / tokens.

    Args:
        loss: of the run to be judged, in nats per token.
        baseline: law of the tuned baseline over unique real tokens.
        tokens: real tokens that the run was trained on, in the unit of the baseline's points.
        reference_loss: the baseline's own loss on the same data; taken before ``tokens`` where both are given.

    Raises:
        UserError: neither tokens nor reference loss, or a law that does not fall.
    """
    if tokens is None and reference_loss is None:
        raise UserError(
            "data efficiency compares with something: give the tokens that were used or the baseline's loss"
        )

    def factor(law: PowerLaw) -> float:
        used = law.invert(reference_loss) if reference_loss is not None else tokens
        worth = law.invert(loss)
        # Both beyond the law: the ratio means nothing.
        return math.nan if used is None or math.isinf(used) else worth / used

    worth = baseline.law.invert(loss)
    interval = None
    if baseline.draws is not None:
        falling = [PowerLaw(*row) for row in baseline.draws.tolist() if row[0] > 0 and row[1] > 0]
        factors = np.array([factor(law) for law in falling])
        factors = factors[~np.isnan(factors)]
        interval = interval_of(factors) if len(factors) else None
    value = factor(baseline.law)
    remarks = [f"baseline: {remark}" for remark in baseline.remarks]
    if math.isnan(value):
        raise UserError(
            f"the baseline's loss {reference_loss} lies at or below the asymptote {baseline.law.C:.4f} of its own law: "
            "fit the law to the same runs"
        )
    if math.isinf(worth):
        remarks.append(f"by the law no amount of real data reaches {loss:g}: its asymptote is {baseline.law.C:.4f}")
    else:
        remarks += baseline.remarks_at(worth)
    if interval is not None and math.isinf(interval[1]) and math.isfinite(worth):
        remarks.append("the interval has no upper end: in part of the bootstrap the asymptote lies above the loss")
    return DataEfficiency(value, interval, worth, "inverted law", tuple(remarks))


def interpolated_data_efficiency(
    loss: float, tokens: Sequence[float] | Array, losses: Sequence[float] | Array, *, used: float
) -> DataEfficiency:
    """The same without a law: linear interpolation between the baseline's losses (qlabs-eng/slowrun).

    Args:
        loss: of the run to be judged.
        tokens: amounts of real data of the baseline.
        losses: its loss at each amount, tuned there; they fall with the tokens.
        used: real tokens that the run was trained on, in the same unit.

    Raises:
        UserError: fewer than two points, losses that do not fall, or a loss outside them.
    """
    at, values = np.asarray(tokens, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if at.shape != values.shape or len(at) < 2 or used <= 0:
        raise UserError("interpolation needs a loss for each of at least two amounts of data: add runs of the baseline")
    order = np.argsort(at)
    at, values = at[order], values[order]
    if not np.all(np.isfinite(values)) or np.any(np.diff(values) >= 0) or np.any(np.diff(at) <= 0):
        raise UserError("the baseline's losses do not fall from each amount of data to the next: tune it, or fit a law")
    if not values[-1] <= loss <= values[0]:
        raise UserError(
            f"loss {loss:g} lies outside the baseline's ({values[-1]:g} to {values[0]:g}), where nothing is "
            "interpolated: add runs of the baseline, or fit a law"
        )
    worth = float(np.interp(loss, values[::-1], at[::-1]))
    return DataEfficiency(worth / used, None, worth, "piecewise interpolation")


def tokens_to_same_loss(
    curve: tuple[Sequence[float], Sequence[float]],
    baseline: tuple[Sequence[float], Sequence[float]],
    loss: float | None = None,
) -> float:
    """How many times fewer training tokens a run needs than the baseline for the same loss (arXiv 2510.01631).

    Args:
        curve: tokens and losses of the run's validation curve.
        baseline: those of the baseline.
        loss: the loss to compare at; the lowest that both reach if None.

    Raises:
        UserError: a curve without a point, or one that does not reach the loss.
    """
    target = lowest_shared_loss(curve, baseline) if loss is None else loss
    return _tokens_at(baseline, target) / _tokens_at(curve, target)


def lowest_shared_loss(
    curve: tuple[Sequence[float], Sequence[float]], baseline: tuple[Sequence[float], Sequence[float]]
) -> float:
    """The lowest loss that both curves reach.

    Raises:
        UserError: a curve without a point.
    """
    if not curve[1] or not baseline[1]:
        raise UserError("a curve has no points: train the run with a validation suite")
    return max(min(curve[1]), min(baseline[1]))


def _tokens_at(curve: tuple[Sequence[float], Sequence[float]], loss: float) -> float:
    """Tokens at which the curve first has the loss, linear in the logarithm of tokens between its points."""
    tokens, losses = curve
    for index, (count, value) in enumerate(zip(tokens, losses, strict=True)):
        if value > loss:
            continue
        if index == 0 or tokens[index - 1] <= 0:
            return float(count)
        before = losses[index - 1]
        share = (before - loss) / (before - value)
        return float(tokens[index - 1] * (count / tokens[index - 1]) ** share)
    raise UserError(f"a curve never reaches the loss {loss:g}: choose one that both reach, or train on")
