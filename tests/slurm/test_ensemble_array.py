"""`megalit ensemble` as a job array: each task trains a member, the same command measures them."""

import json
from pathlib import Path

import pytest
from data_sets import DataSet
from jobs import SMALL, output, submit
from mini_slurm import MiniSlurm

from megalit import cli
from megalit.scaling.records import read_record

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_two_tasks_train_two_members(
    slurm: MiniSlurm, data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SMALL.replace("init_args: {", f"init_args: {{stores: '{data_set.folder}', "))
    command = (
        "ensemble",
        "--members",
        "2",
        "--config",
        config,
        "--data.total_tokens",
        "5000",
        "--run",
        tmp_path / "two",
    )
    array = submit(slurm, tmp_path, "--array", "2", "--", *command)
    states = [slurm.wait(f"{array}_{index}") for index in (0, 1)]
    assert states == ["COMPLETED", "COMPLETED"], output(tmp_path / "two")
    records = [read_record(tmp_path / "two" / f"member-{index}") for index in (0, 1)]
    assert [record.seeds["data"] - records[0].seeds["data"] for record in records] == [0, 1]
    monkeypatch.chdir(tmp_path)
    cli.main([str(part) for part in command])
    alone = json.loads((tmp_path / "two" / "ensemble.json").read_text())["suites"]["iid"]["alone"]
    assert alone == pytest.approx([record.losses["iid"]["nats_per_token"] for record in records], rel=1e-4)
