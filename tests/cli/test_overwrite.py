"""A run folder that holds another run, or something else: what is refused, and what ``--overwrite`` replaces."""

import shutil
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import yaml
from data_sets import DataSet
from running import Run, fit_and_stop, losses

from megalit.callbacks import Checkpoint
from megalit.cli.run_folder import RunFolder
from megalit.scaling.records import read_record

FOREIGN = [
    "checkpoints/best.pt",
    "metrics/mine.csv",
    "metrics/version_0/mine.csv",
    "evaluation-mine.json",
    "token_losses/mine.csv",
]


def test_another_configuration_does_not_continue_a_run(run: Run, small: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run("fit", "--config", small) == 0
    assert run("fit", "--config", small, "--model.learning_rate", "0.5") == 2
    assert "model.learning_rate (0.01, not 0.5)" in capsys.readouterr().err
    assert run("fit", "--config", small, "--model.learning_rate", "0.02", "--overwrite", "true") == 0
    assert read_record(tmp_path / "run").config["model"]["learning_rate"] == 0.02


def test_overwriting_removes_only_what_the_program_made(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small) == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert run("fit", "--config", small, "--overwrite", "true") == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("flags", [(), ("--overwrite", "true")])
@pytest.mark.parametrize("config", ["a: 1", "- a", "model: gpt2\ndata: {}\ntrainer: {}", "{", None])
def test_a_folder_of_something_else_is_neither_used_nor_emptied(
    config: str | None,
    flags: tuple[str, ...],
    run: Run,
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = [*FOREIGN, "evaluation.json", *([] if config is None else ["config.yaml"])]
    for name in written:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(config or "mine")
    assert run("fit", "--config", small, *flags) == 2
    said = capsys.readouterr().err
    assert "choose another --run" in said
    assert "overwrite" not in said
    assert "Traceback" not in said
    assert sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.*")) == sorted(
        written
    )


def test_what_lies_among_the_files_of_a_run_stays_when_it_is_replaced(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small) == 0
    folder = tmp_path / "run"
    (folder / "token_losses").mkdir()
    for name in FOREIGN:
        (folder / name).write_text("mine")
    (folder / "token_losses" / "iid-0123456789abcdef.npy").write_text("")
    (folder / "evaluation-step-000000035.json").write_text("{}")
    (folder / "checkpoints" / ".step-000000041.ckpt.writing").mkdir()
    (folder / "checkpoints" / "step-000000099.ckpt").mkdir()  # written in shards
    (folder / "checkpoints" / "step-000000099.ckpt" / "__0_0.distcp").write_text("")
    assert run("fit", "--config", small, "--overwrite", "true") == 0
    for name in FOREIGN:
        assert (folder / name).read_text() == "mine"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.pt",
        "step-000000035.ckpt",
        "step-000000040.ckpt",
    ]
    assert not (folder / "evaluation-step-000000035.json").exists()
    assert not (folder / "metrics" / "version_0" / "metrics.csv").exists()
    assert not (folder / "token_losses" / "iid-0123456789abcdef.npy").exists()


def test_clearing_leaves_no_empty_folder_and_the_configuration(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small) == 0
    (tmp_path / "run" / ".record.json.half.tmp").write_text("{")
    (tmp_path / "run" / "token_losses").mkdir()
    (tmp_path / "run" / "token_losses" / ".iid-0123456789abcdef.npy.half.tmp").write_text("")
    RunFolder(tmp_path / "run").clear()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_run_is_not_replaced_by_one_that_cannot_start(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small) == 0
    before = sorted((tmp_path / "run").rglob("*"))
    assert run("fit", "--config", small, "--data.stores", "nowhere", "--overwrite", "true") == 2
    assert sorted((tmp_path / "run").rglob("*")) == before


@pytest.fixture
def stops_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Let runs stop after a step, as a time limit would, or not."""

    def stop_after(step: int | None) -> None:
        def stop(self: Checkpoint, trainer: lightning.Trainer, *_: object) -> None:
            trainer.should_stop = trainer.global_step == step

        monkeypatch.setattr(Checkpoint, "on_train_batch_end", stop)

    return stop_after


def test_a_command_that_overwrites_continues_what_it_has_begun(
    run: Run,
    small: Path,
    tmp_path: Path,
    stops_after: Callable[[int | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said_by(*flags: str) -> str:
        capsys.readouterr()
        assert run("fit", "--config", small, "--overwrite", "true", *flags) == 0
        return capsys.readouterr().err

    assert run("fit", "--config", small, "--model.learning_rate", "0.5") == 0
    stops_after(12)
    assert "continuing" not in said_by()
    stops_after(20)
    # Settings that change no result make no other run.
    assert "continuing from run/checkpoints/step-000000012.ckpt" in said_by("--checkpoint.keep", "1")
    stops_after(None)
    assert "continuing from run/checkpoints/step-000000020.ckpt" in said_by()
    assert run("fit", "--config", small, "--run", "whole") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    # A finished run is begun anew, and so is one with other settings.
    stops_after(8)
    assert "continuing" not in said_by()
    assert read_record(tmp_path / "run").steps == 8
    assert "continuing" not in said_by("--model.learning_rate", "0.5")


def test_overwriting_begins_an_unfinished_run_of_another_command_anew(
    run: Run, small: Path, stopped: Path, stops_after: Callable[[int | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stops_after(8)
    assert run("fit", "--config", small, "--overwrite", "true") == 0
    assert read_record(stopped).steps == 8
    # What it has begun goes on without the flag, too.
    capsys.readouterr()
    assert run("fit", "--config", small) == 0
    assert "continuing from run/checkpoints/step-000000008.ckpt" in capsys.readouterr().err


def test_a_job_that_slurm_starts_again_replaces_what_it_had_no_time_to(
    run: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small, "--model.learning_rate", "0.5") == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run("fit", "--config", small, "--overwrite", "true") == 0
    replaced = read_record(tmp_path / "run")
    assert replaced.config["model"]["learning_rate"] == 0.01
    capsys.readouterr()
    assert run("fit", "--config", small, "--overwrite", "true") == 0
    assert "is finished" in capsys.readouterr().err
    assert read_record(tmp_path / "run") == replaced


def test_a_run_that_is_killed_while_it_is_replaced_is_replaced_by_the_next_start(
    run: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["fit", "--config", small, "--overwrite", "true"]
    assert run(*flags) == 0

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "clear", killed)
        assert run(*flags) == 130
    assert not (tmp_path / "run" / "record.json").exists()
    capsys.readouterr()
    assert run(*flags) == 0
    assert "continuing" not in capsys.readouterr().err


def test_a_run_on_other_data_replaces_one_that_was_stopped(
    run: Run, small: Path, data_set: DataSet, tmp_path: Path
) -> None:
    """Moved data go on; but who overwrites with the other folder's data asks for another run."""
    shutil.copytree(data_set.folder, tmp_path / "first")
    shutil.copytree(data_set.folder, tmp_path / "second")
    fit_and_stop(run, "--config", small, "--data.stores", "first", "--overwrite", "true")
    fit_and_stop(run, "--config", small, "--data.stores", "second", "--overwrite", "true")
    assert losses(tmp_path / "run")[-1][0] == 12, "begun again, not continued"
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["init_args"]["stores"] == "second"
    assert run("fit", "--config", small, "--data.stores", "second", "--overwrite", "true") == 0
    assert losses(tmp_path / "run")[-1][0] == 40
