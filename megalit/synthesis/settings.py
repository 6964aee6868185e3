"""In what the settings differ that generations were made with."""

from collections.abc import Mapping
from typing import Any

from megalit.differences import differences
from megalit.synthesis.ledger import Ledger

# So many differences tell which settings those were.
_NAMED = 4


def set_otherwise(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was set otherwise then, such as ``sampling.temperature 1.0, now 0.3``.

    Args:
        then, now: of :attr:`megalit.synthesis.work.Work.settings`, as a journal or as this process has them.
    """
    found = []
    for part, settings in now.items():
        before = then.get(part, {})
        # An option of sampling or cleaning that one of them lacks came with another version: nobody set it otherwise.
        free = [] if part == "engine" else [f"{part}.{name}" for name in before.keys() ^ settings.keys()]
        found += [f"{key} {was}, now {is_now}" for key, was, is_now in differences(before, settings, part, free)]
    return found


def made_otherwise(ledger: Ledger, now: Mapping[str, Any]) -> list[str]:
    """A line to tell for each other settings that generations in a ledger were made with."""
    lines = []
    for settings, number in ledger.made_otherwise().most_common():
        found = set_otherwise(ledger.settings.get(settings, {}), now)
        if found:
            named = "; ".join(found[:_NAMED]) + ("; …" if len(found) > _NAMED else "")
            lines.append(
                f"{number:,} of {ledger.accepted:,} generations were made with other settings ({named}): they stay; "
                "--redo makes them again"
            )
    return lines
