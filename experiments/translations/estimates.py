"""Means, intervals and data efficiency from the records."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import mean, stdev

import numpy as np
from grid import GRID, MOST_PASSES, Tuned, neighbours
from results import Results
from scipy.stats import t
from spec import Run, StreamName
from table import subsets

from megalit.scaling.data_efficiency import data_efficiency
from megalit.scaling.fitting import fit_power_law

STREAMS: tuple[StreamName, ...] = ("real", "simple", "stitched")
# More than the table asks for.
SEEDS = 10


def of_seeds(results: Results, run: Run) -> dict[int, float]:
    """Losses of a run by seed, for all seeds that there are."""
    losses = {seed: results.loss(replace(run, seed=seed)) for seed in range(SEEDS)}
    return {seed: loss for seed, loss in losses.items() if loss is not None}


def noise(results: Results, best: Tuned) -> tuple[float, int] | None:
    """Standard deviation between seeds, pooled over the tuned runs with several, and its degrees of freedom.

    Runs that are far from their best differ more between seeds, so they say nothing about these.
    """
    return pooled(list(of_seeds(results, run).values()) for run in best.values())


def pooled(samples: Iterable[Sequence[float]]) -> tuple[float, int] | None:
    """Standard deviation of the values around the mean of their own sample, and its degrees of freedom."""
    several = [values for values in samples if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return None
    return math.sqrt(sum((len(values) - 1) * stdev(values) ** 2 for values in several) / freedom), freedom


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[list[float], float | None]:
    """Differences within each seed that both have, and half of the 95% interval of their mean (Student's t).

    A seed is one of model, data and draw of generations. Over streams it takes no noise away (their losses of equal
    seeds do not go together), but it keeps one seed's luck from counting twice.
    """
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if len(differences) < 2:
        return differences, None
    return differences, half_width(differences)


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of the mean of some values (Student's t)."""
    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def edges(results: Results, run: Run) -> list[str]:
    """What keeps a search from being sure of its best setting: untried neighbours, and edges that it sits on."""
    remarks = []
    for axis, steps in GRID.items():
        near = list(neighbours(run, axis))
        untried = [other for other in near if results.loss(other) is None]
        if untried:
            remarks.append(f"{axis}: {' and '.join(f'{getattr(other, axis):g}' for other in untried)} not tried")
        at = steps.index(getattr(run, axis))
        if at in (0, len(steps) - 1):
            remarks.append(f"{axis}: at the edge of the grid")
        elif len(near) < 2:
            tried = results.loss(replace(run, epochs=2 * run.epochs)) is not None
            more = "for more see epochs" if tried else "more was not tried"
            remarks.append(f"{axis}: at the budget of {MOST_PASSES} passes, {more}")
    return remarks


def baseline(results: Results, best: Tuned) -> list[tuple[int, float]]:
    """Real only at each amount of real data: unique tokens, and the loss at the tuned settings (mean over seeds)."""
    points = {}
    for run in (best["real"], *subsets(best)):
        losses = list(of_seeds(results, run).values())
        known = results.of(run)
        if losses and known is not None:
            points[known.real_tokens] = mean(losses)
    return sorted(points.items())


def efficiency(points: Sequence[tuple[int, float]], own: int, loss: float) -> str:
    """How many times the real tokens ``own`` real only would need for the loss: log-linear between the points."""
    tokens, losses = zip(*points, strict=True)
    if any(after >= before for before, after in pairwise(losses)):
        return "unknown: the losses of real only do not fall with the data"
    if loss < losses[-1]:
        return f"> {tokens[-1] / own:.2f}"
    if loss > losses[0]:
        return f"< {tokens[0] / own:.2f}"
    return f"{math.exp(float(np.interp(-loss, [-x for x in losses], np.log(tokens)))) / own:.2f}"


def efficiency_by_law(points: Sequence[tuple[int, float]], own: int, loss: float) -> str:
    """The same by the law A / D^B + C of the points, as the paper has it; nothing where they are too few for one."""
    tokens, losses = zip(*points, strict=True)
    if len(points) < 3 or any(after >= before for before, after in pairwise(losses)):
        return ""
    return f"{data_efficiency(loss, fit_power_law(tokens, losses), reference_loss=dict(points)[own]).factor:.2f}"


def interval(losses: Mapping[int, float]) -> str:
    """Mean over seeds with its 95% interval, or the only loss."""
    values = list(losses.values())
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{mean(values):.4f} ± {half_width(values):.4f}"
