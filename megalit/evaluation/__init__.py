"""Measuring models: losses of tokens, curves over position and context, benchmarks.

It knows suites by what it asks of them (:class:`Suite`), not where their tokens come from.
"""

from megalit.evaluation.losses import (
    Average,
    Suite,
    averaged,
    batch_losses,
    batches,
    ensemble_losses,
    inference,
    member_logits,
    token_losses,
)
from megalit.evaluation.measuring import SuiteLoss, by_context_length, measure

__all__ = [
    "Average",
    "Suite",
    "SuiteLoss",
    "averaged",
    "batch_losses",
    "batches",
    "by_context_length",
    "ensemble_losses",
    "inference",
    "measure",
    "member_logits",
    "token_losses",
]
