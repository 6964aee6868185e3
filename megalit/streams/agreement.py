"""All ranks of a run read one plan."""

from typing import Any

import numpy as np
import torch

from megalit.differences import differences
from megalit.errors import UserError
from megalit.streams.plan import RunPlan, what_is_read


def refuse_other_plans(plan: RunPlan) -> None:
    """Have all ranks compare their plans, where there are several; every rank must call it.

    Each makes its own from the stores that its node sees. With an older copy of them it would read windows that others
    read too, leave out others, and at the end wait for steps that nobody takes.

    Raises:
        UserError: on all ranks, where one differs; the message names it and the first difference.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    plans: list[Any] = [None] * torch.distributed.get_world_size()
    # Orders are drawn, and numpy's releases may draw others (NEP 19).
    torch.distributed.all_gather_object(plans, {**what_is_read(plan.to_json()), "numpy": np.__version__})
    for rank, other in enumerate(plans):
        for path, first, this in differences(plans[0], other):
            raise UserError(
                f"rank {rank} would read other data than rank 0 ({path} is {this!r}, not {first!r}): "
                "give all nodes the same token stores and packages"
            )
