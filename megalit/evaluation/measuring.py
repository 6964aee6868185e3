"""What one model gets on one suite: its loss, by position in the window and by context length."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from megalit.errors import UserError
from megalit.evaluation.losses import (
    Average,
    Suite,
    batch_losses,
    batches,
    check_finite,
    device_of,
    ensemble_losses,
    inference,
)
from megalit.modeling.decoder import Decoder
from megalit.modeling.head import IGNORED
from megalit.modeling.metrics import sum_type
from megalit.ranks import ranks

Progress = Callable[[int, str], None]

# Points of a curve over positions, where nothing else is asked for.
POINTS = 64


class PositionLosses(Metric):
    """Sum of losses and number of targets at each position of the window, over all ranks.

    ``compute`` gives both, ``(context_length,)`` each.
    """

    full_state_update = False
    nats: Tensor
    counts: Tensor

    def __init__(self, context_length: int, device: torch.device) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros(context_length, dtype=sum_type(device)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(context_length, dtype=torch.long), dist_reduce_fx="sum")
        self.to(device)

    def update(self, losses: Tensor, targets: Tensor) -> None:
        """Add a batch: losses, 0 where they do not count, and targets, both ``(windows, context_length)``."""
        self.nats += losses.to(self.nats.dtype).sum(0)
        self.counts += (targets != IGNORED).sum(0)

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.nats, self.counts


@dataclass(frozen=True)
class SuiteLoss:
    """A model's losses on a suite.

    Attributes:
        nats_per_token: mean over the targets.
        bits_per_byte: all nats, in bits, over the bytes of text; it can be compared between tokenizers.
        targets: tokens that were predicted.
        text_bytes: bytes of UTF-8 text behind them.
        context_length: tokens in a window.
        by_position: mean loss of the targets that are predicted from so many tokens of context (of a bucket: its
            middle).
        by_context_length: mean loss over the suite's targets in windows of so many tokens.
        conditions: what was measured and how, so that a result is known again.
    """

    nats_per_token: float
    bits_per_byte: float
    targets: int
    text_bytes: int
    context_length: int
    by_position: list[tuple[float, float]]
    by_context_length: list[tuple[int, float]] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)


def measure(
    models: Sequence[Decoder],
    suite: Suite,
    batch: int = 8,
    precision: str = "32-true",
    average: Average = "probabilities",
    bucket: int | None = None,
    progress: Progress = lambda count, unit: None,
) -> SuiteLoss:
    """Mean loss over a suite's targets, and by position; every rank of the default process group gets the same.

    Args:
        models: one, or the members of an ensemble, on the device on which they are to run.
        suite: what to predict.
        batch: windows in a pass.
        precision: Lightning's name; mixed ones run under autocast.
        average: what is averaged over several models.
        bucket: positions in a point of the curve (default: so many that there are at most 64 points).
        progress: told how many windows are done, and what they are.

    Raises:
        UserError: a suite without targets, a loss that is not finite, or a batch that does not fit into memory.
    """
    if not suite.targets:
        raise UserError("the suite has no tokens to predict: name a store with documents")
    device = device_of(models[0])
    metric = PositionLosses(suite.context_length, device)
    with inference(models, precision):
        for numbers, part in batches(suite, batch, device, *ranks()):
            alone = len(models) == 1
            losses = batch_losses(models[0], part) if alone else ensemble_losses(models, part, average)
            check_finite(losses, numbers)
            metric.update(losses, part["targets"])
            progress(numbers.stop, f"windows of {suite.context_length}")
    # First to the CPU: not every device has double precision.
    nats, counts = (value.cpu().double() for value in metric.compute())
    total = float(nats.sum())
    return SuiteLoss(
        nats_per_token=total / int(counts.sum()),
        bits_per_byte=total / (math.log(2) * suite.text_bytes),
        targets=int(counts.sum()),
        text_bytes=suite.text_bytes,
        context_length=suite.context_length,
        by_position=by_position(nats, counts, bucket or -(-suite.context_length // POINTS)),
    )


def by_position(nats: Tensor, counts: Tensor, bucket: int) -> list[tuple[float, float]]:
    """Mean loss in buckets of positions; those that no target has are left out.

    The first position predicts from one token of context, so a bucket of the positions a to b stands at the middle of
    a and b, both counted from 1.
    """
    curve = []
    for first in range(0, len(nats), bucket):
        part = slice(first, min(first + bucket, len(nats)))
        if counts[part].sum():
            curve.append(((part.start + 1 + part.stop) / 2, float(nats[part].sum() / counts[part].sum())))
    return curve


def context_lengths(longest: int) -> list[int]:
    """The lengths of the curve: doubling from 256 (of short contexts, from a quarter), and the longest itself."""
    lengths = []
    shortest = max(1, min(256, longest // 4))
    while shortest < longest:
        lengths.append(shortest)
        shortest *= 2
    return [*lengths, longest]


def by_context_length(
    models: Sequence[Decoder], suite_at: Callable[[int], Suite], lengths: Sequence[int], **settings: Any
) -> list[tuple[int, float]]:
    """Mean loss with windows of each length: the curve over context lengths.

    The suite is cut anew into windows of each length and measured as at the full one. So every point is the mean over
    the same targets, a target has half a window of context on average, and the point of the full length is the
    suite's loss. (Under a sliding window, the stride's share of the window stays the same.)

    Args:
        models: as for :func:`measure`.
        suite_at: the suite in windows of a length.
        lengths: in tokens.
        settings: those of :func:`measure`.
    """
    return [(length, measure(models, suite_at(length), **settings).nats_per_token) for length in lengths]
