"""A run that has begun goes on where its data lies by now, whatever became of what that was made from."""

import shutil
from pathlib import Path

import pytest
import yaml
from data_sets import DataSet, make_rows, write_jsonl
from running import Run, fit_and_stop, losses

from megalit.scaling.records import read_record

NOISE = """
prepare:
  folder: data
  corpus: {inputs: [documents.jsonl], validation_fraction: 0.2}
  token_noise: {count: 3}
  tokenizer: {vocabulary_size: 300}
"""


@pytest.fixture
def from_noise(from_files: Path) -> Path:
    """A configuration that prepares its data from documents alone."""
    documents = [{"id": row["id"], "text": row["text"]} for row in make_rows(40)]
    write_jsonl(from_files.parent / "documents.jsonl", documents)
    from_files.write_text(from_files.read_text().partition("prepare:")[0] + NOISE)
    return from_files


def test_stores_that_were_moved_are_the_same_data(
    run: Run, small: Path, data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small, "--run", "whole") == 0
    shutil.copytree(data_set.folder, tmp_path / "here")
    fit_and_stop(run, "--config", small, "--data.stores", "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert run("fit", "--config", small, "--data.stores", "there") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    # What measures the run finds its data.
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["init_args"]["stores"] == "there"
    assert read_record(tmp_path / "run").config["data"]["init_args"]["stores"] == "there"
    assert run("evaluate", "--run", "run", "--context_lengths", "[]") == 0
    # How a folder is written makes no other run of it.
    assert run("fit", "--config", small, "--data.stores", "there/") == 0
    assert "is finished" in capsys.readouterr().err


def test_other_data_in_another_place_is_refused(
    run: Run, small: Path, from_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_and_stop(run, "--config", small)
    assert run("fit", "--config", from_files, "--run", "other") == 0
    saved = (tmp_path / "run" / "config.yaml").read_bytes()
    capsys.readouterr()
    assert run("fit", "--config", small, "--data.stores", "data/stores") == 2
    assert "the checkpoint belongs to another data plan" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_bytes() == saved


def test_before_its_first_step_a_run_is_known_by_where_its_data_lies(
    run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small) == 0
    for checkpoint in Path("run/checkpoints").iterdir():
        checkpoint.unlink()
    Path("run/record.json").unlink()
    capsys.readouterr()
    assert run("fit", "--config", small, "--data.stores", "elsewhere") == 2
    assert "holds a run with another data.stores" in capsys.readouterr().err


def test_a_run_that_has_begun_prepares_nothing_anew(
    run: Run, from_noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_and_stop(run, "--config", from_noise)
    # Such as on a machine that has only the stores.
    (tmp_path / "documents.jsonl").unlink()
    shutil.rmtree(tmp_path / "data" / "corpus")
    shutil.rmtree(tmp_path / "data" / "token_noise")
    assert run("fit", "--config", from_noise) == 0
    assert read_record(tmp_path / "run").status == "finished"
    assert run("validate", "--config", from_noise) == 0
    assert not (tmp_path / "data" / "corpus").exists()
    # Nor where the stores lie in another place by then.
    (tmp_path / "data" / "stores").rename(tmp_path / "moved")
    assert run("fit", "--config", from_noise, "--data.stores", "moved") == 0
    assert run("validate", "--config", from_noise, "--data.stores", "moved") == 0
    (tmp_path / "moved").rename(tmp_path / "data" / "stores")
    # A new run cannot do without them.
    capsys.readouterr()
    assert run("fit", "--config", from_noise, "--run", "new") == 2
    assert "documents.jsonl" in capsys.readouterr().err


def test_a_configuration_of_before_goes_on(run: Run, from_noise: Path, tmp_path: Path) -> None:
    """A saved configuration names the classes of its settings, which keep their names."""
    fit_and_stop(run, "--config", from_noise)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    noise = {"count": 3, "deletion": 0.1, "substitution": 0.1, "seed": 0}
    assert saved["prepare"]["token_noise"] == {
        "class_path": "megalit.synthesis.recipes.TokenNoise",
        "init_args": noise,
    }
    assert run("fit", "--config", tmp_path / "run" / "config.yaml") == 0
