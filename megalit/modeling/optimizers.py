"""Optimizers, and how learning rate and weight decay change over a run."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from megalit.errors import UserError

ScheduleName = Literal["cosine", "linear", "wsd", "constant"]


@dataclass(frozen=True)
class OptimizerSettings:
    """The rule that turns gradients into steps.

    Attributes:
        name: ``adamw`` (arXiv 1711.05101) for everything, or ``muon`` (torch's) for the matrices of the blocks and
            AdamW for embedding, head and norms. Muon's step is scaled to AdamW's (arXiv 2502.16982), so that
            learning rate and weight decay mean the same for both.
        betas: AdamW's averaging coefficients.
        eps: AdamW's epsilon.
        momentum: Muon's.

    Raises:
        UserError: a value that cannot work.
    """

    name: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95

    def __post_init__(self) -> None:
        if not self.eps > 0:  # NaN is refused, too
            raise UserError(f"model.optimizer.eps is {self.eps}: choose a positive value")
        for name, value in (*(("betas", beta) for beta in self.betas), ("momentum", self.momentum)):
            if not 0 <= value < 1:
                raise UserError(f"model.optimizer.{name} has {value}: choose values in [0, 1)")


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes over a run.

    Attributes:
        name: after the warm-up: ``cosine`` to 0, ``linear`` to 0, ``wsd`` (constant, then linear to 0: MiniCPM,
            arXiv 2404.06395), or ``constant``.
        warmup_fraction: share of the run's steps with rising learning rate.
        decay_fraction: share of the run's steps in which ``wsd`` falls.

    Raises:
        UserError: shares that do not fit into a run.
    """

    name: ScheduleName = "cosine"
    warmup_fraction: float = 0.01
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        for name in ("warmup_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"model.schedule.{name} is {getattr(self, name)}: choose a value in [0, 1]")
        if self.name == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise UserError("model.schedule: warm-up and decay together are longer than the run: lower one of them")

    def factor(self, step: int, total_steps: int) -> float:
        """The learning rate of optimizer step ``step`` (from 0), as a factor of its peak.

        The warm-up rises linearly from above 0 to the peak.
        """
        warmup = max(1, round(self.warmup_fraction * total_steps)) if self.warmup_fraction else 0
        if step < warmup:
            return (step + 1) / warmup
        if self.name == "constant":
            return 1.0
        falling = total_steps - warmup
        if self.name == "wsd":
            falling = max(1, round(self.decay_fraction * total_steps))
        progress = min(1.0, max(0.0, (step - (total_steps - falling)) / max(1, falling)))
        return 0.5 * (1 + math.cos(math.pi * progress)) if self.name == "cosine" else 1 - progress


def make_optimizer(
    module: nn.Module, settings: OptimizerSettings, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer with its parameter groups: matrices decay; embeddings, norms and biases do not.

    The decay is multiplied by the learning rate, as in the megadocs paper's code (arXiv 2603.18534). An output
    head that is tied to the embedding counts as an embedding. A group's ``decays`` says whether it decays.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in module.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in module.parameters() if p.ndim < 2 or id(p) in embeddings]
    matrices: list[nn.Parameter] = []
    if settings.name == "muon":
        head = id(module.get_submodule("lm_head").weight)
        matrices = [p for p in decayed if id(p) != head]
        decayed = [p for p in decayed if id(p) == head]
    # Fused where it exists: one kernel for all parameters.
    fused = all(p.device.type in ("cpu", "cuda") for p in module.parameters())
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "decays": True},
        {"params": others, "weight_decay": 0.0, "decays": False},
    ]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=settings.betas, eps=settings.eps, fused=fused)
    if settings.name == "adamw":
        return adamw
    muon = torch.optim.Muon(
        [{"params": matrices, "decays": True}],
        lr=learning_rate,
        weight_decay=weight_decay,
        momentum=settings.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return Together([muon, adamw])


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one: Lightning counts one step for each optimizer it steps."""

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        # The groups are the parts' own, so a learning rate that is set here is set there.
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
