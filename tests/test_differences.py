"""Where two values of JSON differ."""

from typing import Any

import pytest

from megalit.differences import differences


@pytest.mark.parametrize(
    ("then", "now", "found"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, {"b": {"c": (1, 2)}, "a": 1.0}, []),
        ({"a": None}, {}, []),
        ({"a": 1}, {"b": 2}, [("a", 1, None), ("b", None, 2)]),
        ({"a": {"b": [{"c": 1}, 5]}}, {"a": {"b": [{"c": 2}]}}, [("a.b[0].c", 1, 2), ("a.b[1]", 5, None)]),
        ({"a": {}}, {"a": []}, [("a", {}, [])]),
        (1, 2, [("", 1, 2)]),
    ],
)
def test_they_are_named_with_what_was_and_what_is(then: Any, now: Any, found: list[Any]) -> None:
    assert list(differences(then, now)) == found
    assert list(differences(now, then, free=("",))) == []


def test_what_is_free_is_not_looked_into() -> None:
    then, now = {"a": {"b": 1, "c": {"d": 1}}, "c": 1}, {"a": {"b": 2, "c": None}, "c": 2}
    assert list(differences(then, now, free=("a.c", "b"))) == [("a.b", 1, 2), ("c", 1, 2)]
    assert list(differences(then, now, "x", free=("x.a",))) == [("x.c", 1, 2)]
