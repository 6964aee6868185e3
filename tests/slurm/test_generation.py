"""`megalit generate` as a job array: divided, cancelled, stopped and given again."""

from pathlib import Path

import pytest
from data_sets import make_rows, write_jsonl
from jobs import output, submit
from mini_slurm import MiniSlurm, until

from megalit import cli
from megalit.files import read_json

pytestmark = pytest.mark.slurm
CONFIG = """
corpus: corpus
output: out
generations: 3
recipe: {class_path: Rephrase}
engine: {class_path: Scripted, init_args: {seconds: SECONDS}}
cleaning: {copy_threshold: null}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "documents.jsonl", [{k: row[k] for k in ("id", "text")} for row in make_rows(40)])
    cli.main(["corpus", "--inputs", "[documents.jsonl]", "--output", "corpus", "--validation_fraction", "0.2"])
    path = tmp_path / "generate.yaml"
    path.write_text(CONFIG.replace("SECONDS", "0.2"))
    return path


def table(folder: Path) -> bytes:
    return (folder / "generations.parquet").read_bytes()


def test_an_array_with_a_task_cancelled_and_submitted_again(
    slurm: MiniSlurm, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    # The third task waits, so that it is cancelled before it has made anything.
    array = submit(slurm, tmp_path, "--array", "4", "--indices", "0-3%3", "--", "generate", "--config", config)
    slurm.run("scancel", f"{array}_3")
    tasks = [f"{array}_{index}" for index in range(4)]
    states = [slurm.wait(task, seconds=150) for task in tasks]
    assert states == ["COMPLETED"] * 3 + ["CANCELLED"], output(out)
    assert not (out / "report.json").exists()

    again = submit(slurm, tmp_path, "--array", "4", "--indices", "3", "--", "generate", "--config", config)
    # This one is told that its time is nearly over, goes back into the queue, and makes the rest.
    journal = out / "journal"
    size = sum(path.stat().st_size for path in journal.glob("*.jsonl"))
    grown = lambda: sum(path.stat().st_size for path in journal.glob("*.jsonl")) > size  # noqa: E731
    until(grown, 90, lambda: output(out))
    slurm.run("scancel", "--batch", "--signal=USR1", f"{again}_3")
    assert slurm.wait(f"{again}_3", seconds=150) == "COMPLETED", output(out)
    assert slurm.job(f"{again}_3")["Restarts"] == "1", output(out)
    assert (out / "report.json").exists()

    # What four tasks and three submissions have made is what one process makes.
    monkeypatch.chdir(tmp_path)
    cli.main(["generate", "--config", str(config), "--output", "one"])
    assert table(out) == table(tmp_path / "one")
    assert (
        read_json(out / "manifest.json")["generations"] == read_json(tmp_path / "one" / "manifest.json")["generations"]
    )
