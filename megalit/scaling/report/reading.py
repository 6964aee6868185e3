"""Finding what runs left behind: their records, evaluations and ensembles, and what of it cannot be read."""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from megalit.errors import UserError
from megalit.files import read_json
from megalit.scaling.records import FILE as RECORD
from megalit.scaling.records import RunRecord, read_record

EVALUATION = "evaluation.json"
ENSEMBLE = "ensemble.json"

T = TypeVar("T")

# (x, loss in nats per token), by x.
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class SuiteResult:
    """What ``megalit evaluate`` found on one suite.

    Attributes:
        loss: nats per token.
        by_position: loss against the position in the window.
        by_context_length: loss against the tokens of context.
    """

    loss: float | None
    by_position: Curve
    by_context_length: Curve


@dataclass(frozen=True)
class Run:
    """A run folder's record, and its evaluation where there is one."""

    folder: Path
    name: str
    record: RunRecord
    evaluation: dict[str, SuiteResult]


@dataclass(frozen=True)
class Ensemble:
    """An ensemble's losses.

    Attributes:
        folder, name: where it was found.
        members: records of its members.
        losses: average (``probabilities`` or ``logits``) → suite → loss of K = 1 … n members.
    """

    folder: Path
    name: str
    members: tuple[Run, ...]
    losses: dict[str, dict[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Findings:
    """Everything found.

    Attributes:
        runs: finished runs.
        unfinished: runs that are still going or were stopped.
        ensembles: of finished runs.
        problems: what could not be used, one line each.
    """

    runs: tuple[Run, ...]
    unfinished: tuple[Run, ...]
    ensembles: tuple[Ensemble, ...]
    problems: tuple[str, ...] = field(default=())


def find_runs(places: Iterable[str]) -> Findings:
    """Read all run records under some run folders, globs or folders of runs, recursively.

    A file that cannot be read is a problem that is named, not an end.

    Raises:
        UserError: a place does not exist, or no record under them can be read.
    """
    roots = _roots(places)
    problems: list[str] = []
    folders = _folders(roots, RECORD)
    names = _names([*folders, *(folder for folder in _folders(roots, ENSEMBLE) if folder not in folders)])
    runs = [run for folder in folders if (run := _tried(lambda: _read_run(folder, names[folder], problems), problems))]
    if not runs:
        where = ", ".join(str(root) for root in roots)
        why = f" ({'; '.join(problems)})" if problems else ""
        raise UserError(f"no record of a run is in {where}{why}: name folders of runs that `megalit fit` trained")
    known = {run.folder: run for run in runs}
    ensembles = [
        ensemble
        for folder in _folders(roots, ENSEMBLE)
        if (ensemble := _tried(lambda: _read_ensemble(folder, names[folder], known), problems))
    ]
    return Findings(
        tuple(run for run in runs if run.record.status == "finished"),
        tuple(run for run in runs if run.record.status != "finished"),
        tuple(ensembles),
        tuple(problems),
    )


def _roots(places: Iterable[str]) -> list[Path]:
    roots: list[Path] = []
    for place in places:
        # A folder may have brackets in its name, so it is a pattern only where no such folder is.
        found = [place] if Path(place).exists() else sorted(glob.glob(place, recursive=True))
        if not found:
            raise UserError(f"{place} does not exist: name run folders, folders of runs, or a pattern that matches some")
        roots += [Path(name) for name in found]
    if not roots:
        raise UserError("no run is named: give run folders, folders of runs or patterns, as in `megalit report runs`")
    return roots


def _folders(roots: Sequence[Path], file: str) -> list[Path]:
    """Folders that hold a file of this name, each once, in order."""
    found: dict[Path, None] = {}
    for root in roots:
        folder = root.parent if root.is_file() else root
        for path, children, files in os.walk(folder):
            # Hidden folders are what a killed process left behind.
            children[:] = sorted(name for name in children if not name.startswith("."))
            if file in files:
                found[Path(path).resolve()] = None
    return list(found)


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Paths from the innermost folder that holds all of them."""
    if not folders:
        return {}
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return {folder: folder.relative_to(common).as_posix() for folder in folders}


def _tried(read: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return None


def _read_run(folder: Path, name: str, problems: list[str]) -> Run:
    record = read_record(folder)
    path = folder / EVALUATION
    evaluation = _tried(lambda: _read_evaluation(path), problems) if path.exists() else None
    return Run(folder, name, record, evaluation or {})


def _read_evaluation(path: Path) -> dict[str, SuiteResult]:
    value = read_json(path)
    try:
        return {
            str(suite): SuiteResult(
                result["nats_per_token"], _curve(result, "by_position"), _curve(result, "by_context_length")
            )
            for suite, result in value.items()
            if isinstance(result, dict) and "nats_per_token" in result
        }
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no evaluation ({error}): run `megalit evaluate` again") from error


def _curve(result: dict[str, Any], name: str) -> Curve:
    return tuple((float(x), float(loss)) for x, loss in result.get(name) or () if loss is not None)


def _read_ensemble(folder: Path, name: str, known: dict[Path, Run]) -> Ensemble:
    path = folder / ENSEMBLE
    value = read_json(path)
    try:
        members = [_member(folder, str(member), known) for member in value["members"]]
        losses = {
            str(average): {str(suite): tuple(float(loss) for loss in values) for suite, values in suites.items()}
            for average, suites in value["averages"].items()
        }
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no ensemble ({error}): run `megalit ensemble` again") from error
    if not members:
        raise UserError(f"{path} has no members: run `megalit ensemble` again")
    return Ensemble(folder, name, tuple(members), losses)


def _member(folder: Path, member: str, known: dict[Path, Run]) -> Run:
    for place in (folder / member, folder.parent / member, Path(member)):
        run = known.get(place.resolve())
        if run is not None:
            return run
        if (place / RECORD).exists():
            return Run(place.resolve(), member, read_record(place), {})
    raise UserError(f"{folder / ENSEMBLE} names the member {member}, which is not there: name its folder, too")
