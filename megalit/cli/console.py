"""What the verbs say while they work: on standard error, so that results can be piped."""

import os
import time

from rich.console import Console
from rich.text import Text


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console that folds and cuts nothing in a file or a pipe, where a line is found by what stands in it.

    COLUMNS tells another width. What is said comes from paths, errors and names of the user's, so nothing in it is
    markup: `[/home]` would be an error, and `[a, b]` would vanish.
    """
    made = Console(stderr=stderr, highlight=False, quiet=quiet, markup=False, emoji=False)
    if not made.is_terminal and not made.is_jupyter and not os.environ.get("COLUMNS"):
        made.width = 1000
    return made


# Every rank runs the same command; the first one speaks.
_rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
console = make_console(stderr=True, quiet=_rank != "0")


class Step:
    """A counted piece of work: a live line on a terminal, a line every ten seconds elsewhere.

    Work that is over at once, because its result is there already, says nothing.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._unit, self._base = "", 0
        self._began = self._printed = time.monotonic()
        self._status = console.status(Text(title)) if console.is_terminal else None

    def update(self, count: int, unit: str) -> None:
        """Say how far the work is."""
        now = time.monotonic()
        if unit != self._unit:
            # Another count begins, so another rate does.
            self._unit, self._began, self._printed, self._base = unit, now, now, count
        if self.is_time:
            self.say(f"{count:,} {unit}, {(count - self._base) / (now - self._began):,.0f} per second")

    @property
    def is_time(self) -> bool:
        """Whether the last line is old enough for another one."""
        return time.monotonic() - self._printed >= (0.2 if self._status else 10)

    def say(self, text: str) -> None:
        """Show a line."""
        self._printed = time.monotonic()
        text = f"{self._title}: {text}"
        if self._status:
            self._status.update(Text(text))  # a string would be read as markup here, whatever the console is told
        else:
            console.print(text)

    def __enter__(self) -> "Step":
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()
