"""``megalit scaling``: what run records say, and the laws behind them."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from megalit.cli.commands import gather, parse
from megalit.cli.console import make_console
from megalit.cli.scaling_efficiency import EfficiencyCommand, efficiency
from megalit.cli.scaling_fits import (
    How,
    fit_joint,
    fit_parameters_and_tokens,
    fit_power,
    fit_repeated_epochs,
    show,
    split,
)
from megalit.cli.scaling_mixed import Records, refuse_different_ensembles, refuse_synthetic, say_mixed
from megalit.cli.scaling_runs import chosen_ensembles, chosen_runs, said
from megalit.errors import UserError
from megalit.files import write_atomic, write_json
from megalit.scaling.ensembles import Average, points_of_ensembles
from megalit.scaling.ledger import AXES, Points, points_of_csv, points_of_records, value_of

COLUMNS = ["stream", "N", "U", "D", "G", "epochs", "synthetic_share", "loss", "status"]
_FITS = {"joint": fit_joint, "chinchilla": fit_parameters_and_tokens, "data_constrained": fit_repeated_epochs}
_KEYS = (
    "Keys of a run: "
    + "; ".join(f"{name} ({meaning})" for name, meaning in AXES.items())
    + ";\nloss.SUITE, bits_per_byte.SUITE, and any key of its record or configuration, like model.weight_decay."
)


@dataclass(frozen=True)
class ListCommand:
    """Print the records of runs.

    Attributes:
        runs: run folders, or folders that hold some; they may stand right behind ``list``.
        columns: what to show of each run.
        where: conditions that a run meets, like ``model.weight_decay=0.4`` or ``D>1000000``.
        sort: a key to sort by.
        format: ``table``, or ``csv`` to standard output.
        output: CSV file to write, too.
    """

    runs: list[str] | None = None
    columns: list[str] | None = None
    where: list[str] | None = None
    sort: str | None = None
    format: Literal["table", "csv"] = "table"
    output: str | None = None


@dataclass(frozen=True)
class FitCommand:
    """Fit a law to runs or to a table.

    Attributes:
        runs: run folders, or folders that hold some; they may stand right behind ``fit``. Where K is an axis, the
            points are the averages of K = 1 … n members of the ensembles in these folders (``ensemble.json``), with
            what their members' records share.
        csv: a table with a header instead of runs; the axes and the loss are names of its columns.
        law: ``power`` (A / x^B + C), ``joint`` (asymptotes over the first axis, then the next), ``chinchilla``,
            or ``data_constrained`` (repeated epochs of real documents alone).
        axes: coordinates: one for ``power``, the order of the limits for ``joint``; ``[N, D]`` and ``[N, D, U]``
            if not given for the others.
        loss: key or column of the losses.
        by: a key; one power law is fitted for each of its values (a mixture's ratio, for example).
        below: fit only points whose first axis is at most this, and compare the law with the others.
        where: conditions that a run meets, or all members of an ensemble.
        average: of ensembles: of their members' ``probabilities`` or ``logits``.
        huber: residual beyond which a point counts linearly: in nats for power laws (default: least squares), of the
            logarithm for the others (default: 0.001).
        engine: how the minimum is found; both give the same.
        deviation: standard deviation of a loss between seeds, in nats, for power laws; estimated if not given.
        bootstrap: draws for the intervals.
        seed: of the bootstrap.
        predict: values of a power law's axis to predict the loss at.
        unfinished: whether runs that are not finished count.
        output: JSON file to write the fits to.
    """

    runs: list[str] | None = None
    csv: str | None = None
    law: Literal["power", "joint", "chinchilla", "data_constrained"] = "power"
    axes: list[str] | None = None
    loss: str = "loss"
    by: str | None = None
    below: float | None = None
    where: list[str] | None = None
    average: Average = "probabilities"
    huber: float | None = None
    engine: Literal["multi_start", "variable_projection"] = "multi_start"
    deviation: float | None = None
    bootstrap: int = 200
    seed: int = 0
    predict: list[float] | None = None
    unfinished: bool = False
    output: str | None = None


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit scaling list | fit | efficiency``."""
    actions: dict[str, tuple[Any, Callable[[Any], None]]] = {
        "list": (ListCommand, _list),
        "fit": (FitCommand, _fit),
        "efficiency": (EfficiencyCommand, efficiency),
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP)
        if not arguments:
            raise UserError(f"scaling does several things: name what to do: {', '.join(actions)}")
        return
    if arguments[0] not in actions:
        raise UserError(f"scaling knows no '{arguments[0]}': choose {', '.join(actions)}")
    command, do = actions[arguments[0]]
    flags = gather(gather(arguments[1:], "--runs", leading=True), "--baseline")
    settings = parse(f"{verb} {arguments[0]}", command, flags, _KEYS)
    do(settings)


_HELP = """usage: megalit scaling ACTION [RUNS ...] [--config FILE] [--KEY VALUE ...]

  list        print the records of runs as a table or CSV
  fit         fit a law to runs or to a CSV file
  efficiency  say how much data runs were worth against a baseline

`megalit scaling ACTION --help` lists an action's settings."""


# list ----------------------------------------------------------------------------------------------------------


def _list(settings: ListCommand) -> None:
    ledger = chosen_runs(settings.runs, settings.where)
    columns = settings.columns or COLUMNS
    found = list(ledger.records.items())
    if settings.sort:
        key = settings.sort
        # Runs that have no such value come last.
        found.sort(key=lambda item: _order(value_of(item[1], key)))
    rows = [[str(folder), *(value_of(record, column) for column in columns)] for folder, record in found]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["run", *columns], *(["" if value is None else value for value in row] for row in rows)])
    if settings.output:
        write_atomic(Path(settings.output), lambda file: file.write(text.getvalue().encode()))
    if settings.format == "csv":
        print(text.getvalue(), end="")
        return
    table = Table(box=None)
    for name in ("run", *columns):
        numeric = any(isinstance(value_of(record, name), int | float) for record in ledger.records.values())
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_shown(value) for value in row))
    _print(table)


def _order(value: Any) -> tuple[int, Any]:
    if value is None:
        return 2, 0
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if value >= 1e5 or value == round(value) else f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


# fit -----------------------------------------------------------------------------------------------------------


def _fit(settings: FitCommand) -> None:
    axes = settings.axes or {"chinchilla": ["N", "D"], "data_constrained": ["N", "D", "U"], "joint": ["K", "N"]}.get(
        settings.law, []
    )
    if not axes:
        raise UserError(f"axes: a power law needs an axis: --axes [U], or another of {', '.join(AXES)} or any key")
    points = _points(settings, [*axes, *([settings.by] if settings.by else [])], axes)
    table = split(points.rows, axes, settings.loss, settings.below)
    how = How(settings.bootstrap, settings.seed, settings.huber, settings.engine, settings.deviation)
    if settings.law == "power":
        fits = fit_power(table, how, settings.by, settings.predict or [])
    elif settings.by or settings.predict:
        raise UserError(f"by and predict are for power laws, not for --law {settings.law}: leave them out")
    else:
        fits = _FITS[settings.law](table, how)
    for fitted in fits:
        show(fitted)
    if settings.output:
        write_json(Path(settings.output), [fitted.to_json() for fitted in fits])


def _points(settings: FitCommand, coordinates: Sequence[str], axes: Sequence[str]) -> Points:
    """The points to fit, once it is said what was left out, and what they do not share."""
    keys = [*coordinates, settings.loss]
    if (settings.csv is None) == (not settings.runs):
        raise UserError("the points come from runs or from --csv: give one of the two")
    if settings.csv is not None:
        return said(points_of_csv(Path(settings.csv), keys), keys)
    records: Records
    if "K" in coordinates:
        ensembles = chosen_ensembles(settings.runs or [], settings.where)
        others = [key for key in coordinates if key != "K"]
        points = said(points_of_ensembles(ensembles, others, settings.loss, settings.average), keys)
        records = {str(path): [member.record for member in found.members] for path, found in ensembles.items()}
        refuse_different_ensembles(points, records, coordinates)
    else:
        ledger = chosen_runs(settings.runs, settings.where)
        points = said(points_of_records(ledger, keys, settings.unfinished), keys)
        records = {str(folder): [record] for folder, record in ledger.records.items()}
        if settings.law == "data_constrained" and list(axes[1:]) == ["D", "U"]:
            refuse_synthetic(points, records)
    say_mixed(points, records, coordinates)
    return points


def _print(table: Table) -> None:
    make_console().print(table)
