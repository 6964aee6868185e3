"""Checkpoints that stay, and a run that goes back to one of them."""

import json
from pathlib import Path

import pytest
import yaml
from running import Run, losses

from megalit.scaling.records import read_record

# Others come at the fifth steps, of which the newest one stays.
KEPT = ("--checkpoint.keep_every_n_steps", "8", "--checkpoint.keep", "1")


def test_checkpoints_at_every_so_many_steps_stay_and_are_a_way_back(
    run: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/runs.md has it: a folder with the configuration and a checkpoint goes on from there, at another rate."""
    assert run("fit", "--config", small, *KEPT) == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    stayed = sorted(int(path.stem.removeprefix("step-")) for path in checkpoints.glob("step-*.ckpt"))
    assert stayed == [8, 16, 24, 32, 35, 40]

    again = tmp_path / "again"
    (again / "checkpoints").mkdir(parents=True)
    (checkpoints / "step-000000016.ckpt").rename(again / "checkpoints" / "step-000000016.ckpt")
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["model"]["learning_rate"] /= 10
    (again / "config.yaml").write_text(yaml.safe_dump(settings))
    capsys.readouterr()
    assert run("fit", "--config", again / "config.yaml", "--run", "again") == 0
    assert "continuing from again/checkpoints/step-000000016.ckpt" in capsys.readouterr().err
    assert read_record(again).status == "finished"
    first, second = losses(tmp_path / "run"), losses(again)
    assert [step for step, _ in second] == list(range(1, 41))
    # Up to there it is the same run, and the next loss is that of the same weights.
    assert second[:17] == first[:17]
    assert second[17:] != first[17:]


def test_a_plan_counts_the_checkpoints_that_stay(run: Run, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for flags in ((), KEPT):
        capsys.readouterr()
        assert run("plan", "--config", small, "--json", *flags) == 0
        disk = json.loads(capsys.readouterr().out)["disk"]
        sizes.append(disk["checkpoints"] / disk["checkpoint"])
    assert sizes == [2 + 1, 1 + 5 + 1]


def test_a_number_of_steps_that_keeps_nothing_is_refused(
    run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small, "--checkpoint.keep_every_n_steps", "0") == 2
    assert "checkpoint.keep_every_n_steps is 0: choose at least 1, or null" in capsys.readouterr().err
