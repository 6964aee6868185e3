"""Lists on the command line, however they are written."""

import pytest

from megalit.cli.commands import gather, parse
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
    ],
)
def test_each_way_to_write_a_list_is_the_same_list(written: list[str]) -> None:
    command = parse("report", ReportCommand, gather(written, "--runs", leading=True))
    assert command.runs == ["a", "b c"]
    assert command.output == ("page" if "page" in written else "report")


def test_values_of_no_flag_are_left_for_the_parser_to_refuse() -> None:
    assert gather(["a", "--other", "b"], "--runs") == ["a", "--other", "b"]
    with pytest.raises(UserError, match="a"):
        parse("report", ReportCommand, gather(["a"], "--runs"))
