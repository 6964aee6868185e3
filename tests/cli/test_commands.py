"""Lists on the command line, however they are written."""

import pytest

from megalit.cli.commands import gather, parse, with_switches
from megalit.cli.generate import GenerateCommand
from megalit.cli.report import ReportCommand
from megalit.errors import UserError


@pytest.mark.parametrize(
    "written",
    [
        ["a", "b c"],
        ["--runs", "a", "b c"],
        ["--runs", "a", "--runs", "b c"],
        ["--runs=a", "--runs=b c"],
        ["a", "--runs", "b c"],
        ["--output", "page", "--runs", "a", "b c"],
        ["a", "b c", "--output", "page"],
        ["--runs", "['a', 'b c']"],
        ["--runs+=a", "--runs+=b c"],
        ["a", "--runs+=b c"],
        ["[a]", "[b c]"],
        ["--runs", "[a]", "--runs+", "b c"],
    ],
)
def test_each_way_to_write_a_list_is_the_same_list(written: list[str]) -> None:
    command = parse("report", ReportCommand, gather(written, "--runs", leading=True))
    assert command.runs == ["a", "b c"]
    assert command.output == ("page" if "page" in written else "report")


@pytest.mark.parametrize("name", ["[ab]*", "it's", """both ' and \"""", "a\\b", "ä", "[a"])
def test_odd_names_and_patterns_stay_as_they_are(name: str) -> None:
    assert parse("report", ReportCommand, gather([name], "--runs", leading=True)).runs == [name]


def test_what_is_no_value_of_the_flag_is_left_for_the_parser_to_refuse() -> None:
    assert gather(["a", "--other", "b"], "--runs") == ["a", "--other", "b"]
    for written in (["a"], ["--runs"], ["--runs", "--output", "x"]):
        with pytest.raises(UserError):
            parse("report", ReportCommand, gather(written, "--runs"))


def test_other_flags_keep_their_places_and_values() -> None:
    assert gather(["--run", "a", "--batch", "2", "--run=b"], "--run") == ["--batch", "2", '--run=["a", "b"]']
    assert gather(["--run", "a", "b", "--batch=2"], "--run") == ["--batch=2", '--run=["a", "b"]']
    assert gather(["--run", "[a, b]"], "--run") == ['--run=["a", "b"]']
    assert gather(["--batch", "2"], "--run") == ["--batch", "2"]


@pytest.mark.parametrize(
    ("written", "redo", "status"),
    [
        ([], False, False),
        (["--status"], False, True),
        (["--status", "true"], False, True),
        (["--status", "false"], False, False),
        (["--status=False"], False, False),
        (["--status", "--redo", "no"], False, True),
        (["--redo", "--shard", "1/2", "--status"], True, True),
    ],
)
def test_a_switch_needs_no_value(written: list[str], redo: bool, status: bool) -> None:
    command = parse("generate", GenerateCommand, written)
    assert (command.redo, command.status) == (redo, status)


def test_what_follows_a_switch_and_is_no_value_is_left_for_the_parser() -> None:
    assert with_switches(["--status", "page", "--other"], ["--status"]) == ["--status=true", "page", "--other"]
    with pytest.raises(UserError, match="page"):
        parse("generate", GenerateCommand, ["--status", "page"])


def test_a_verb_may_be_given_nothing() -> None:
    assert with_switches([], ["--status"]) == []
