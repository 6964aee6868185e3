"""Soft-label self-distillation through the command line: what it logs, resumes and refuses."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from data_sets import DataSet
from running import Run

from megalit.callbacks import SelfDistillation, Throughput
from megalit.errors import UserError
from megalit.evaluation.checkpoints import load_model, newest_checkpoint, read_checkpoint
from megalit.scaling.records import read_record


def distilling(small: Path, folder: Path, **settings: Any) -> Path:
    """The small configuration with the callback, as a file."""
    config = yaml.safe_load(small.read_text())
    callback = {"class_path": "megalit.callbacks.SelfDistillation", "init_args": settings}
    config["trainer"] |= {"callbacks": [callback], "log_every_n_steps": 1}
    path = folder / "distilling.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run).state_dict()


def logged(run: Path) -> list[dict[str, str]]:
    (path,) = run.glob("metrics/version_0/metrics.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def test_teachers_from_runs_pull_the_student_and_are_no_part_of_it(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small, "--run", "teacher") == 0
    assert run("fit", "--config", small, "--run", "other", "--seed_everything", 1, "--model.shape", "tiny") == 0
    config = distilling(small, tmp_path, teachers=["teacher", "other"], weight=0.2, final_weight=1.0, temperature=2.0)
    assert run("fit", "--config", config, "--run", "student", "--seed_everything", 2) == 0
    assert weights(Path("student")).keys() == weights(Path("teacher")).keys()
    rows = [row for row in logged(Path("student")) if row["train/distillation"]]
    assert float(rows[-1]["train/distillation"]) < float(rows[0]["train/distillation"])
    # The last step is distillation alone: the loss is the term itself, and the data's is logged all the same.
    assert float(rows[-1]["train/cross_entropy"]) > 0
    assert float(rows[-1]["train/loss"]) == pytest.approx(float(rows[-1]["train/distillation"]), rel=1e-5)
    first, teacher = rows[0], float(rows[0]["train/teacher_cross_entropy"])
    mixed = 0.8 * float(first["train/cross_entropy"]) + 0.2 * float(first["train/distillation"])
    assert float(first["train/loss"]) == pytest.approx(mixed, rel=1e-5)
    assert teacher < float(first["train/cross_entropy"])
    record = read_record(Path("student"))
    # The record's training loss can be compared with a validation, whatever else is minimized.
    nats = {int(row["step"]) + 1: float(row["train/cross_entropy"]) for row in rows}
    since = 0
    for point in record.training_curve:
        expected = [nats[step] for step in range(since + 1, point.step + 1)]
        assert point.losses["train"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
        since = point.step
    assert since == len(nats)
    assert record.config["trainer"]["callbacks"][0]["init_args"]["teachers"] == [
        "teacher",
        "other",
    ]


def stop_at_13(self: Throughput, trainer: lightning.Trainer, *_: object) -> None:
    trainer.should_stop = trainer.global_step == 13


@pytest.mark.parametrize("teachers", ["ema", "teacher"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    teachers: str, run: Run, small: Path, tmp_path: Path
) -> None:
    if teachers != "ema":
        assert run("fit", "--config", small, "--run", "teacher") == 0
    config = distilling(small, tmp_path, teachers=teachers, decay=0.9, final_weight=0.9)
    assert run("fit", "--config", config, "--run", "whole") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", stop_at_13)
        assert run("fit", "--config", config, "--run", "parts") == 0
    assert newest_checkpoint(Path("parts")).name == "step-000000013.ckpt"  # type: ignore[union-attr]
    assert run("fit", "--config", config, "--run", "parts") == 0
    for name, value in weights(Path("whole")).items():
        assert torch.equal(value, weights(Path("parts"))[name]), name


def test_the_average_lies_outside_the_models_state(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", distilling(small, tmp_path, teachers="ema", decay=0.5), "--run", "averaged") == 0
    checkpoint = newest_checkpoint(Path("averaged"))
    assert checkpoint is not None
    state = read_checkpoint(checkpoint)
    (average,) = [value["average"] for key, value in state["callbacks"].items() if "SelfDistillation" in key]
    assert average.keys() == state["state_dict"].keys()
    differences = [float((average[name] - state["state_dict"][name]).abs().max()) for name in average]
    assert max(differences) > 0


def test_what_cannot_be_a_teacher_is_named(
    run: Run, small: Path, data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = distilling(small, tmp_path, teachers="nowhere")
    assert run("fit", "--config", config, "--run", "student") == 2
    assert "nowhere holds no checkpoint" in capsys.readouterr().err
    assert run("fit", "--config", small, "--run", "larger", "--model.vocabulary_size", 5000) == 0
    config = distilling(small, tmp_path, teachers="larger")
    assert run("fit", "--config", config, "--run", "student") == 2
    assert "the teacher larger has a vocabulary of 5000 tokens" in capsys.readouterr().err
    replace(read_record(Path("larger")), status="running").write(Path("larger"))
    assert run("fit", "--config", config, "--run", "student") == 2
    assert "the teacher larger is not finished" in capsys.readouterr().err
    assert run("fit", "--config", small, "--run", "shorter", "--data.context_length", 16) == 0
    config = distilling(small, tmp_path, teachers="shorter")
    assert run("fit", "--config", config, "--run", "student") == 2
    assert "the teacher shorter was trained on windows of 16 tokens and the student has 32" in capsys.readouterr().err
    broken = tmp_path / "step-000000001.ckpt"
    broken.write_bytes(b"no checkpoint")
    config = distilling(small, tmp_path, teachers=str(broken))
    assert run("fit", "--config", config, "--run", "student") == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teachers": []}, "has no teachers"),
        ({"teachers": ["ema", "x"]}, "ema beside others"),
        ({"teachers": "x", "weight": 1.5}, "weight is 1.5"),
        ({"teachers": "x", "temperature": 0.0}, "temperature is 0.0"),
        ({"teachers": "x", "temperature": math.nan}, "temperature is nan"),
        ({"teachers": "x", "decay": 1.0}, "decay is 1.0"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SelfDistillation(**settings)
