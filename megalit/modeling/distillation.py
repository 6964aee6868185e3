"""Soft-label distillation: a loss term that pulls the student's distribution towards its teachers'.

Teachers run beside the student up to their last hidden states; their logits are made in the term, chunk by chunk,
next to the student's, so that those of a large vocabulary are never whole in memory.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from megalit.modeling.decoder import Decoder
from megalit.modeling.head import IGNORED, Rows, autocast

Average = Literal["probabilities", "logits"]


class Distillation:
    """KL divergence from the teachers' average to the student, times the square of the temperature.

    Distilling the Knowledge in a Neural Network (arXiv 1503.02531), section 2: both distributions are softened by the
    temperature, and the square keeps the gradient's size where the temperature changes.

    Args:
        teachers: their last hidden states come as :meth:`rows`, their heads are used here.
        temperature: divides all logits.
        average: of several teachers: their ``probabilities`` (the mean of the softmaxes) or their ``logits`` (the
            softmax of the mean, as in the megadocs paper's ensembles).

    Attributes:
        teacher_nats: sum of the teachers' own negative log-likelihood of the targets, at temperature 1, since it was
            last set to 0: a scalar.
    """

    name = "distillation"

    def __init__(self, teachers: Sequence[Decoder], temperature: float = 1.0, average: Average = "probabilities"):
        self.teachers = list(teachers)
        self.temperature = temperature
        self.average: Average = average
        self.teacher_nats = torch.zeros(())
        # Student's and teachers' log-probabilities, their divergence, and what each teacher adds on the way.
        self.logits_tensors = 4
        self._heads: list[Tensor] = []

    @torch.no_grad()
    def rows(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The teachers' last hidden states, ``(windows * length, width of the teacher)`` each."""
        # Autocast keeps no copy of what is not trained: it would cast these in each chunk. The last ones go first.
        self._heads = []
        self._heads = [autocast(teacher.lm_head.weight) for teacher in self.teachers]
        return {_name(number): teacher.hidden_and_rows(batch)[0] for number, teacher in enumerate(self.teachers)}

    def __call__(self, logits_NV: Tensor, rows: Rows) -> Tensor:
        targets_N = rows["targets"]
        with torch.no_grad():
            teacher_NV = self._teacher(rows)
        student_NV = F.log_softmax(logits_NV.float() / self.temperature, dim=-1)
        kl_N = F.kl_div(student_NV, teacher_NV, reduction="none", log_target=True).sum(-1)
        return self.temperature**2 * kl_N.masked_fill(targets_N == IGNORED, 0.0).sum()

    def _teacher(self, rows: Rows) -> Tensor:
        """Log-probabilities ``(N, V)`` of the teachers' average, softened; one teacher's logits at a time."""
        targets_N, count = rows["targets"], len(self.teachers)
        total_NV = nats_N = None
        for number, weight_VD in enumerate(self._heads):
            logits_NV = F.linear(rows[_name(number)], weight_VD).float()
            if self.average == "logits":
                total_NV = logits_NV if total_NV is None else total_NV + logits_NV
                continue
            of_one_NV = F.log_softmax(logits_NV / self.temperature, dim=-1)
            of_one_N = -_nats(logits_NV, targets_N)
            total_NV = of_one_NV if total_NV is None else torch.logaddexp(total_NV, of_one_NV)
            nats_N = of_one_N if nats_N is None else torch.logaddexp(nats_N, of_one_N)
        assert total_NV is not None
        if self.average == "logits":
            mean_NV = total_NV / count
            self.teacher_nats = self.teacher_nats + _nats(mean_NV, targets_N).sum()
            return F.log_softmax(mean_NV / self.temperature, dim=-1)
        assert nats_N is not None
        valid_N = targets_N != IGNORED
        self.teacher_nats = self.teacher_nats - (nats_N - math.log(count)).masked_fill(~valid_N, 0.0).sum()
        return total_NV - math.log(count)


def frozen_copy(model: Decoder) -> Decoder:
    """A model with the same weights, on the same device, that is not trained."""
    twin = Decoder(
        model.shape,
        model.vocabulary_size,
        # The flash kernels know half precision alone, and the copy is in float32 whatever the model trains in.
        attention=model.attention if model.lm_head.weight.dtype == torch.float32 else "auto",
        cross_document_attention=model.cross_document_attention,
        bos=model.bos,
    )
    twin.configure_model()
    twin.load_state_dict(model.state_dict())
    return twin.requires_grad_(False).eval().to(model.device)


@torch.no_grad()
def follow(average: Decoder, model: Decoder, decay: float) -> None:
    """Move an average of weights towards a model's: ``average = decay * average + (1 - decay) * model``."""
    # The average is in float32 whatever the model trains in: in bfloat16 small steps would be rounded away.
    ours: Any = [weight.detach() for weight in average.parameters()]
    theirs = [weight.detach().to(own.dtype) for weight, own in zip(model.parameters(), ours, strict=True)]
    torch._foreach_lerp_(ours, theirs, 1 - decay)


def _nats(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="none")


def _name(number: int) -> str:
    return f"teacher{number}"
