"""Losses of single tokens, which every other measurement sums up, averages or compares.

Shape suffixes: M members, N positions that have a target, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megalit.errors import UserError
from megalit.modeling.decoder import Decoder
from megalit.modeling.distillation import Average as Average
from megalit.modeling.head import CHUNK_LOGITS, IGNORED
from megalit.modeling.out_of_memory import told_out_of_memory
from megalit.ranks import ranks

Losses = npt.NDArray[np.float32]


class Suite(Protocol):
    """Windows whose targets are to be predicted, in a fixed order.

    Attributes:
        context_length: tokens in a window.
        windows: how many there are.
        targets: how many tokens they predict.
        window_targets: how many each of them predicts, ``(windows,)``.
        text_bytes: bytes of UTF-8 text behind them.
        fingerprint: changes with any token of any window.
    """

    context_length: int
    windows: int
    targets: int
    window_targets: npt.NDArray[np.int64]
    text_bytes: int

    @property
    def fingerprint(self) -> str: ...

    def batch(self, numbers: Sequence[int]) -> Any:
        """``tokens`` and ``targets`` of these windows, ``(windows, context_length)``; window -1 has no target."""
        ...


def batches(
    suite: Suite, size: int, device: torch.device, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[range, dict[str, Tensor]]]:
    """A suite's windows in order, ``size`` at a time: their numbers, with tokens and targets on the device.

    With several ranks each has its part, and all have as many batches, because a sharded model runs on all of them
    at once: where windows run out, a batch is the padding window.
    """
    ranges = [range(first, min(first + size, suite.windows)) for first in range(0, suite.windows, size)]
    ranges += [range(-1, 0)] * (-len(ranges) % world_size)
    for numbers in ranges[rank::world_size]:
        batch = suite.batch(numbers)
        yield numbers, {name: batch[name].to(device, non_blocking=True) for name in ("tokens", "targets")}


def token_losses(
    model: Decoder, suite: Suite, batch: int = 8, precision: str = "32-true", divide: bool = False
) -> Losses:
    """Negative log-likelihood of each target of a suite, in nats: float32, ``(suite.targets,)``, in its order.

    The order is that of windows, and within a window of positions; it depends neither on ``batch`` nor on ranks.

    Args:
        model: on the device on which it is to run.
        suite: what to predict.
        batch: windows in a pass.
        precision: Lightning's name; mixed ones run under autocast.
        divide: share the windows among the ranks of the default process group; each gets the whole result.

    Raises:
        UserError: a loss that is not finite, or a batch that does not fit into memory.
    """
    rank, world_size = ranks() if divide else (0, 1)
    device = device_of(model)
    first = np.concatenate([[0], np.cumsum(suite.window_targets)])
    losses = np.zeros(suite.targets, dtype=np.float32)
    with inference([model], precision):
        for numbers, part in batches(suite, batch, device, rank, world_size):
            found = batch_losses(model, part)[part["targets"] != IGNORED]
            check_finite(found, numbers)
            if numbers.start >= 0:
                losses[first[numbers.start] : first[numbers.stop]] = found.cpu().numpy()
    if world_size > 1:
        whole = torch.from_numpy(losses).to(device)
        torch.distributed.all_reduce(whole)
        losses = whole.cpu().numpy()
    return losses


def batch_losses(model: Decoder, batch: Mapping[str, Tensor]) -> Tensor:
    """Negative log-likelihood of a batch's targets, in nats: float32, shaped as they are, 0 where they do not count.

    To be called within :func:`inference`.

    Raises:
        UserError: the batch does not fit into memory.
    """
    with told_out_of_memory(lambda: out_of_memory(batch["tokens"])):
        hidden, rows = model.hidden_and_rows(dict(batch))
        losses: Tensor = model.lm_head(hidden, rows)
    return losses.view_as(batch["targets"])


def member_logits(models: Sequence[Decoder], batch: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of all members where a batch has targets, and these targets: ``(M, N, V)`` float32 and ``(N,)``.

    They come a chunk of positions at a time, in the suite's order, so that a large vocabulary is never whole in
    memory; the members are resident. To be called within :func:`inference`.

    Raises:
        UserError: members with vocabularies of different sizes, or a batch that does not fit into memory.
    """
    check_vocabularies(models)
    device = batch["tokens"].device
    with told_out_of_memory(lambda: out_of_memory(batch["tokens"])):
        where = (batch["targets"] != IGNORED).flatten()
        targets = batch["targets"].flatten()[where].long()
        hidden = [model.hidden_and_rows(dict(batch))[0][where] for model in models]
        logits_of_all = len(models) * len(models[0].lm_head.weight)
        positions = max(1, CHUNK_LOGITS.get(device.type, CHUNK_LOGITS["cpu"]) // logits_of_all)
        for start in range(0, len(targets), positions):
            part = slice(start, start + positions)
            logits = [model.lm_head(own[part]).float() for model, own in zip(models, hidden, strict=True)]
            yield torch.stack(logits), targets[part]


def averaged(logits_MNV: Tensor, average: Average) -> Tensor:
    """Log-probabilities of an ensemble, ``(N, V)`` float32, from its members' logits, under autocast, too.

    ``logits``: the mean of the members' raw logits, then softmax (arXiv 2509.14786); ``probabilities``: the mean of
    their distributions, which is the likelihood of the mixture.

    Args:
        logits_MNV: ``(M, N, V)``.
        average: what is averaged.
    """
    if average == "logits":
        # No product of matrices: autocast would round it to 16 bits.
        return logits_MNV.mean(0).log_softmax(-1)
    return logits_MNV.log_softmax(-1).logsumexp(0) - math.log(len(logits_MNV))


def ensemble_losses(models: Sequence[Decoder], batch: Mapping[str, Tensor], average: Average) -> Tensor:
    """What :func:`batch_losses` is for one model, for the average of several that are resident."""
    losses = [
        -averaged(logits, average).gather(1, targets[:, None])[:, 0] for logits, targets in member_logits(models, batch)
    ]
    out = torch.zeros(batch["targets"].shape, device=batch["targets"].device)
    out[batch["targets"] != IGNORED] = torch.cat(losses) if losses else out.new_empty(0)
    return out


@contextmanager
def inference(models: Sequence[Decoder], precision: str = "32-true") -> Iterator[None]:
    """Run models as in validation: no gradients, no noise, under the autocast of their precision."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.no_grad(), _autocast(device_of(models[0]), precision):
            yield
    finally:
        for model, before in zip(models, training, strict=True):
            model.train(before)


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    if precision.endswith("true") or not precision.startswith(("bf16", "16")):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision.startswith("bf16") else torch.float16)


def device_of(model: Decoder) -> torch.device:
    """Where a model's weights are."""
    return next(model.parameters()).device


def check_finite(losses: Tensor, numbers: range) -> None:
    """Refuse losses that are no numbers.

    Raises:
        UserError: with the numbers of the windows.
    """
    bad = int((~torch.isfinite(losses)).sum())
    if bad:
        raise UserError(
            f"the model gives {bad} losses that are not finite in windows {numbers.start} to {numbers.stop - 1}: "
            "it has diverged, or its weights are damaged; measure an earlier checkpoint"
        )


def check_vocabularies(models: Sequence[Decoder]) -> None:
    """Refuse members that cannot be averaged.

    Raises:
        UserError: their vocabularies have different sizes.
    """
    sizes = sorted({int(model.vocabulary_size or 0) for model in models})
    if len(sizes) > 1:
        raise UserError(
            f"the members have vocabularies of {' and '.join(map(str, sizes))} tokens and cannot be averaged: "
            "choose members with one tokenizer and one model.vocabulary_size"
        )


def out_of_memory(tokens: Tensor) -> UserError:
    """The error for a batch that did not fit."""
    windows, length = tokens.shape
    return UserError(f"out of memory with {windows} windows of {length} tokens in a pass: lower the batch")
