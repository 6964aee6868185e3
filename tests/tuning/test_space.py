"""Grids: what they refuse, and how they grow."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalit.errors import UserError
from megalit.tuning.results import Unit
from megalit.tuning.space import Axis, Side, Space
from megalit.tuning.trials import run_name


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "space is empty"),
        ({"a": []}, "a is an empty grid"),
        ({"a": [1, 3, 2]}, "a is not in order"),
        ({"a": [3, 2, 1]}, "a is not in order"),
        ({"a": [1, 2, 2]}, "a holds a value twice"),
        ({"a": [1, 1.0]}, "a holds a value twice"),
        ({"a": ["x", "x"]}, "a holds a value twice"),
        ({"a": [1.0, float("nan")]}, "a holds a value that is not finite"),
        ({"a": [1, [2]]}, "a holds something that is no single value"),
        ({"a": 3}, "a is neither a list of values nor a range"),
        ({"a": {"grid": [1, 2], "upper": 3}}, "a is no grid with bounds"),
        ({"a": {"grid": [1, 2], "high": 1.5}}, "beyond its low or high"),
        ({"a": {"grid": ["x", "y"], "high": 1}}, "no order of numbers"),
        ({"a": {"float": [2, 1]}}, "a is no range"),
        ({"a": {"float": [0, 1], "log": True}}, "a is no range"),
        ({"a": {"normal": [0, 1]}}, "names none of grid, float and int"),
    ],
)
def test_what_is_no_space_is_refused(space: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Space.parse(space)


@pytest.mark.parametrize(
    ("values", "side", "grown"),
    [
        ([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2], "high", 0.1),
        ([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2], "low", 3e-5),
        ([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4], "high", 12.8),
        ([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4], "low", None),
        ([0.1, 0.4, 0.8, 1.6], "low", 0.025),  # an arithmetic step would leave the positive numbers
        ([0.1, 0.2, 0.3], "low", 0.05),
        ([1, 2, 4, 8, 16, 32, 64], "high", 128),
        ([1, 2, 4, 8, 16, 32, 64], "low", None),
        ([2, 4, 8], "low", 1),
        ([1, 2, 3], "high", 4),
        ([1, 2, 3], "low", None),
        ([0.1, 0.2, 0.3], "high", 0.4),
        ([0.5, 0.75, 0.9], "high", 1.05),
        ([-2.0, -1.0, 0.0], "low", -3.0),
        ([3, 6], "high", 12),
        ([0.0, 0.5], "high", 1.0),
        ([7], "high", None),
        (["cosine", "linear"], "high", None),
    ],
)
def test_a_grid_grows_by_its_own_spacing(values: list[Any], side: Side, grown: Any) -> None:
    larger = Axis("a", tuple(values)).grown(side)
    assert (larger and larger.values[0 if side == "low" else -1]) == grown


def test_a_grid_does_not_grow_past_its_bounds() -> None:
    (axis,) = Space.parse({"a": {"grid": [0.5, 0.75, 0.9], "high": 1}}).axes
    assert axis.grown("high") is None
    assert axis.grown("low") is not None


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=6, unique=True).map(sorted), st.sampled_from(["low", "high"])
)
def test_a_grown_grid_is_a_grid_of_the_same_kind(values: list[float], side: Side) -> None:
    if any(b / a < 1.001 for a, b in pairwise(values)):
        return
    axis = Axis("a", tuple(values))
    larger = axis.grown(side)
    if larger is not None:
        assert set(axis.values) < set(larger.values)
        assert min(larger.values) > 0  # type: ignore[type-var,operator]
        assert type(larger.distribution(True)) is type(axis.distribution(True))


def test_a_space_survives_being_written() -> None:
    settings = {"a": {"grid": [1, 2], "high": 8}, "b": ["x", "y"], "c": {"float": [1e-4, 1e-1], "log": True}}
    space = Space.parse(settings)
    assert Space.from_json(space.to_json()) == space
    assert not space.is_grid


def test_a_value_has_one_name_however_it_was_written() -> None:
    """Optuna gives 0 back as 0.0, and the folder of a run has it in its name."""
    space = Space.parse({"decay": [0, 0.1, 1]})
    assert [str(value) for value in space.axes[0].values] == ["0.0", "0.1", "1.0"]
    assert run_name(Unit((space.axes[0].values[0],), 0), space) == run_name(Unit((0.0,), 0), space)
    assert [str(value) for value in Axis("epochs", (1, 2)).values] == ["1", "2"]
