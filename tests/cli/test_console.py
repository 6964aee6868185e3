"""What the verbs say in a file or a pipe is neither folded nor cut."""

import io
import sys

import pytest
from rich.table import Table

from megalit.cli.console import make_console

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
