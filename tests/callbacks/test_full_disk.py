"""A disk that is full when a checkpoint is due, every five steps of forty."""

import os
import signal
from pathlib import Path

import pytest
import torch
from forks import fork, ranks
from full_disk import writer
from running import Run, losses

from megalit.evaluation.checkpoints import newest_checkpoint

SAID = "is not saved (No space left on device): free space; the run goes on and tries again at the next one"


def saved(run: Path) -> list[int]:
    """Steps of a run's checkpoints; nothing else may be there."""
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    return [int(name.removeprefix("step-").removesuffix(".ckpt")) for name in names]


def test_a_run_goes_on_and_saves_itself_when_there_is_room(
    run: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two in a row, twice.
    monkeypatch.setattr(torch, "save", writer(full=(2, 3, 5, 6)))
    assert run("fit", "--config", small) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if SAID in line]
    assert [line.split()[2] for line in said] == ["10", "15", "25", "30"]
    assert saved(tmp_path / "run") == [35, 40]
    assert len(losses(tmp_path / "run")) == 40


@pytest.mark.parametrize(("full", "left"), [(range(3, 99), [5, 10]), (range(8, 99), [30, 35])])
def test_the_third_time_in_a_row_and_the_last_step_end_it(
    full: range,
    left: list[int],
    run: Run,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tries: list[int] = []
    monkeypatch.setattr(torch, "save", writer(full, tries.append))
    assert run("fit", "--config", small) == 2
    assert "the disk is full or a quota is reached" in capsys.readouterr().err.splitlines()[-1]
    # At the last step, whose checkpoint is due, once more.
    assert len(tries) == full.start + (2 if full.start == 3 else 1)
    assert saved(tmp_path / "run") == left


@pytest.mark.parametrize(("full", "code", "left"), [((2,), 75, [5, 10]), ((2, 3), 2, [5])])
def test_a_run_that_is_told_to_stop_does_not_say_that_it_is_saved(
    full: tuple[int, ...],
    code: int,
    left: list[int],
    run: Run,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal comes while the second checkpoint is written, which is then tried again."""

    def at(number: int) -> None:
        if number == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(torch, "save", writer(full, at))
    assert run("fit", "--config", small) == code
    assert saved(tmp_path / "run") == left


def test_all_ranks_go_on(small: Path, tmp_path: Path) -> None:
    flags = ("fit", "--config", small, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    script = Path(__file__).with_name("full_disk.py")
    processes = [fork(script, *flags, folder=tmp_path, FULL="2,3", **rank) for rank in ranks(2)]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert saved(tmp_path / "run") == [35, 40]
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert torch.load(newest, weights_only=True)["global_step"] == 40
