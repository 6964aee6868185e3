"""Where two values of JSON differ, such as the settings that something was made with and those asked for now."""

from collections.abc import Collection, Iterator, Mapping
from itertools import zip_longest
from typing import Any


def differences(then: Any, now: Any, key: str = "", free: Collection[str] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Yield each place where two values differ, in their order, with what was there then and what is there now.

    Dicts, lists and tuples are looked into; a tuple is a list, and what one of them lacks is None there.

    Args:
        key: of the values themselves; those of what they hold follow it, as in ``data.streams[0].share``.
        free: keys of what may differ, with all that it holds.
    """
    if key in free:
        return
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for name in {**then, **now}:
            yield from differences(then.get(name), now.get(name), f"{key}.{name}" if key else str(name), free)
    elif isinstance(then, list | tuple) and isinstance(now, list | tuple):
        for index, (before, after) in enumerate(zip_longest(then, now)):
            yield from differences(before, after, f"{key}[{index}]", free)
    elif then != now:
        yield key, then, now
