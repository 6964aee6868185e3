"""``megalit report``: one page on what a set of runs found."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megalit.cli.commands import gather, parse
from megalit.cli.console import Step, console
from megalit.errors import UserError

HELP = """
  megalit report runs                                  (all runs in a folder)
  megalit report 'runs/stitched-*' runs/real --output pages/stitched
  megalit report runs --published true                 (beside curves of the megadocs paper)
"""


@dataclass(frozen=True)
class ReportCommand:
    """Draw what runs found, as one HTML page that needs nothing beside it, and a PNG for each figure.

    Attributes:
        runs: run folders, folders of runs, or patterns; folders are searched to the bottom. They may stand without
            the flag, right behind ``report``.
        output: folder of the page and the pictures.
        published: draw published curves beside ours, in panels of their own, where axes and suite mean the same.
    """

    runs: list[str] = field(default_factory=list)
    output: str = "report"
    published: bool = False


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit report``."""
    command = parse(verb, ReportCommand, gather(arguments, "--runs", leading=True), HELP)
    # Imported here: pictures and laws take a second to load.
    from megalit.scaling.report import PAGE, find_runs, write_report

    output = Path(command.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: choose another --output")
    with Step("report"):
        findings = find_runs(command.runs)
        problems = write_report(findings, output, command.published)
    for problem in problems:
        console.print(f"not used, or not fully: {problem}", soft_wrap=True)
    print(output / PAGE)
