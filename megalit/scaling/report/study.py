"""What was compared: runs that differ only in their seeds are one setting, and settings that share model, real data,
context and optimizer can be held against each other."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalit.scaling.published import PublishedCurve
from megalit.scaling.records import RunRecord
from megalit.scaling.report.measuring import measured_differently
from megalit.scaling.report.reading import Ensemble, Findings, Run
from megalit.scaling.report.setting import (
    KINDS,
    REAL_ONLY,
    Family,
    Loss,
    Setting,
    differing_in,
    family_of,
    key_of,
    loss_of,
)

# Of an evaluation's conditions: which points of the curves there are, and the arithmetic.
_NO_MATTER = {"lengths", "bucket", "precision"}


@dataclass(frozen=True)
class Study:
    """Settings and ensembles, ready to be compared."""

    settings: tuple[Setting, ...]
    ensembles: tuple[tuple[Setting, Ensemble], ...]
    unfinished: tuple[Run, ...]
    suites: tuple[str, ...]
    published: tuple[PublishedCurve, ...] = ()

    def published_over(self, x_axis: str, suite: str) -> tuple[PublishedCurve, ...]:
        """Published losses that are drawn beside ours, over an axis and on a suite of the same meaning."""
        return tuple(c for c in self.published if (c.x_axis, c.y_axis) == (x_axis, f"loss, {suite}"))

    @property
    def families(self) -> list[Family]:
        return sorted({setting.family for setting in self.settings})

    @property
    def compared(self) -> list[Family]:
        """Families with more than the real documents alone; all, where there is none: subsets of the real documents,
        which a baseline's law is made of, have nothing to be compared with."""
        more = {setting.family for setting in self.settings if setting.stream != REAL_ONLY}
        return sorted(more) or self.families

    def of(self, family: Family, suite: str) -> list[tuple[Setting, Loss]]:
        """A family's settings that have a loss on a suite."""
        return [(s, loss) for s in self.settings if s.family == family and (loss := s.loss(suite)) is not None]

    def best(self, family: Family, suite: str) -> list[tuple[Setting, Loss]]:
        """The setting of lowest loss for each stream and number of generations, in the order of streams."""
        best: dict[tuple[str, int | None], tuple[Setting, Loss]] = {}
        for setting, loss in self.of(family, suite):
            key = (setting.stream, setting.generations)
            if key not in best or loss.mean < best[key][1].mean:
                best[key] = (setting, loss)
        return sorted(best.values(), key=lambda pair: order_of(pair[0]))

    def best_by_stream(self, family: Family, suite: str) -> list[tuple[Setting, Loss]]:
        """The setting of lowest loss for each stream."""
        best: dict[str, tuple[Setting, Loss]] = {}
        for setting, loss in self.best(family, suite):
            if setting.stream not in best or loss.mean < best[setting.stream][1].mean:
                best[setting.stream] = (setting, loss)
        return list(best.values())

    @property
    def differing(self) -> list[str]:
        """Configuration keys in which settings differ, without those of the stream's class."""
        keys = {key: None for setting in self.settings for key in setting.settings}
        return [
            key
            for key in keys
            if key != "data.class_path" and len({json.dumps(s.settings.get(key)) for s in self.settings}) > 1
        ]


def make_study(findings: Findings) -> tuple[Study, list[str]]:
    """Join seeds. Gives the study, and a line for each run that has no finite loss, and for losses and evaluations that
    do not compare with the others'."""
    suites: dict[str, None] = {}
    groups: dict[str, list[Run]] = {}
    problems = []
    for run in findings.runs:
        found = [suite for suite in {**run.record.losses, **run.evaluation.suites} if loss_of(run, suite) is not None]
        suites |= dict.fromkeys(found)
        if not found:
            problems.append(f"{run.name} has no finite loss: it diverged, or had no validation documents")
        groups.setdefault(key_of(run.record), []).append(run)
    settings = sorted((Setting(tuple(runs)) for runs in groups.values()), key=order_of)
    problems += _measured_differently(settings)
    of_run = {run.folder: setting for setting in settings for run in setting.runs}
    ensembles = [(_setting_of(ensemble, of_run), ensemble) for ensemble in findings.ensembles]
    problems += _mixed_families(findings.ensembles)
    for _, ensemble in ensembles:
        suites |= {suite: None for average in ensemble.losses.values() for suite in average}
    for run in findings.unfinished:
        points = run.record.validation_curve
        suites |= {suite: None for point in points for suite in point.losses if not suite.startswith("ensemble/")}
    return Study(tuple(settings), tuple(ensembles), findings.unfinished, tuple(suites)), problems


def _setting_of(ensemble: Ensemble, of_run: Mapping[Path, Setting]) -> Setting:
    """The setting that all members are runs of; where they differ, one of their own."""
    of_members = [of_run.get(member.folder) for member in ensemble.members]
    first = of_members[0]
    is_one = first is not None and all(setting is first for setting in of_members)
    return first if first is not None and is_one else Setting(ensemble.members)


def _mixed_families(ensembles: Sequence[Ensemble]) -> Iterator[str]:
    """Ensembles whose members differ in what is compared in one panel."""
    for ensemble in ensembles:
        first, *others = (family_of(member.record) for member in ensemble.members)
        names = dict.fromkeys(name for other in others for name in differing_in(first, other))
        if names:
            yield (
                f"the members of {ensemble.name} differ in {' and '.join(names)}: it is shown beside what its first "
                "member can be compared with"
            )


def _measured_differently(settings: Sequence[Setting]) -> Iterator[str]:
    """Losses that were not measured in the same way in a family and the subsets of its baseline, and suites and
    benchmarks that were not in all runs of a family."""
    kin: dict[Family, list[tuple[str, RunRecord]]] = {}
    for setting in settings:
        kin.setdefault(setting.family.kin, []).extend((run.name, run.record) for run in setting.runs)
    for runs in kin.values():
        yield from measured_differently(runs)
    first: dict[tuple[Family, str], tuple[Run, dict[str, Any]]] = {}
    for setting in settings:
        for run in setting.runs:
            for name, conditions in run.evaluation.conditions.items():
                counts = {key: value for key, value in conditions.items() if key not in _NO_MATTER}
                other, known = first.setdefault((setting.family, name), (run, counts))
                differing = [key for key in {**known, **counts} if known.get(key) != counts.get(key)]
                if differing:
                    yield (
                        f"{name} was measured with another {' and '.join(differing)} in {run.name} than in "
                        f"{other.name}: what was found does not compare, give `megalit evaluate` the same settings"
                    )


def order_of(setting: Setting) -> tuple[Any, ...]:
    """Settings in the order of model and data, stream (as listed above), generations, real epochs."""
    labels = list(KINDS.values())
    kind = next((number for number, label in enumerate(labels) if setting.stream.startswith(label)), len(labels))
    return (setting.family, kind, setting.stream, setting.generations or 0, setting.real_epochs or 0.0)
