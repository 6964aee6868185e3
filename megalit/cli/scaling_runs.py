"""Which runs ``megalit scaling`` looks at, and the points that they give."""

import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megalit.cli.console import console
from megalit.errors import UserError
from megalit.scaling.ensembles import EnsembleLosses, read_ensembles
from megalit.scaling.ledger import Ledger, Points, read_ledger, value_of
from megalit.scaling.records import RunRecord

_CONDITION = re.compile(r"([\w.]+)\s*(>=|<=|!=|=|<|>)\s*(.*)")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def chosen_runs(runs: Sequence[str] | None, where: Sequence[str] | None = None) -> Ledger:
    """The runs that meet all conditions. What cannot be read is said.

    Raises:
        UserError: no run is left, or a condition that is none.
    """
    ledger = read_ledger([Path(run) for run in runs or []])
    meets = _conditions(where)
    kept = {path: record for path, record in ledger.records.items() if meets(record)}
    if not kept:
        raise UserError(f"where: none of {len(ledger.records)} runs meets {' and '.join(where or [])}: ask for less")
    for problem in ledger.problems:
        console.print(f"not read: {problem}")
    return Ledger(kept, ())


def chosen_ensembles(runs: Sequence[str], where: Sequence[str] | None) -> dict[Path, EnsembleLosses]:
    """The ensembles in folders of runs whose members all meet all conditions. What cannot be read is said.

    Raises:
        UserError: no ensemble is left, or a condition that is none.
    """
    ensembles, problems = read_ensembles([Path(run) for run in runs])
    meets = _conditions(where)
    kept = {path: found for path, found in ensembles.items() if all(meets(member.record) for member in found.members)}
    if not kept:
        wanted = " and ".join(where or [])
        raise UserError(f"where: of none of {len(ensembles)} ensembles all members meet {wanted}: ask for less")
    for problem in problems:
        console.print(f"not read: {problem}")
    return kept


def said(points: Points, keys: Sequence[str]) -> Points:
    """The points, once it is said what was left out.

    Raises:
        UserError: everything was.
    """
    for problem in points.problems:
        console.print(f"left out: {problem}")
    if not points.rows:
        raise UserError(f"no point has a number for each of {', '.join(keys)}: {points.problems[0]}")
    return points


def _conditions(where: Sequence[str] | None) -> Callable[[RunRecord], bool]:
    conditions = [_condition(text) for text in where or []]
    return lambda record: all(meets(record) for meets in conditions)


def _condition(text: str) -> Callable[[RunRecord], bool]:
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise UserError(f"where: '{text}' is no condition: write KEY=VALUE, or with <, >, <=, >= or !=")
    key, compare, wanted = match.groups()

    def meets(record: RunRecord) -> bool:
        value = value_of(record, key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return _COMPARE[compare](value, float(wanted))
            except ValueError as error:
                raise UserError(f"where: '{text}' compares a number with '{wanted}': give a number") from error
        return _COMPARE[compare](str(value).lower(), wanted.lower()) if compare in ("=", "!=") else False

    return meets
