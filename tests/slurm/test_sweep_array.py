"""`megalit sweep` as a job array: workers on two nodes share one study."""

import json
from pathlib import Path

import pytest
import yaml
from data_sets import DataSet
from jobs import SMALL, output, submit
from mini_slurm import MiniSlurm

from megalit.scaling.records import read_record

# Slow: `--workers 2` without SLURM is what every run of the tests does.
pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_two_workers_certify_one_point_and_run_nothing_twice(
    slurm: MiniSlurm, data_set: DataSet, tmp_path: Path
) -> None:
    base = SMALL.replace("init_args: {", f"init_args: {{stores: '{data_set.folder}', ")
    (tmp_path / "base.yaml").write_text(base)
    config = {
        "output": str(tmp_path / "sweep"),
        "fit": [f"--config={tmp_path / 'base.yaml'}", "--data.total_tokens=5000"],
        # The middle is far better than either end, so all three are needed, whichever worker is first.
        "space": {"model.learning_rate": [1.0e-6, 3.0e-3, 0.3]},
        "start": {"model.learning_rate": 3.0e-3},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(config))
    array = submit(slurm, tmp_path, "--array", "2", "--", "sweep", "--config", tmp_path / "sweep.yaml")
    states = [slurm.wait(f"{array}_{index}") for index in (0, 1)]
    assert states == ["COMPLETED", "COMPLETED"], output(tmp_path / "sweep")
    certificate = json.loads((tmp_path / "sweep" / "certificate.json").read_text())
    assert certificate["certified"], certificate
    runs = sorted((tmp_path / "sweep" / "runs").iterdir())
    losses = [read_record(run).losses["iid"]["nats_per_token"] for run in runs if run.is_dir()]
    assert len(losses) == certificate["trials"]["done"] == 3
    assert certificate["loss"] == min(losses)
    # Each trial was trained once: one start, one set of metrics.
    assert [len(list((run / "metrics").glob("version_*/metrics.csv"))) for run in runs if run.is_dir()] == [1, 1, 1]
