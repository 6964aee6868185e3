"""All ranks of a run read one plan."""

import numpy as np

from megalit.differences import differences
from megalit.errors import UserError
from megalit.ranks import of_all_ranks
from megalit.streams.plan import RunPlan, what_is_read


def refuse_other_plans(plan: RunPlan) -> None:
    """Have all ranks compare their plans, where there are several; every rank must call it.

    Each makes its own from the stores that its node sees. With an older copy of them it would read windows that others
    read too, leave out others, and at the end wait for steps that nobody takes.

    Raises:
        UserError: on all ranks, where one differs; the message names it and the first difference.
    """
    # Orders are drawn, and numpy's releases may draw others (NEP 19).
    plans = of_all_ranks({**what_is_read(plan.to_json()), "numpy": np.__version__})
    for rank, other in enumerate(plans):
        for path, first, this in differences(plans[0], other):
            raise UserError(
                f"rank {rank} would read other data than rank 0 ({path} is {this!r}, not {first!r}): "
                "give all nodes the same token stores and packages"
            )
