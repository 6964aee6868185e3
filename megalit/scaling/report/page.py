"""Writing the report: one HTML page that needs nothing beside it, and its pictures as files."""

import base64
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

from jinja2 import Environment, PackageLoader, StrictUndefined

from megalit import __version__
from megalit.files import write_atomic
from megalit.scaling.published import load_published
from megalit.scaling.report.drawing import Missing, Picture
from megalit.scaling.report.efficiency import data_efficiency
from megalit.scaling.report.ensembles import against_members
from megalit.scaling.report.reading import Findings
from megalit.scaling.report.study import Study, make_study
from megalit.scaling.report.tables import runs_table, settings_table, summary
from megalit.scaling.report.trends import (
    against_epochs,
    against_generations,
    against_synthetic_tokens,
    training_curves,
)
from megalit.scaling.report.windows import against_context_length, against_position

PAGE = "index.html"

_FIGURES: tuple[Callable[[Study, str], Picture | Missing], ...] = (
    against_generations,
    against_synthetic_tokens,
    data_efficiency,
    against_epochs,
    against_members,
    against_context_length,
    against_position,
    training_curves,
)


def write_report(findings: Findings, folder: Path, published: bool = False) -> list[str]:
    """Write ``index.html`` and a PNG for each figure into a folder.

    Args:
        findings: what was found.
        folder: of the page and the pictures.
        published: whether published curves are drawn beside ours.

    Returns:
        what could not be used, one line each; the page says it, too.
    """
    study, without_loss = make_study(findings)
    if published:
        study = replace(study, published=tuple(load_published()))
    drawn: list[Picture] = []
    missing: list[Missing] = []
    for figure in _FIGURES:
        made = [figure(study, suite) for suite in study.suites or ("",)]
        drawn += [picture for picture in made if isinstance(picture, Picture)]
        # Said once for each figure, not for each suite.
        if not any(isinstance(picture, Picture) for picture in made):
            missing += [picture for picture in made[:1] if isinstance(picture, Missing)]
    problems = [*findings.problems, *without_loss]
    problems += [f"{run.name} is not finished: only its curves are drawn" for run in findings.unfinished]
    templates = Environment(
        loader=PackageLoader("megalit.scaling.report", "templates"), autoescape=True, undefined=StrictUndefined
    )
    page = templates.get_template("page.html.jinja").render(
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        summary=summary(study),
        problems=problems,
        pictures=drawn,
        missing=missing,
        settings=settings_table(study),
        runs=runs_table(study),
        embedded=lambda picture: base64.b64encode(picture.png).decode(),
    )
    for picture in drawn:
        write_atomic(folder / picture.file, partial(_write, picture.png))
    write_atomic(folder / PAGE, partial(_write, page.encode()))
    return problems


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)
