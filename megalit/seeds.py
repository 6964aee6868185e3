"""The seed of what was given none."""

import os


def seed_or_global(seed: int | None) -> int:
    """A seed; where it is None, that of Lightning's ``seed_everything``, or 0 where that was not called."""
    # Lightning keeps it in the environment, so that processes that it starts have it, too.
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
