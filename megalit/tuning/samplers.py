"""Searches over a grid as samplers of Optuna, for ``study.ask`` and ``study.tell``.

What they propose follows from the study alone, so that any number of workers search as one. The study says what
its grid is (:meth:`megalit.tuning.study.SharedStudy.describe`).
"""

from abc import abstractmethod
from itertools import product
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from megalit.files import fingerprint
from megalit.tuning.results import Results, Unit
from megalit.tuning.space import SIDES, Point


class PointSampler(BaseSampler):
    """Proposes one whole point at a time."""

    @abstractmethod
    def point(self, study: Study) -> Point:
        """The next point.

        Raises:
            LookupError: there is none to propose now.
        """

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return Results(study).space.distributions(by_number=True)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return dict(zip(Results(study).space.keys, self.point(study), strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise LookupError(f"{param_name} is no axis of this study's grid")


class FixedSampler(PointSampler):
    """Proposes the point it was given: another seed of a known one, for example."""

    def __init__(self, point: Point, by_number: bool) -> None:
        self._point = point
        self._by_number = by_number

    def point(self, study: Study) -> Point:
        return self._point

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return Results(study).space.distributions(self._by_number)


class GridSampler(PointSampler):
    """A search over a grid: knows which results it still needs."""

    @abstractmethod
    def wanted(self, results: Results) -> list[Unit]:
        """What is still to be run or to be waited for, the most useful first. Nothing: the search is over."""

    def point(self, study: Study) -> Point:
        results = Results(study)
        unit = results.first_free(self.wanted(results))
        if unit is None:
            raise LookupError("every point that the search needs is taken: tell results before asking again")
        return unit.point


class ConvexSampler(GridSampler):
    """Moves to a locally optimal point: one that beats every neighbour one step aside on every axis.

    The centre is the best point so far; its neighbours are run, without diagonals, and the centre moves as soon as
    one of them is better (Kim et al., "Pre-training under infinite compute", arXiv 2509.14786, section 3; and
    arXiv 2603.18534). A neighbour whose opposite is known goes first, the steepest descent before the others:
    where the loss falls from one side to the centre, it is likeliest to fall further. The study is over when no
    neighbour is missing (:func:`megalit.tuning.certificate.is_certified`).
    """

    def wanted(self, results: Results) -> list[Unit]:
        centre = results.centre
        if centre is None:
            if not any(results.is_open(unit) for unit in results.units(results.start)):
                return []  # the start failed
            centre = results.start
        around: list[tuple[float, Point]] = []
        score = results.score(centre)
        for axis in range(len(results.space.axes)):
            for side, other in zip(SIDES, reversed(SIDES), strict=True):
                point = results.space.neighbour(centre, axis, side)
                if point is None:
                    continue
                opposite = results.space.neighbour(centre, axis, other)
                behind = results.score(opposite) if opposite is not None else None
                descent = behind.loss - score.loss if behind is not None and score is not None else 0.0
                around.append((descent, point))
        # Sorting is stable: without a hint, axes go in their order.
        points = [centre, *(point for _, point in sorted(around, key=lambda pair: -pair[0]))]
        return [unit for point in points for unit in results.units(point) if results.is_open(unit)]


class ExhaustiveSampler(GridSampler):
    """Every point of the grid, in its order."""

    def wanted(self, results: Results) -> list[Unit]:
        return [unit for point in self.order(results) for unit in results.units(point) if results.is_open(unit)]

    def order(self, results: Results) -> list[Point]:
        return list(product(*(axis.values for axis in results.space.axes)))


class ShuffledSampler(ExhaustiveSampler):
    """Every point of the grid, in a random order that all workers share: random search that never repeats.

    Args:
        seed: another one is another order.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def order(self, results: Results) -> list[Point]:
        return sorted(super().order(results), key=lambda point: fingerprint([self._seed, *point]))


class DrawnSampler(BaseSampler):
    """Random points of a space with ranges, each drawn by the number of its trial, so that workers draw different ones.

    Args:
        seed: another one draws others.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        drawn = RandomSampler(int(fingerprint([self._seed, trial.number, param_name]), 16) % 2**32)
        return drawn.sample_independent(study, trial, param_name, param_distribution)
