"""`megalit generate` as a job array: divided, cancelled, stopped and given again."""

from pathlib import Path

import pytest
from data_sets import make_rows, write_jsonl
from jobs import output, submit
from mini_slurm import MiniSlurm, until

from megalit import cli

pytestmark = pytest.mark.slurm
CONFIG = """
corpus: corpus
output: out
generations: 3
recipe: {class_path: Rephrase}
engine: {class_path: slow_engine.OneByOne, init_args: {seconds: 0.2}}
cleaning: {copy_threshold: null}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "documents.jsonl", [{k: row[k] for k in ("id", "text")} for row in make_rows(40)])
    cli.main(["corpus", "--inputs", "[documents.jsonl]", "--output", "corpus", "--validation_fraction", "0.2"])
    path = tmp_path / "generate.yaml"
    path.write_text(CONFIG)
    return path


def table(folder: Path) -> bytes:
    return (folder / "generations.parquet").read_bytes()


def journal(folder: Path) -> int:
    """Bytes that all shards have written."""
    return sum(path.stat().st_size for path in (folder / "journal").glob("*.jsonl"))


def test_an_array_with_a_task_cancelled_and_submitted_again(
    slurm: MiniSlurm, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("--", "generate", "--config", config)
    array = submit(slurm, tmp_path, "--array", "4", *command)
    tasks = [f"{array}_{index}" for index in range(4)]
    slurm.wait(tasks[3], ["RUNNING"])
    slurm.run("scancel", tasks[3])
    assert [slurm.wait(task) for task in tasks] == ["COMPLETED"] * 3 + ["CANCELLED"], output(out)
    assert not (out / "report.json").exists()

    again = f"{submit(slurm, tmp_path, '--array', '4', '--indices', '3', *command)}_3"
    # This one is told that its time is nearly over, goes back into the queue, and makes the rest.
    before = journal(out)
    until(lambda: journal(out) > before, 300, lambda: output(out))
    slurm.run("scancel", "--batch", "--signal=USR1", again)
    assert slurm.wait(again) == "COMPLETED", output(out)
    assert slurm.job(again)["Restarts"] == "1", output(out)
    assert (out / "report.json").exists()

    # What four tasks and three submissions have made is what one process makes.
    monkeypatch.chdir(tmp_path)
    cli.main(["generate", "--config", str(config), "--output", "one", "--engine.seconds", "0"])
    assert table(out) == table(tmp_path / "one")
