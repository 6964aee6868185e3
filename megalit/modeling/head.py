"""The output head and the terms of the loss.

A term takes (hidden states, head weight, targets) and returns a sum over valid targets. The loss
is the sum of the terms over the number of valid targets in the global batch, so neither the number
of devices nor the micro-batch changes it.

Logits are made for a chunk of positions at a time and made again in the backward pass, so those of
a large vocabulary are never whole in memory.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100

# Up to this many logits are kept for the backward pass: below it, making them twice costs more
# than it saves.
CHUNK_LOGITS = 2**26


class LossTerm(Protocol):
    """One summand of the loss."""

    @property
    def name(self) -> str: ...

    def __call__(self, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        """The term's sum over the valid targets: a float32 scalar."""
        ...


class CrossEntropy:
    """Negative log-likelihood of the targets, in nats."""

    name = "cross_entropy"

    def __call__(self, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        return _chunked(_cross_entropy_sum, hidden_ND, weight_VD, targets_N).sum()


def token_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log-likelihood of each target, ``(N,)`` float32; 0 where the target is ignored."""
    return _chunked(_cross_entropy_each, hidden_ND, weight_VD, targets_N)


def _cross_entropy_sum(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    return _cross_entropy_each(hidden_ND, weight_VD, targets_N).sum().reshape(1)


def _cross_entropy_each(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = F.linear(hidden_ND, weight_VD).float()
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="none")


def _chunked(function: object, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    rows = max(1, CHUNK_LOGITS // weight_VD.shape[0])
    if len(hidden_ND) <= rows:
        return function(hidden_ND, weight_VD, targets_N)  # type: ignore[operator]
    pieces = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    return torch.cat(
        [checkpoint(function, hidden, weight_VD, targets, use_reentrant=False) for hidden, targets in pieces]
    )
