"""The settings that a search may come to: where it begins, the steps of each axis, and how long a run may be."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from spec import Run, StreamName

# Where the search of each scale begins: near the paper's settings for its smallest model and G = 4.
START: dict[str, dict[StreamName, Run]] = {
    "small": {
        "real": Run("real", 16, 1e-2, 0.4),
        "simple": Run("simple", 4, 1e-2, 0.4, generations=4),
        "stitched": Run("stitched", 4, 1e-2, 0.4, generations=4),
    },
    "full": {
        "real": Run("real", 16, 3e-3, 0.8),
        "simple": Run("simple", 4, 3e-3, 0.8, generations=4),
        "stitched": Run("stitched", 4, 3e-3, 0.4, generations=4),
    },
}

# The steps of each axis of the search; the paper's grids, in the range that small models need.
GRID: dict[str, tuple[float, ...]] = {
    "epochs": (1, 2, 4, 8, 16, 32, 64),
    "learning_rate": (1e-3, 3e-3, 1e-2, 3e-2),
    "weight_decay": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
}

# A run of the search trains on at most so many tokens, in sizes of the real data: what a first pass can pay for. The
# search ends there even where more epochs would be better.
MOST_PASSES = 32

Tuned = Mapping[StreamName, Run]


def settings(start: Run) -> Iterator[Run]:
    """All settings that the search from there could come to."""
    for values in product(*GRID.values()):
        epochs, learning_rate, weight_decay = values
        run = replace(start, epochs=epochs, learning_rate=learning_rate, weight_decay=weight_decay)
        if run.passes <= MOST_PASSES:
            yield run


def neighbours(run: Run, axis: str, most_passes: float = MOST_PASSES) -> Iterator[Run]:
    """One step up and one step down; at the edge of the grid, or of the budget, there is one neighbour only."""
    steps = GRID[axis]
    place = steps.index(getattr(run, axis))
    for near in (place + 1, place - 1):
        if 0 <= near < len(steps):
            found = replace(run, **{axis: steps[near]})  # type: ignore[arg-type]  # the axes are numbers
            if found.passes <= most_passes:
                yield found
