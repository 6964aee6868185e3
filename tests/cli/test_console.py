"""What the verbs say is said to the letter, and in a file or a pipe neither folded nor cut."""

import io
import sys

import pytest
from rich.table import Table

from megalit.cli import console as consoles
from megalit.cli.console import Step, make_console

NAME = "runs/" + "a_long_name_" * 20


def printed(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sys, "stdout", stream)
    table = Table("model", "loss")
    table.add_row(NAME, "3.5")
    console = make_console()
    console.print(f"{NAME} and more")
    console.print(table)
    return stream.getvalue().splitlines()


def test_a_file_holds_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    line, *table = printed(io.StringIO(), monkeypatch)
    assert line == f"{NAME} and more"
    assert any(NAME in row and "3.5" in row for row in table)


def test_a_width_that_is_told_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = printed(io.StringIO(), monkeypatch)
    assert max(map(len, lines)) <= 60
    assert not any(NAME in line for line in lines)


SAID = [
    "RuntimeError: [/__w/pytorch/pair.cc:553] Connection closed",
    "runs/[ab]/x is one of [a, b], in [bold] and :warning:",
]


@pytest.mark.parametrize("said", SAID)
def test_nothing_that_is_said_is_markup(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    table = Table(title=f"title {said}", title_justify="left")
    table.add_column(f"column {said}")
    table.add_row(f"cell {said}")
    console = make_console()
    console.print(f"line {said}")
    console.print(table)
    for place in ("line", "title", "column", "cell"):
        assert f"{place} {said}" in stream.getvalue()


@pytest.mark.parametrize("said", SAID)
def test_the_live_line_of_a_terminal_shows_it_too(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(consoles, "console", make_console(stderr=True))
    with Step(said) as step:
        step.say(f"more {said}")
    assert said in stream.getvalue()
    assert f"more {said}" in stream.getvalue()
