"""What a sweep varies: ordered grids, and distributions of Optuna."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from megalit.errors import UserError

Value = bool | int | float | str
# Values in the order of the space's keys.
Point = tuple[Value, ...]
Side = Literal["low", "high"]
SIDES: tuple[Side, Side] = ("low", "high")


@dataclass(frozen=True)
class Axis:
    """A setting and the values it may take, in order.

    Attributes:
        key: dotted key of the configuration.
        values: numbers, ascending; or names, whose order is the one they are listed in.
        low, high: bounds that growing does not pass.
    """

    key: str
    values: tuple[Value, ...]
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError(f"space.{self.key} is an empty grid: list its values")
        if not all(isinstance(value, bool | int | float | str) for value in self.values):
            raise UserError(f"space.{self.key} holds something that is no single value: list numbers or names")
        if len(set(map(str, self.values))) < len(self.values) or len(set(self.values)) < len(self.values):
            raise UserError(f"space.{self.key} holds a value twice: list each once")
        if self.is_numeric:
            if not self._is_integer:
                # Optuna gives them back so, and a run's folder has the value in its name.
                object.__setattr__(self, "values", self._numbers)
            if not all(math.isfinite(value) for value in self._numbers):
                raise UserError(f"space.{self.key} holds a value that is not finite: list numbers")
            if list(self._numbers) != sorted(self._numbers):
                raise UserError(f"space.{self.key} is not in order: list its values from the lowest to the highest")
            lowest = self.values[0] if self.low is None else self.low
            highest = self.values[-1] if self.high is None else self.high
            if lowest > self.values[0] or highest < self.values[-1]:  # type: ignore[operator]
                raise UserError(f"space.{self.key} has values beyond its low or high: mend them")
        elif self.low is not None or self.high is not None:
            raise UserError(f"space.{self.key} has low or high, and no order of numbers: leave them out")

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    @property
    def _numbers(self) -> tuple[float, ...]:
        return tuple(float(value) for value in self.values)

    @property
    def _is_integer(self) -> bool:
        return all(isinstance(value, int) for value in self.values)

    def distribution(self, by_number: bool) -> BaseDistribution:
        """The grid for Optuna.

        Args:
            by_number: as a range of numbers, which may grow and which a dashboard shows to scale; a sampler that
                does not know the grid needs the list of values instead.
        """
        if not (by_number and self.is_numeric):
            return CategoricalDistribution(self.values)
        kind = IntDistribution if self._is_integer else FloatDistribution
        return kind(self.values[0], self.values[-1], log=self._numbers[0] > 0)  # type: ignore[arg-type]

    def grown(self, side: Side) -> "Axis | None":
        """This grid with one more value at an end, by its own spacing there; None where it cannot grow.

        The step is geometric where the last two are more alike on a logarithmic scale than on a linear one, and
        arithmetic otherwise; a geometric step repeats the last two, so that 1, 3, 10 is followed by 30. A grid
        of whole numbers stays one, one of positive numbers stays positive: where an arithmetic step would leave
        them, the last one is repeated as a geometric one, so that 1.6, 0.8, 0.4, 0.1 is followed by 0.025.
        """
        if not self.is_numeric or len(self.values) < 2:
            return None
        # Outwards: the last of the three is the end of the grid.
        inner = self._numbers[:3][::-1] if side == "low" else self._numbers[-3:]
        grown = _next(inner)
        if grown <= 0 < self._numbers[0]:
            grown = _next(inner[-2:])
        if self._is_integer:
            if not float(grown).is_integer():
                return None
            grown = int(grown)
        if (grown <= 0 < self._numbers[0]) or (grown < 0 <= self._numbers[0]):
            return None
        if (self.low is not None and grown < self.low) or (self.high is not None and grown > self.high):
            return None
        return replace(self, values=(grown, *self.values) if side == "low" else (*self.values, grown))


def _next(numbers: Sequence[float]) -> float:
    """The number that follows two or three that rise or fall, to 12 digits."""
    *before, a, b = numbers
    if min(numbers) <= 0:
        value = b + (b - a)
    elif not before:
        value = b * b / a
    else:
        z = before[0]
        is_geometric = _unevenness(math.log(a / z), math.log(b / a)) <= _unevenness(a - z, b - a)
        value = a * b / z if is_geometric else b + (b - a)
    return float(f"{value:.12g}")


def _unevenness(first: float, second: float) -> float:
    """How unlike two steps of one direction are."""
    return abs(math.log(second / first))


@dataclass(frozen=True)
class Space:
    """The axes of a sweep and, for samplers that take them, ranges without a grid."""

    axes: tuple[Axis, ...] = ()
    ranges: tuple[tuple[str, BaseDistribution], ...] = ()

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> "Space":
        """A space as it stands in a configuration.

        A list is a grid. A mapping is a grid with bounds, ``{grid: [...], low: 0, high: 1}``, or a distribution of
        Optuna, ``{float: [low, high], log: true}``, ``{int: [low, high], step: 2}``.

        Raises:
            UserError: nothing to vary, or something that is neither.
        """
        if not settings:
            raise UserError("space is empty: name the settings to vary, each with its values")
        axes, ranges = [], []
        for key, value in settings.items():
            if isinstance(value, list | tuple):
                axes.append(Axis(key, tuple(value)))
            elif isinstance(value, Mapping) and "grid" in value:
                axes.append(_axis(key, value))
            elif isinstance(value, Mapping):
                ranges.append((key, _range(key, value)))
            else:
                raise UserError(f"space.{key} is neither a list of values nor a range: see `megalit sweep --help`")
        return cls(tuple(axes), tuple(ranges))

    @property
    def is_grid(self) -> bool:
        """Whether the space has a finite number of points."""
        return not self.ranges

    @property
    def size(self) -> int:
        """Points of the grid."""
        return math.prod(len(axis.values) for axis in self.axes)

    @property
    def keys(self) -> tuple[str, ...]:
        return (*(axis.key for axis in self.axes), *(key for key, _ in self.ranges))

    def distributions(self, by_number: bool) -> dict[str, BaseDistribution]:
        return {axis.key: axis.distribution(by_number) for axis in self.axes} | dict(self.ranges)

    def holds(self, point: Point) -> bool:
        """Whether a point lies on the grid as it is now."""
        return all(value in axis.values for axis, value in zip(self.axes, point, strict=False))

    def index(self, point: Point) -> tuple[int, ...]:
        """A point's place on the grid."""
        return tuple(axis.values.index(value) for axis, value in zip(self.axes, point, strict=False))

    def neighbour(self, point: Point, axis: int, side: Side) -> Point | None:
        """The point one step aside; None at the edge of the grid."""
        values = self.axes[axis].values
        place = values.index(point[axis]) + (1 if side == "high" else -1)
        if not 0 <= place < len(values):
            return None
        return (*point[:axis], values[place], *point[axis + 1 :])

    def start(self, wishes: Mapping[str, Any]) -> Point:
        """The point to start from: what is wished where the grid has it, and the middle elsewhere."""
        return tuple(
            next((value for value in axis.values if value == wishes.get(axis.key)), axis.values[len(axis.values) // 2])
            for axis in self.axes
        )

    def grown(self, axis: int, side: Side) -> "Space | None":
        """This space with one more value on an axis; None where it cannot grow."""
        larger = self.axes[axis].grown(side)
        if larger is None:
            return None
        return replace(self, axes=(*self.axes[:axis], larger, *self.axes[axis + 1 :]))

    def to_json(self) -> dict[str, Any]:
        return {
            "axes": [[axis.key, list(axis.values), axis.low, axis.high] for axis in self.axes],
            "ranges": [[key, json.loads(distribution_to_json(value))] for key, value in self.ranges],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Space":
        axes = tuple(Axis(key, tuple(values), low, high) for key, values, low, high in value["axes"])
        return cls(axes, tuple((key, json_to_distribution(json.dumps(held))) for key, held in value["ranges"]))


def _axis(key: str, value: Mapping[str, Any]) -> Axis:
    stranger = next((name for name in value if name not in ("grid", "low", "high")), None)
    if stranger is not None or not isinstance(value["grid"], list | tuple):
        raise UserError(f"space.{key} is no grid with bounds: write {{grid: [...], low: ..., high: ...}}")
    return Axis(key, tuple(value["grid"]), value.get("low"), value.get("high"))


def _range(key: str, value: Mapping[str, Any]) -> BaseDistribution:
    kinds = {"float": FloatDistribution, "int": IntDistribution}
    kind = next((name for name in kinds if name in value), None)
    try:
        if kind is None:
            raise ValueError("it names none of grid, float and int")
        low, high = value[kind]
        options = {name: option for name, option in value.items() if name != kind}
        made: BaseDistribution = kinds[kind](low, high, **options)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"space.{key} is no range ({error}): write {{float: [low, high], log: true}} or {{int: [low, high]}}"
        ) from error
    return made
