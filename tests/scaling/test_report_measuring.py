"""Losses compare where they were measured on the same thing, and it is said where they were not."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run

from megalit.scaling.records import read_record
from megalit.scaling.report import find_runs
from megalit.scaling.report.measuring import measured_differently
from megalit.scaling.report.study import make_study

OTHER_DOCUMENTS = {"plan": {"stores": [{"real": "ab12", "validation": "56ef"}]}}
SEPARATE = {"plan": {"separate_validation": True}}


def limited(batches: float) -> dict[str, Any]:
    return {"trainer": {"limit_val_batches": batches}}


def make_changed(folder: Path, stream: str, fraction: float, changes: dict[str, Any]) -> None:
    make_run(folder, stream, 0 if stream == "real" else 4, real_fraction=fraction)
    value = json.loads((folder / "record.json").read_text())
    value["plan"]["settings"] |= changes.get("plan", {})
    value["config"]["trainer"] |= changes.get("trainer", {})
    (folder / "record.json").write_text(json.dumps(value))


RUNS = {"a": ("stitched", 1.0), "b": ("real", 1.0), "c": ("real", 0.5), "d": ("real", 0.25)}


@pytest.mark.parametrize("odd", ["b", "c"])
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (OTHER_DOCUMENTS, "held-out documents"),
        (SEPARATE, "separate_validation"),
        (limited(0.1), "limit_val_batches"),
        (limited(1), "limit_val_batches"),  # one batch
    ],
)
def test_losses_that_were_measured_on_something_else_are_named(
    tmp_path: Path, odd: str, changes: dict[str, Any], what: str
) -> None:
    """Whether the run is in the family or one of the subsets that its baseline's law is made of."""
    for name, (stream, fraction) in RUNS.items():
        make_changed(tmp_path / name, stream, fraction, changes if name == odd else {})
    _, (problem,) = make_study(find_runs([str(tmp_path)]))
    assert problem.startswith(f"the losses of {odd} were measured with other {what} than those of d and 2 more, ")


@pytest.mark.parametrize("batches", [0, 1.0])  # none of them, and all
def test_a_limit_that_leaves_nothing_out_is_none(tmp_path: Path, batches: float) -> None:
    for name, (stream, fraction) in RUNS.items():
        make_changed(tmp_path / name, stream, fraction, limited(batches) if name == "b" else {})
    _, problems = make_study(find_runs([str(tmp_path)]))
    assert not problems


def test_a_limit_of_validations_during_training_is_one_of_curves(tmp_path: Path) -> None:
    for name, (stream, fraction) in RUNS.items():
        make_changed(tmp_path / name, stream, fraction, limited(0.1) if name == "b" else {})
        value = json.loads((tmp_path / name / "record.json").read_text())
        (tmp_path / name / "record.json").write_text(json.dumps(value | {"measured_whole": True}))
    _, problems = make_study(find_runs([str(tmp_path)]))
    assert not problems
    records = {name: read_record(tmp_path / name) for name in RUNS}
    (line,) = measured_differently(records.items(), curves=True)
    assert line.startswith("the losses of b were measured with other limit_val_batches")


def test_the_held_out_documents_are_the_runs_own(tmp_path: Path) -> None:
    """A plan of several folders does not say which is; a run that replays another corpus is measured as the others."""
    replayed, own = {"real": "ef01", "validation": "7777"}, {"real": "ab12", "validation": "56ef"}
    for name, (stream, fraction) in RUNS.items():
        make_changed(tmp_path / name, stream, fraction, {"plan": {"stores": [own]}})
    value = json.loads((tmp_path / "a" / "record.json").read_text())
    value["plan"]["settings"]["stores"] = [replayed, own]
    for held_out, said in (("56ef", 0), ("another", 1), (None, 0)):
        (tmp_path / "a" / "record.json").write_text(json.dumps(value | {"held_out": held_out}))
        _, problems = make_study(find_runs([str(tmp_path)]))
        assert len(problems) == said


def test_a_baseline_of_an_earlier_version_is_one_setting_with_a_later_seed(tmp_path: Path) -> None:
    """Plans named stores that real documents alone do not read, and configurations lacked later settings."""
    for seed in range(2):
        make_run(tmp_path / str(seed), "real", 0, seed=seed)
    value = json.loads((tmp_path / "1" / "record.json").read_text())
    value["plan"]["settings"]["stores"][0]["generations"] = "9999"
    value["config"]["data"].setdefault("init_args", {})["sets"] = None
    (tmp_path / "1" / "record.json").write_text(json.dumps(value))
    study, _ = make_study(find_runs([str(tmp_path)]))
    assert [len(setting.runs) for setting in study.settings] == [2]


def test_runs_of_other_models_are_not_compared(tmp_path: Path) -> None:
    make_changed(tmp_path / "a", "real", 1.0, {})
    make_changed(tmp_path / "b", "real", 1.0, {"plan": {"tokenizer": "another", **OTHER_DOCUMENTS["plan"]}})
    _, problems = make_study(find_runs([str(tmp_path)]))
    assert not problems
