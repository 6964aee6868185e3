"""What the verbs say while they work: on standard error, so that results can be piped."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

console = Console(stderr=True, highlight=False)


class Step:
    """A counted piece of work: a live line on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._began = self._printed = time.monotonic()
        self._status = console.status(title) if console.is_terminal else None

    def update(self, count: int, unit: str) -> None:
        """Say how far the work is."""
        now = time.monotonic()
        if now - self._printed < (0.2 if self._status else 10):
            return
        self._printed = now
        text = f"{self._title}: {count:,} {unit}, {count / (now - self._began):,.0f} per second"
        if self._status:
            self._status.update(text)
        else:
            console.print(text)

    def __enter__(self) -> "Step":
        if self._status:
            self._status.start()
        else:
            console.print(self._title)
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()


@contextmanager
def step(title: str, done: str = "") -> Iterator[Step]:
    """Show that ``title`` is under way; print ``done`` when it ends well."""
    began = time.monotonic()
    with Step(title) as shown:
        yield shown
    console.print(f"{done or title} [dim]({time.monotonic() - began:.1f} s)[/dim]")
