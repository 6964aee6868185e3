"""``megalit scaling efficiency``: how much data runs were worth, by any of the published definitions."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from megalit.cli.console import console
from megalit.cli.scaling_fits import How, fit_power, show, split
from megalit.cli.scaling_runs import chosen_runs, said
from megalit.errors import UserError
from megalit.files import write_json
from megalit.scaling.data_efficiency import (
    DataEfficiency,
    data_efficiency,
    interpolated_data_efficiency,
    lowest_shared_loss,
    tokens_to_same_loss,
)
from megalit.scaling.fitting import PowerLawFit
from megalit.scaling.ledger import Curve, Ledger, points_of_records, validation_curve
from megalit.scaling.records import RunRecord
from megalit.scaling.report.measuring import measured_differently
from megalit.scaling.report.setting import REAL_ONLY, differing_in, family_of, settings_of, stream_label

Method = Literal["law", "interpolation", "same_loss"]


@dataclass(frozen=True)
class EfficiencyCommand:
    """Say how much data runs were worth against a baseline.

    Attributes:
        runs: the runs to judge; they may stand right behind ``efficiency``.
        baseline: runs of the baseline on nested subsets of the real documents (``data.real_fraction``), of which the
            best setting of each amount counts; runs of other models, and on more than real documents alone, are left
            out. For ``same_loss`` it is the one run to compare with.
        method: ``law`` inverts the law of the baseline's losses, of all seeds (arXiv 2603.18534), ``interpolation``
            interpolates between their means (slowrun), ``same_loss`` compares the training tokens that two runs'
            validation curves need for one loss (arXiv 2510.01631).
        reference_loss: a loss of the baseline: ``law`` divides by what the law says that it is worth. If not given, the
            baseline's own at each run's amount of real data, as published; where there is none, or the law never
            reaches it, that amount.
        at_loss: the loss that ``same_loss`` compares at; the lowest that both reach if not given.
        axis: amount of real data.
        loss: key of the losses.
        bootstrap: draws for the intervals of ``law``.
        seed: of the bootstrap.
        output: JSON file to write the result to.
    """

    runs: list[str] | None = None
    baseline: list[str] | None = None
    method: Method = "law"
    reference_loss: float | None = None
    at_loss: float | None = None
    axis: str = "U"
    loss: str = "loss"
    bootstrap: int = 200
    seed: int = 0
    output: str | None = None


def efficiency(settings: EfficiencyCommand) -> None:
    """``megalit scaling efficiency``."""
    for name, method in (("reference_loss", "law"), ("at_loss", "same_loss")):
        if getattr(settings, name) is not None and settings.method != method:
            raise UserError(f"{name} belongs to --method {method}, not to {settings.method}: leave it out")
    if not settings.baseline:
        needed = "the run to compare with" if settings.method == "same_loss" else _SUBSETS[settings.method]
        raise UserError(f"baseline: name {needed}")
    result = _of_curves(settings) if settings.method == "same_loss" else _of_losses(settings)
    if settings.output:
        write_json(Path(settings.output), {"method": settings.method, **result})


_SUBSETS = {
    "law": "runs of the baseline on three or more nested subsets of the real documents",
    "interpolation": "runs of the baseline on two or more nested subsets of the real documents",
}


def _of_losses(settings: EfficiencyCommand) -> dict[str, Any]:
    keys = [settings.axis, settings.loss]
    ledger = chosen_runs(settings.runs)
    judged = said(points_of_records(ledger, keys), keys)
    records = {origin: ledger.records[Path(origin)] for origin in judged.origins}
    best = _best_settings(settings, records)
    of_baseline, worth = (_by_law if settings.method == "law" else _by_interpolation)(settings, best)
    runs: dict[str, Any] = {}
    for origin, row in zip(judged.origins, judged.rows, strict=True):
        loss = row[settings.loss]
        found = worth(loss, row[settings.axis])
        interval = f" (95%: {found.interval[0]:.3g} to {found.interval[1]:.3g})" if found.interval else ""
        print(f"{origin}: loss {loss:.4f} is worth {found.factor:.3g} times its real data{interval}")
        for remark in found.remarks:
            if not remark.startswith("baseline: "):
                print(f"  ! {remark}")
        runs[origin] = {"loss": loss, **found.to_json()}
    return {"baseline": of_baseline, "runs": runs}


# Losses at each amount of real data.
_Best = dict[float, list[float]]
# What is written of the baseline, and what a loss on some amount of real data is worth by it.
_Judge = tuple[dict[str, Any], Callable[[float, float], DataEfficiency]]


def _by_law(settings: EfficiencyCommand, best: _Best) -> _Judge:
    rows = [{settings.axis: amount, settings.loss: loss} for amount, losses in best.items() for loss in losses]
    table = split(rows, [settings.axis], settings.loss, None)
    (fitted,) = fit_power(table, How(settings.bootstrap, settings.seed))
    show(fitted)
    law = fitted.fit
    assert isinstance(law, PowerLawFit)

    def worth(loss: float, used: float) -> DataEfficiency:
        reference = settings.reference_loss
        if reference is None and used in best and fmean(best[used]) > law.law.C:
            reference = fmean(best[used])
        found = data_efficiency(loss, law, tokens=used, reference_loss=reference)
        if reference is not None:
            return found
        # A loss at or below the law's asymptote would be worth any amount.
        why = (
            "the law does not reach the baseline's own loss there" if used in best else "the baseline has no run of it"
        )
        remark = f"divided by its amount of real data, {used:.4g}: {why}"
        return replace(found, remarks=(*found.remarks, remark))

    return fitted.to_json(), worth


def _best_settings(settings: EfficiencyCommand, judged: dict[str, RunRecord]) -> _Best:
    """The baseline's losses at each amount of data: those of the seeds of its best setting there."""
    keys = [settings.axis, settings.loss]
    ledger = _of_the_same_model(chosen_runs(settings.baseline), judged)
    points = said(points_of_records(ledger, keys), keys)
    _say_measured_differently({**judged, **{origin: ledger.records[Path(origin)] for origin in points.origins}})
    settings_at: dict[float, dict[str, list[float]]] = {}
    for origin, row in zip(points.origins, points.rows, strict=True):
        setting = json.dumps(settings_of(ledger.records[Path(origin)]), sort_keys=True, default=str)
        settings_at.setdefault(row[settings.axis], {}).setdefault(setting, []).append(row[settings.loss])
    best = {amount: min(found.values(), key=fmean) for amount, found in sorted(settings_at.items())}
    beaten = len(points.rows) - sum(map(len, best.values()))
    if beaten:
        console.print(f"left out: {beaten} runs of the baseline, whose settings another one beats at their {keys[0]}")
    return best


def _of_the_same_model(baseline: Ledger, judged: dict[str, RunRecord]) -> Ledger:
    """The runs on real documents alone that share with those to be judged all but the amount of them.

    Raises:
        UserError: there is none, or those to be judged differ themselves.
    """
    wanted, *others = dict.fromkeys(family_of(record).kin for record in judged.values())
    if others:
        names = dict.fromkeys(name for other in others for name in differing_in(wanted, other))
        raise UserError(f"runs: those to be judged differ in {' and '.join(names)}: judge those of one model at a time")
    kept: dict[Path, RunRecord] = {}
    reasons: Counter[str] = Counter()
    for folder, record in baseline.records.items():
        differing = differing_in(wanted, family_of(record).kin)
        if stream_label(record) != REAL_ONLY:
            reasons["not of real documents alone"] += 1
        elif differing:
            reasons[f"with other {' and '.join(differing)}"] += 1
        else:
            kept[folder] = record
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    if not kept:
        raise UserError(
            f"baseline: no run of real documents alone is of the model that is judged ({counts}): name runs of "
            "RealStream on subsets of the documents, with the judged runs' model, context and tokenizer"
        )
    if counts:
        console.print(f"left out of the baseline: {counts}")
    return Ledger(kept, baseline.problems)


def _say_measured_differently(runs: dict[str, RunRecord], curves: bool = False) -> None:
    for line in measured_differently(runs.items(), curves):
        console.print(line, soft_wrap=True)


def _by_interpolation(settings: EfficiencyCommand, best: _Best) -> _Judge:
    tokens = sorted(best)
    losses = [fmean(best[amount]) for amount in tokens]
    points = [{"x": amount, "loss": loss} for amount, loss in zip(tokens, losses, strict=True)]
    print(f"{settings.loss} over {settings.axis}, the best setting at each of {len(points)} amounts")
    return {"points": points}, lambda loss, used: interpolated_data_efficiency(loss, tokens, losses, used=used)


def _of_curves(settings: EfficiencyCommand) -> dict[str, Any]:
    baselines = _curves(settings.baseline, settings.loss)
    if len(baselines) > 1:
        raise UserError(f"baseline: --method same_loss compares with one run, and {len(baselines)} are named: name one")
    ((name, (_, baseline)),) = baselines.items()
    curves = _curves(settings.runs, settings.loss)
    _say_measured_differently({origin: record for origin, (record, _) in {**curves, **baselines}.items()}, curves=True)
    runs: dict[str, Any] = {}
    for origin, (_, curve) in curves.items():
        loss = lowest_shared_loss(curve, baseline) if settings.at_loss is None else settings.at_loss
        try:
            factor = tokens_to_same_loss(curve, baseline, loss)
        except UserError as error:
            raise UserError(f"{origin} against {name}: {error}") from error
        print(f"{origin}: {name} needs {factor:.3g} times its training tokens for the loss {loss:.4f}")
        runs[origin] = {"loss": loss, "factor": factor}
    return {"baseline": name, "runs": runs}


def _curves(runs: list[str] | None, key: str) -> dict[str, tuple[RunRecord, Curve]]:
    """Records and validation curves of runs; those without one are said, runs that are not finished have one, too."""
    curves = {}
    for folder, record in chosen_runs(runs).records.items():
        curve = validation_curve(record, key)
        if curve[0]:
            curves[str(folder)] = (record, curve)
        else:
            console.print(f"left out: {folder} has no validation curve of {key}")
    if not curves:
        raise UserError(f"no run has a validation curve of {key}: validate during training")
    return curves
