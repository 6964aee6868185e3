"""Finding what runs left behind: their records, evaluations and ensembles, and what of it cannot be read."""

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megalit.errors import UserError
from megalit.files import read_json
from megalit.scaling.ledger import read_ledger
from megalit.scaling.records import FILE as RECORD
from megalit.scaling.records import RunRecord, read_record

EVALUATION = "evaluation.json"
ENSEMBLE = "ensemble.json"

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
        UserError: no place is named, or no record under them can be read.
    """
    roots = _roots(places)
    ledger = read_ledger(roots)
    problems = list(ledger.problems)
    ensemble_folders = list(dict.fromkeys(file.parent for root in roots for file in sorted(root.rglob(ENSEMBLE))))
    names = _names([*ledger.records, *ensemble_folders])
    runs = {
        folder: Run(folder, names[folder], record, _evaluation(folder / EVALUATION, problems))
        for folder, record in ledger.records.items()
    }
    ensembles = []
    for folder in ensemble_folders:
        try:
            ensembles.append(_read_ensemble(folder, names[folder], runs))
        except UserError as error:
            problems.append(str(error))
    return Findings(
        tuple(run for run in runs.values() if run.record.status == "finished"),
        tuple(run for run in runs.values() if run.record.status != "finished"),
        tuple(ensembles),
        tuple(dict.fromkeys(problems)),
    )


def _roots(places: Iterable[str]) -> list[Path]:
    """Folders, each once: patterns are resolved, and a file stands for its folder."""
    roots: list[Path] = []
    for place in places:
        # A folder may have brackets in its name, so it is a pattern only where no such folder is.
        # pathlib has no absolute patterns.
        found = [] if Path(place).exists() else sorted(glob.glob(place, recursive=True))  # noqa: PTH207
        for name in found or [place]:
            path = Path(name).resolve()
            roots.append(path.parent if path.is_file() else path)
    return list(dict.fromkeys(roots))


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Paths from the innermost folder that holds all of them."""
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return {folder: folder.relative_to(common).as_posix() for folder in folders}


def _evaluation(path: Path, problems: list[str]) -> dict[str, SuiteResult]:
    if not path.exists():
        return {}
    try:
        return _read_evaluation(path)
    except UserError as error:
        problems.append(str(error))
        return {}


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


def _read_ensemble(folder: Path, name: str, known: Mapping[Path, Run]) -> Ensemble:
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


def _member(folder: Path, member: str, known: Mapping[Path, Run]) -> Run:
    for place in (folder / member, folder.parent / member, Path(member)):
        run = known.get(place.resolve())
        if run is not None:
            return run
        if (place / RECORD).exists():
            return Run(place.resolve(), member, read_record(place), {})
    raise UserError(f"{folder / ENSEMBLE} names the member {member}, which is not there: name its folder, too")
