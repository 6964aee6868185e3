"""Averages of weights, which Lightning's callbacks keep beside the model, as long as they have not begun."""

from itertools import chain
from typing import Any

import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch import nn

from megalit.errors import UserError


def check_begins(trainer: Any, steps: int) -> None:
    """Refuse an average that nothing would be added to in a run of so many steps.

    Raises:
        UserError: it begins behind the last step.
    """
    for part in trainer.callbacks:
        if not isinstance(part, EMAWeightAveraging) or part.should_update(epoch_idx=0):
            continue
        if not any(part.should_update(step_idx=step) for step in reversed(range(steps))):
            raise UserError(
                f"EMAWeightAveraging begins at step {part.update_starting_at_step or 0} and averages every "
                f"{part.update_every_n_steps}, so never in a run of {steps} steps: lower update_starting_at_step or "
                "update_every_n_steps"
            )


@torch.no_grad()
def follow_until_begun(trainer: Any, model: nn.Module) -> None:
    """Let averages that have not begun be the model's weights as they are now.

    Lightning validates, saves and ends a run with its average from the start, which until the first update is what
    the model was initialized with.
    """
    for part in trainer.callbacks:
        average = part._average_model if isinstance(part, WeightAveraging) else None
        if average is not None and average.n_averaged == 0:
            theirs = chain(average.module.parameters(), average.module.buffers())
            for kept, current in zip(theirs, chain(model.parameters(), model.buffers()), strict=True):
                kept.copy_(current)
