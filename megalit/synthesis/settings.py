"""In what the settings differ that generations were made with."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from megalit.synthesis.ledger import Ledger

# So many differences tell which settings those were.
_NAMED = 4


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was set otherwise then, such as ``sampling.temperature 1.0, now 0.3``.

    Args:
        then, now: of :attr:`megalit.synthesis.work.Work.settings`, as a journal or as this process has them.
    """
    then, now = json.loads(json.dumps([then, now]))  # tuples are lists in a journal
    return [
        f"{part}.{name} {before}, now {after}"
        for part in now
        for name, before, after in _pairs(part, then.get(part, {}), now[part])
        if before != after
    ]


def _pairs(part: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*then, *now}):
        # An option of sampling or cleaning that one of them lacks came with another version: nobody set it otherwise.
        if part == "engine" or (name in then and name in now):
            yield name, then.get(name), now.get(name)


def made_otherwise(ledger: Ledger, now: Mapping[str, Any]) -> list[str]:
    """A line to tell for each other settings that generations in a ledger were made with."""
    lines = []
    for settings, number in ledger.made_otherwise().most_common():
        found = differences(ledger.settings.get(settings, {}), now)
        if found:
            named = "; ".join(found[:_NAMED]) + ("; …" if len(found) > _NAMED else "")
            lines.append(
                f"{number:,} of {ledger.accepted:,} generations were made with other settings ({named}): they stay; "
                "--redo makes them again"
            )
    return lines
