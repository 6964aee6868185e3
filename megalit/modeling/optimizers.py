"""Parameter groups and learning-rate schedules."""

import math
from typing import Literal

import torch
from torch import nn

ScheduleName = Literal["cosine", "linear", "constant"]


def learning_rate_factor(step: int, total_steps: int, warmup_fraction: float, schedule: ScheduleName) -> float:
    """The learning rate of optimizer step ``step`` (from 0), as a factor of its peak.

    Linear warm-up from above 0 to the peak over ``warmup_fraction`` of the run, then cosine or linear to 0,
    or constant.
    """
    warmup = max(1, round(warmup_fraction * total_steps)) if warmup_fraction else 0
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "linear":
        return max(0.0, 1 - progress)
    return 1.0


def adamw(
    module: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with decay on matrices, not on embeddings, norms and biases.

    The decay is multiplied by the learning rate, as in the megadocs paper's code. An output head that is
    tied to the embedding counts as an embedding.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in module.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in module.parameters() if p.ndim < 2 or id(p) in embeddings]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in module.parameters())
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
