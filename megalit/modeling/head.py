"""The output head and the terms of the loss.

A term is a function of a chunk of logits and of what belongs to its positions; it returns a sum over the
valid targets. The loss is the sum of the terms over the number of valid targets in the global batch, so
neither the number of devices nor the micro-batch changes it.

Logits are made for a chunk of positions at a time, once, and shared by all terms; the gradients with respect to
hidden states and weight are computed beside them (as in Liger Kernel, arXiv 2410.10989, section 3), so those of a
large vocabulary are never whole in memory and never made twice.

Shape suffixes: N positions of a micro-batch, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100

# Logits of one chunk: large enough for full speed, small beside what a large vocabulary would take whole.
CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**29}

Rows = Mapping[str, Tensor]


class LossTerm(Protocol):
    """One summand of the loss."""

    @property
    def name(self) -> str: ...

    # A term that makes more tensors of the logits' size than cross entropy does says how many times as many, as
    # ``logits_tensors``; a chunk then has fewer positions.

    def __call__(self, logits_NV: Tensor, rows: Rows) -> Tensor:
        """The term's sum over the valid targets of a chunk: a float32 scalar.

        ``rows`` holds what belongs to the chunk's positions, ``(N, ...)`` each: ``targets`` always.
        """
        ...


class CrossEntropy:
    """Negative log-likelihood of the targets, in nats."""

    name = "cross_entropy"

    def __call__(self, logits_NV: Tensor, rows: Rows) -> Tensor:
        return F.cross_entropy(logits_NV.float(), rows["targets"], ignore_index=IGNORED, reduction="sum")


class ZLoss:
    """Keeps the softmax's normalizer near 1: ``weight`` times the square of its logarithm (PaLM, arXiv 2204.02311)."""

    name = "z_loss"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, logits_NV: Tensor, rows: Rows) -> Tensor:
        squares = logits_NV.float().logsumexp(dim=-1).square()
        return self.weight * squares.masked_fill(rows["targets"] == IGNORED, 0.0).sum()


class Weighted:
    """A term times a weight that may change from step to step.

    Attributes:
        weight: a scalar tensor, so that compiled code is not compiled anew when it changes.
        total: the term's sum without the weight since it was last set to 0, as it is before each micro-batch.
    """

    def __init__(self, term: LossTerm, weight: float) -> None:
        self.term = term
        self.weight = torch.tensor(weight)
        self.total = torch.zeros(())
        self.logits_tensors = _logits_tensors(term)

    @property
    def name(self) -> str:
        return self.term.name

    def __call__(self, logits_NV: Tensor, rows: Rows) -> Tensor:
        value = self.term(logits_NV, rows)
        self.total = self.total + value.detach()
        return self.weight * value


def _logits_tensors(term: LossTerm) -> int:
    tensors: int = getattr(term, "logits_tensors", 1)
    return tensors


class Head(nn.Linear):
    """The projection to the vocabulary.

    It is called with the terms of a loss, so that what gathers the weight of a sharded module runs around it.
    """

    def __init__(self, hidden_size: int, vocabulary_size: int) -> None:
        super().__init__(hidden_size, vocabulary_size, bias=False)
        # Set to a compiled version of ``_evaluate`` where blocks are compiled.
        self.evaluate: Callable[[Sequence[LossTerm], Tensor, Rows], Tensor] = _evaluate

    def forward(self, hidden_ND: Tensor, rows: Rows | None = None, terms: Sequence[LossTerm] | None = None) -> Tensor:
        """Logits; with ``rows`` the negative log-likelihood of each target; with ``terms`` the sum of each term.

        Shapes: ``(..., V)``; ``(N,)`` float32, 0 where the target is ignored; ``(terms,)`` float32.
        """
        if rows is None:
            return F.linear(hidden_ND, self.weight)
        hidden_ND = autocast(hidden_ND)
        if terms is None:
            return _token_losses(hidden_ND, autocast(self.weight), rows)
        sums: Tensor = _TermSums.apply(hidden_ND, self.weight, rows, terms, self.evaluate)
        return sums


def autocast(tensor: Tensor) -> Tensor:
    """A tensor in the type that autocast would give it in each chunk, given once."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def chunk_positions(size: int, vocabulary: int) -> int:
    """Positions whose logits are a chunk of so many numbers: a multiple of 128, which divides most windows evenly."""
    positions = max(1, size // vocabulary)
    return positions - positions % 128 if positions > 128 else positions


def _chunks(hidden_ND: Tensor, weight_VD: Tensor, rows: Rows, tensors: int = 1) -> Iterator[tuple[slice, Tensor, Rows]]:
    size = CHUNK_LOGITS.get(hidden_ND.device.type, CHUNK_LOGITS["cpu"]) // tensors
    positions = chunk_positions(size, len(weight_VD))
    for first in range(0, len(hidden_ND), positions):
        part = slice(first, first + positions)
        yield part, hidden_ND[part] @ weight_VD.T, {name: value[part] for name, value in rows.items()}


def _evaluate(terms: Sequence[LossTerm], logits_NV: Tensor, rows: Rows) -> Tensor:
    return torch.stack([term(logits_NV, rows) for term in terms])


def _token_losses(hidden_ND: Tensor, weight_VD: Tensor, rows: Rows) -> Tensor:
    losses = []
    with torch.no_grad():
        for _, logits, part in _chunks(hidden_ND, weight_VD, rows):
            losses.append(F.cross_entropy(logits.float(), part["targets"], ignore_index=IGNORED, reduction="none"))
    return torch.cat(losses)


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part.float() if total is None else total.add_(part)


class _TermSums(torch.autograd.Function):
    """Sums of the terms, ``(terms,)``, with the gradient of their total computed beside them.

    The caller adds the sums up: each has the same upstream gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, master_VD: Tensor, rows: Rows, terms: Any, evaluate: Any) -> Tensor:
        weight_VD = autocast(master_VD)
        # Of this type whatever the default one is: chunks are summed.
        total = torch.zeros(len(terms), dtype=torch.float32, device=hidden_ND.device)
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden_ND) if needed else None
        # The sum of many chunks; it is rounded to the type of the products only where the weight itself has that type.
        grad_weight: Tensor | None = None
        tensors = max(map(_logits_tensors, terms))
        for part, logits, chunk in _chunks(hidden_ND, weight_VD, rows, tensors):
            if not needed:
                total += evaluate(terms, logits, chunk)
                continue
            with torch.enable_grad():
                sums = evaluate(terms, logits.requires_grad_(), chunk)
                (grad_logits,) = torch.autograd.grad(sums.sum(), logits)
            total += sums.detach()
            assert grad_hidden is not None
            torch.mm(grad_logits, weight_VD, out=grad_hidden[part])
            grad_weight = _added(grad_weight, grad_logits.T @ hidden_ND[part])
        if needed:
            assert grad_weight is not None
            ctx.save_for_backward(grad_hidden, grad_weight.to(master_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = upstream[0][0]
        return grad_hidden * scale, grad_weight * scale, None, None, None
