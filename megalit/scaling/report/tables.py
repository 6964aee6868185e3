"""The report's tables: settings with what differs between them, and every run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megalit.scaling.report.reading import Run
from megalit.scaling.report.setting import REAL_ONLY, Setting, loss_of, stream_label
from megalit.scaling.report.study import Study

NONE = "–"


@dataclass(frozen=True)
class Table:
    """Header cells as (text, explanation), and rows of text."""

    header: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]


def settings_table(study: Study) -> Table:
    """One row for each setting: what differs between them, what they cost, and their losses over seeds."""
    keys = _short_names(study.differing)
    tasks = sorted({task for setting in study.settings for run in setting.runs for task in run.evaluation.tasks})
    header = [
        ("stream", "synthetic streams beside the real one"),
        ("seeds", "runs that differ in nothing else"),
        *((f"{suite} (nats/token)", "validation loss, mean ± standard deviation over seeds") for suite in study.suites),
        *((name, key) for key, name in keys.items()),
        ("parameters", "of the model, embeddings included"),
        ("real tokens", "unique tokens of the real training documents"),
        ("synthetic tokens", "unique synthetic tokens of the streams"),
        ("tokens", "read in the whole run"),
        ("epochs", "of each stream"),
        ("FLOPs", "of training, one run"),
        *((f"{suite} (bits/byte)", "the same in bits for each byte of text") for suite in study.suites),
        *((f"{task} (accuracy)", "share of questions answered rightly") for task in tasks),
    ]
    return Table(tuple(header), tuple(_row(setting, list(keys), study.suites, tasks) for setting in study.settings))


def _row(setting: Setting, keys: Sequence[str], suites: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    record = setting.record
    return (
        setting.name,
        f"{len(setting.runs)}",
        *(str(setting.loss(suite) or NONE) for suite in suites),
        *(_value(setting.settings.get(key)) for key in keys),
        f"{record.parameters['total']:,}",
        f"{record.unique_real_tokens:,}",
        f"{setting.synthetic_tokens:,}",
        f"{setting.tokens:,}",
        ", ".join(f"{name} {epochs:.3g}" for name, epochs in record.epochs.items()),
        f"{record.flops:.2e}",
        *(str(setting.bits_per_byte(suite) or NONE) for suite in suites),
        *(str(setting.accuracy(task) or NONE) for task in tasks),
    )


def runs_table(study: Study) -> Table:
    """One row for each run, the unfinished ones last."""
    header = [
        ("run", "its folder"),
        ("stream", ""),
        ("model seed", ""),
        ("data seed", ""),
        *((f"{suite} (nats/token)", "validation loss") for suite in study.suites),
        ("steps", ""),
        ("time (s)", "training and validation"),
        ("device hours", "all starts, each on its own devices"),
        ("devices", "of the last start"),
        ("status", ""),
    ]
    runs = [(run, setting.name) for setting in study.settings for run in setting.runs]
    runs += [(run, stream_label(run.record)) for run in study.unfinished]
    return Table(tuple(header), tuple(_run_row(run, name, study.suites) for run, name in runs))


def _run_row(run: Run, name: str, suites: Sequence[str]) -> tuple[str, ...]:
    record = run.record
    losses = [loss_of(run, suite) for suite in suites]
    steps = record.plan.get("steps")
    return (
        run.name,
        name,
        str(record.seeds.get("model", NONE)),
        str(record.seeds.get("data", NONE)),
        *(NONE if loss is None else f"{loss:.4f}" for loss in losses),
        f"{record.steps:,}" if record.status == "finished" or not steps else f"{record.steps:,} of {steps:,}",
        f"{record.wall_seconds:,.0f}",
        NONE if record.device_seconds is None else f"{record.device_seconds / 3600:,.2f}",
        str(record.environment.get("devices", NONE)),
        "finished" if record.status == "finished" else "unfinished",
    )


def summary(study: Study) -> list[str]:
    """The findings in a few sentences."""
    runs = sum(len(setting.runs) for setting in study.settings)
    lines = [f"{_many(runs, 'finished run')} of {_many(len(study.settings), 'setting')}."]
    for suite in study.suites:
        for family in study.families:
            best = study.best(family, suite)
            if len(best) < 2:
                continue
            setting, loss = min(best, key=lambda pair: pair[1].mean)
            line = f"Lowest loss on {suite} ({family}): {loss} nats per token, {setting.name}"
            real = next((other for other in best if other[0].stream == REAL_ONLY), None)
            if real is not None and real[0] is not setting:
                line += f"; real documents alone {real[1]}"
            lines.append(f"{line}.")
    return lines


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, where it tells them apart."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {
        key: name if last.count(name) == 1 else key.replace("init_args.", "")
        for key, name in zip(keys, last, strict=True)
    }


def _value(value: Any) -> str:
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value)


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
