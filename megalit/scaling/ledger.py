"""The set of run records: reading many of them, and asking any of them for a number."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalit.errors import UserError
from megalit.scaling.records import FILE, RunRecord, read_record

# What a run is asked for by a short name; anything else is a key of its record or of its configuration.
AXES = {
    "stream": "class of the data module",
    "N": "parameters",
    "N_inner": "parameters without embeddings and output head",
    "D": "training tokens of all streams",
    "U": "unique real tokens",
    "G": "generations of each document",
    "K": "members of an ensemble",
    "epochs": "epochs of the real stream",
    "synthetic_tokens": "training tokens that are synthetic",
    "synthetic_share": "their share of all training tokens",
    "flops": "training FLOPs",
    "steps": "optimizer steps",
    "seconds": "wall time",
    "device_seconds": "wall time of each start times its devices",
}


@dataclass(frozen=True)
class Ledger:
    """The records that could be read, by folder, and in one line each those that could not."""

    records: dict[Path, RunRecord]
    problems: tuple[str, ...]


def read_ledger(paths: Sequence[Path]) -> Ledger:
    """Read the records of run folders, or of all run folders anywhere below the given ones, each run once.

    Raises:
        UserError: no path given, or not one readable record in all of them; the first problem is named.
    """
    if not paths:
        raise UserError("no runs are named: give run folders, or a folder that holds them")
    records: dict[Path, RunRecord] = {}
    problems = []
    seen: set[Path] = set()
    for path in paths:
        # A run's folder may hold others, an ensemble's members for example.
        found = [file.parent for file in sorted(path.rglob(FILE))]
        if not found:
            reason = f"holds no record of a run ({FILE})" if path.exists() else "does not exist"
            problems.append(f"{path} {reason}")
        for folder in found:
            # One run may be named in several ways, relative and absolute.
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                records[folder] = read_record(folder)
            except UserError as error:
                problems.append(str(error))
    if not records:
        more = f", and {len(problems) - 1} more like this" if len(problems) > 1 else ""
        raise UserError(f"no run can be read: {problems[0]}{more}; train one with `megalit fit`")
    return Ledger(records, tuple(problems))


def value_of(record: RunRecord, key: str) -> Any:
    """What a record says of ``key``, or None.

    ``key`` is one of :data:`AXES`; ``loss`` or ``loss.SUITE`` (nats per token) and ``bits_per_byte.SUITE``; a dotted
    path in the record; or one in the configuration, where ``init_args`` may be left out (``data.generations``).
    """
    if key in AXES:
        return _axis(record, key)
    name, _, suite = key.partition(".")
    if name in ("loss", "bits_per_byte"):
        losses = record.losses.get(suite or default_suite(record.losses), {})
        return losses.get("nats_per_token" if name == "loss" else name)
    for root in (vars(record), record.config):
        found = at_key(root, key)
        if found is not None:
            return found
    return None


def default_suite(suites: Iterable[str]) -> str:
    """The suite that is meant where none is named: iid, or the first one."""
    names = list(suites)
    return "iid" if "iid" in names or not names else names[0]


# Tokens, and losses in nats per token.
Curve = tuple[list[float], list[float]]


def validation_curve(record: RunRecord, key: str) -> Curve:
    """Training tokens and validation losses of a run, without losses that are not finite.

    Raises:
        UserError: ``key`` is neither ``loss`` nor ``loss.SUITE``.
    """
    name, _, suite = key.partition(".")
    if name != "loss":
        raise UserError(f"a validation curve is one of losses, not of {key}: ask for loss, or loss.SUITE")
    chosen = suite or default_suite(name for point in record.validation_curve for name in point.losses)
    found = [(point.tokens, point.losses.get(chosen)) for point in record.validation_curve]
    points = [(float(tokens), loss) for tokens, loss in found if loss is not None and math.isfinite(loss)]
    return [tokens for tokens, _ in points], [loss for _, loss in points]


def _axis(record: RunRecord, key: str) -> Any:
    tokens = sum(record.tokens_seen.values())
    values = {
        "stream": str(at_key(record.config, "data.class_path") or "").rpartition(".")[2] or None,
        "N": record.parameters.get("total"),
        "N_inner": record.parameters.get("non_embedding"),
        "D": tokens,
        "U": record.unique_real_tokens,
        # Without generations a run is no point of a law over them.
        "G": count_generations(record) or None,
        "K": None,  # Ensembles have it: megalit.scaling.ensembles.
        "epochs": record.epochs.get("real"),
        "synthetic_tokens": record.synthetic_share * tokens,
        "synthetic_share": record.synthetic_share,
        "flops": record.flops,
        "steps": record.steps,
        "seconds": record.wall_seconds,
        "device_seconds": record.device_seconds,
    }
    return values[key]


def count_generations(record: RunRecord) -> int | None:
    """G, the generations of each document: 0 for real documents alone, None where the plan does not count them."""
    streams = record.plan.get("settings", {}).get("streams", ())
    if streams and all(stream["kind"] == "Real" for stream in streams):
        return 0
    # Where no document has as many as were asked for, G is the most of any.
    counted = (stream.get("most_generations", stream.get("generations")) for stream in streams)
    return max((count for count in counted if count is not None), default=None)


def at_key(settings: Any, key: str) -> Any:
    """The value at a dotted key, in which ``init_args`` may be left out; None where there is none."""
    for part in key.split("."):
        if isinstance(settings, dict) and part not in settings:
            settings = settings.get("init_args")
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def number_of(record: RunRecord, key: str) -> float | None:
    """:func:`value_of` as a finite number, or None."""
    value = value_of(record, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


# Points --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
    """Rows of numbers with where they are from, and in one line each the rows that lack one."""

    rows: list[dict[str, float]]
    origins: list[str]
    problems: tuple[str, ...]


def points_of_records(ledger: Ledger, keys: Sequence[str], unfinished: bool = False) -> Points:
    """One row per run with a number for each key.

    Args:
        ledger: the records.
        keys: what each row holds.
        unfinished: whether runs that are not finished count.
    """
    rows, origins, problems = [], [], list(ledger.problems)
    for folder, record in ledger.records.items():
        if record.status != "finished" and not unfinished:
            problems.append(f"{folder} is not finished")
            continue
        row = {key: number_of(record, key) for key in keys}
        lacking = [key for key, value in row.items() if value is None]
        if lacking:
            problems.append(f"{folder} has no number for {', '.join(lacking)}")
        else:
            rows.append({key: value for key, value in row.items() if value is not None})
            origins.append(str(folder))
    return Points(rows, origins, tuple(problems))


def points_of_csv(path: Path, keys: Sequence[str]) -> Points:
    """One row per line of a CSV file with a header.

    Raises:
        UserError: no such file, or a column that it does not have.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: give a CSV file with a header") from error
    columns = list(lines[0]) if lines else []
    missing = [key for key in keys if key not in columns]
    if missing:
        known = ", ".join(columns) or "nothing"
        raise UserError(f"{path} has no column {missing[0]} (it has {known}): name columns that are there")
    rows, origins, problems = [], [], []
    for number, line in enumerate(lines, start=2):
        row = {key: _number(line[key]) for key in keys}
        lacking = [key for key, value in row.items() if value is None]
        if lacking:
            problems.append(f"{path}, line {number}, has no number for {', '.join(lacking)}")
        else:
            rows.append({key: value for key, value in row.items() if value is not None})
            origins.append(f"{path}, line {number}")
    return Points(rows, origins, tuple(problems))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
