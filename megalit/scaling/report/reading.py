"""Finding what runs left behind: their records, evaluations and ensembles, and what of it cannot be read."""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megalit.errors import UserError
from megalit.files import read_json
from megalit.scaling.ensembles import FILE as ENSEMBLE
from megalit.scaling.ensembles import read_ensemble
from megalit.scaling.ledger import read_ledger
from megalit.scaling.records import RunRecord

EVALUATION = "evaluation.json"
# The checkpoint that an evaluation is of.
_STEP = re.compile(r"step-(\d+)\.ckpt")

# (x, loss in nats per token), by x.
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class SuiteResult:
    """What ``megalit evaluate`` found on one suite.

    Attributes:
        loss: nats per token.
        bits_per_byte: the same in bits for each byte of text.
        by_position: loss against the position in the window.
        by_context_length: loss against the tokens of context.
    """

    loss: float | None
    bits_per_byte: float | None
    by_position: Curve
    by_context_length: Curve


@dataclass(frozen=True)
class Evaluation:
    """What ``megalit evaluate`` found.

    Attributes:
        suites: losses by suite.
        tasks: accuracies of benchmarks.
        conditions: how each suite and each benchmark was measured.
    """

    suites: dict[str, SuiteResult] = field(default_factory=dict)
    tasks: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run folder's record, and its evaluation, which may be empty."""

    folder: Path
    name: str
    record: RunRecord
    evaluation: Evaluation


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
        folder: Run(folder, names[folder], record, _evaluation(folder, record, problems))
        for folder, record in ledger.records.items()
    }
    ensembles = []
    for folder in ensemble_folders:
        try:
            found = read_ensemble(folder / ENSEMBLE, ledger.records)
        except UserError as error:
            problems.append(str(error))
            continue
        members = (runs.get(m.folder, Run(m.folder, m.name, m.record, Evaluation())) for m in found.members)
        ensembles.append(Ensemble(folder, names[folder], tuple(members), found.losses))
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


def _evaluation(folder: Path, record: RunRecord, problems: list[str]) -> Evaluation:
    path = folder / EVALUATION
    if not path.exists():
        return Evaluation()
    try:
        return _read_evaluation(path, record)
    except UserError as error:
        problems.append(str(error))
        return Evaluation()


def _read_evaluation(path: Path, record: RunRecord) -> Evaluation:
    value = read_json(path)
    try:
        step = _STEP.fullmatch(str(value.get("checkpoint")))
        # The plan's steps may be others: a run that went on with batches of another size has taken those of both.
        taken = record.training_curve[-1].step if record.training_curve else record.steps
        if step and record.status == "finished" and int(step[1]) != taken:
            raise UserError(f"{path} is of step {int(step[1])} and its run has {taken}: run `megalit evaluate` again")
        suites = {
            str(suite): SuiteResult(
                result["nats_per_token"],
                result.get("bits_per_byte"),
                _curve(result, "by_position"),
                _curve(result, "by_context_length"),
            )
            for suite, result in value.get("suites", {}).items()
        }
        tasks = {str(task): float(result["accuracy"]) for task, result in value.get("tasks", {}).items()}
        measured = {**value.get("suites", {}), **value.get("tasks", {})}
        conditions = {str(name): dict(result.get("conditions") or {}) for name, result in measured.items()}
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no evaluation ({error}): run `megalit evaluate` again") from error
    return Evaluation(suites, tasks, conditions)


def _curve(result: dict[str, Any], name: str) -> Curve:
    return tuple((float(x), float(loss)) for x, loss in result.get(name) or () if loss is not None)
