"""`megalit fit` on a real SLURM of two nodes: as on one, through signals, requeues and the death of a node."""

import random
import time
from pathlib import Path

import pytest
from data_sets import DataSet, make_rows, write_jsonl
from jobs import SMALL, curves, finished, output, same, submit, until_step, weights
from mini_slurm import NODES, MiniSlurm
from tracing import windows

from megalit.scaling.records import read_record

pytestmark = pytest.mark.slurm
TWO_NODES = ("--nodes", "2", "--time", "10", "--signal_seconds", "20")


@pytest.fixture(scope="module")
def config(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few seconds on finished stores."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL.replace("init_args: {", f"init_args: {{stores: '{data_set.folder}', "))
    return path


@pytest.fixture(scope="module")
def whole(cluster: MiniSlurm, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two nodes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    job = submit(cluster, folder, *TWO_NODES, "--", "fit", "--config", config)
    finished(cluster, job, folder / "runs" / "default")
    return folder / "runs" / "default"


def test_two_nodes_train_as_one(slurm: MiniSlurm, whole: Path, config: Path, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, "--nodes", "1", "--", "fit", "--config", config, "--run", "one")
    finished(slurm, job, tmp_path / "one")
    steps = read_record(whole).steps
    assert read_record(whole).environment["devices"] == "2 x cpu"
    assert read_record(tmp_path / "one").environment["devices"] == "1 x cpu"
    # Each rank read half of every step's windows, and both together those of the single one.
    assert {path.name for path in whole.glob("windows-*")} == {"windows-0-0.txt", "windows-0-1.txt"}
    assert windows(whole) == windows(tmp_path / "one")
    assert sorted(windows(whole)) == list(range(1, steps + 1))
    for two, one in zip(*(curves(folder)[0] for folder in (whole, tmp_path / "one")), strict=True):
        assert two.losses["train"] == pytest.approx(one.losses["train"], abs=1e-4)


@pytest.mark.parametrize("named", ["USR1", pytest.param("TERM", marks=pytest.mark.slow)])
def test_signalled_at_a_random_moment_it_ends_as_if_undisturbed(
    slurm: MiniSlurm, whole: Path, config: Path, tmp_path: Path, named: str
) -> None:
    job = submit(slurm, tmp_path, *TWO_NODES, "--", "fit", "--config", config, "--run", "run")
    slurm.wait(job, ["RUNNING"])
    # From the first moment of the program to the middle of its training.
    if random.random() < 0.7:
        until_step(slurm, job, tmp_path / "run", random.randrange(20, 120, 20))
    time.sleep(random.uniform(0, 1.5))
    slurm.run("scancel", f"--signal={named}", job)
    finished(slurm, job, tmp_path / "run", restarts=1)
    assert f"stopped by SIG{named}" in output(tmp_path / "run")
    assert f"job {job} is back in SLURM's queue" in output(tmp_path / "run")
    assert same(tmp_path / "run", whole)
    assert windows(tmp_path / "run") == windows(whole)
    assert not list((tmp_path / "run").glob("hpc_ckpt*"))


@pytest.mark.slow
def test_preempted_by_another_job_it_comes_back(slurm: MiniSlurm, whole: Path, config: Path, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, *TWO_NODES, "--", "fit", "--config", config, "--run", "run")
    until_step(slurm, job, tmp_path / "run", 20)
    other = slurm.out("sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")
    assert slurm.wait(other) == "COMPLETED"
    finished(slurm, job, tmp_path / "run", restarts=1)
    assert same(tmp_path / "run", whole)


def test_a_node_that_dies_without_a_signal(slurm: MiniSlurm, whole: Path, config: Path, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, *TWO_NODES, "--", "fit", "--config", config, "--run", "run")
    until_step(slurm, job, tmp_path / "run", 40)
    slurm.run("scontrol", "update", f"nodename={NODES[1]}", "state=down", "reason=test")
    slurm.wait(job, ["PENDING"])
    slurm.run("scontrol", "update", f"nodename={NODES[1]}", "state=resume")
    finished(slurm, job, tmp_path / "run", restarts=1)
    assert "continuing from" in output(tmp_path / "run")
    assert same(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_job_that_its_user_cancels_stays_cancelled(slurm: MiniSlurm, config: Path, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, *TWO_NODES, "--", "fit", "--config", config, "--run", "run")
    until_step(slurm, job, tmp_path / "run", 20)
    slurm.run("scancel", job)
    assert slurm.wait(job) == "CANCELLED"
    time.sleep(1)
    assert slurm.job(job)["JobState"] == "CANCELLED"
    assert "stopped by SIGTERM" in output(tmp_path / "run")
    assert "the same command continues" in output(tmp_path / "run")


@pytest.mark.slow
def test_stores_are_built_first(slurm: MiniSlurm, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "documents.jsonl", make_rows(40))
    prepare = """
prepare:
  folder: data
  corpus: {inputs: [documents.jsonl], validation_fraction: 0.2}
  tokenizer: {vocabulary_size: 300}
"""
    (tmp_path / "mine.yaml").write_text(SMALL.replace("24_000", "4_000") + prepare)
    job = submit(slurm, tmp_path, *TWO_NODES, "--", "fit", "--config", "mine.yaml", "--run", "run")
    assert slurm.job(job)["Dependency"].startswith("afterok:")
    finished(slurm, job, tmp_path / "run")
    assert "tokenized" in output(tmp_path / "run")
    assert weights(tmp_path / "run")
