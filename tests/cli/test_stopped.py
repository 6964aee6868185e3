"""``megalit fit``, told to stop: from its first moment on, saved, and never counted as a success."""

import signal
import subprocess
import time
from pathlib import Path

from forks import Fork
from running import start, start_interpreter, wait_for_checkpoint

from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.scaling.records import read_record


def handles(process: "subprocess.Popen[str]", number: int) -> bool:
    """Whether a process handles a signal by now."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def stop(process: "Fork | subprocess.Popen[str]", number: int) -> str:
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    return errors


def test_stopped_at_its_first_moment_and_at_work_it_ends_as_if_undisturbed(small: Path, tmp_path: Path) -> None:
    command = ("fit", "--config", small, "--data.total_tokens", "10_000")
    # While torch is still being imported there is nothing to save, and no reason to wait.
    first = start_interpreter(*command, folder=tmp_path)
    while not handles(first, signal.SIGUSR1):
        time.sleep(0.002)
    assert "megalit: stopped by SIGUSR1: the same command continues" in stop(first, signal.SIGUSR1)
    assert not (tmp_path / "run").exists()

    # Alone it asks nobody, so it looks at each step.
    flags = ("--checkpoint.every_n_steps", "1", "--preemption.every_n_steps", "100000")
    process = start(*command, *flags, folder=tmp_path)
    wait_for_checkpoint(process, tmp_path / "run")
    errors = stop(process, signal.SIGTERM)
    assert "megalit: stopped by SIGTERM at step" in errors
    stopped = newest_checkpoint(tmp_path / "run")
    assert stopped is not None
    assert f"{int(stopped.stem.split('-')[1]):,}: the same command continues" in errors

    for name in ("run", "whole"):
        process = start(*command, "--run", name, folder=tmp_path)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert (f"continuing from run/checkpoints/{stopped.name}" in errors) is (name == "run")
    run, whole = read_record(tmp_path / "run"), read_record(tmp_path / "whole")
    assert run.training_curve == whole.training_curve
    assert run.validation_curve == whole.validation_curve


def test_processes_that_lightning_starts_itself_stop_together_and_go_on(small: Path, tmp_path: Path) -> None:
    command = ("fit", "--config", small, "--data.total_tokens", "10_000", "--checkpoint.every_n_steps", "1")
    command += ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    process = start_interpreter(*command, folder=tmp_path)
    wait_for_checkpoint(process, tmp_path / "run")
    assert "megalit: stopped by SIGTERM at step" in stop(process, signal.SIGTERM)
    process = start_interpreter(*command, folder=tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "continuing from run/checkpoints/" in errors
    assert read_record(tmp_path / "run").status == "finished"
