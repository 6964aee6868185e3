"""Where Lightning's own handling of signals fails, and that ours does not: the same job, signalled the same way."""

import sys
import time
from pathlib import Path

import pytest
from jobs import HERE, ROOT
from mini_slurm import MiniSlurm, until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def start(slurm: MiniSlurm, folder: Path, handlers: str, parked: str) -> str:
    """A job of two nodes; those ranks wait in Python, the others in an all-reduce when this returns."""
    script = folder / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1 --time=5 --open-mode=append --job-name=train\n"
        f"#SBATCH --output={folder}/out.log\n"
        f"srun {sys.executable} {HERE / 'lightning_job.py'} {folder} {handlers} {parked}\n"
    )
    job = slurm.out("sbatch", "--parsable", script, PYTHONPATH=str(ROOT))
    here = [folder / "parked-0", folder / "parked-1"]
    until(lambda: all(path.exists() for path in here), 300, lambda: said(folder) + str(slurm.job(job)))
    time.sleep(0.5)
    return job


def said(folder: Path) -> str:
    path = folder / "out.log"
    return path.read_text() if path.exists() else ""


def signal(slurm: MiniSlurm, folder: Path, job: str, name: str) -> None:
    slurm.run("scancel", f"--signal={name}", job)
    time.sleep(0.5)
    (folder / "signalled").touch()


def test_usr1_inside_a_collective_hangs_with_lightnings_handler(slurm: MiniSlurm, tmp_path: Path) -> None:
    job = start(slurm, tmp_path, "lightning", "0")
    signal(slurm, tmp_path, job, "USR1")
    time.sleep(8)
    # Rank 0's handler waits at the barrier of its checkpoint for rank 1, which waits for rank 0 in the all-reduce.
    assert slurm.job(job)["JobState"] == "RUNNING"
    assert slurm.job(job)["Restarts"] == "0"
    assert not (tmp_path / "end-0").exists()


def test_usr1_inside_a_collective_is_survived_with_ours(slurm: MiniSlurm, tmp_path: Path) -> None:
    job = start(slurm, tmp_path, "ours", "0")
    signal(slurm, tmp_path, job, "USR1")
    resumed(slurm, tmp_path, job)


def test_sigterm_counts_as_success_with_lightnings_handler(slurm: MiniSlurm, tmp_path: Path) -> None:
    job = start(slurm, tmp_path, "lightning", "01")
    signal(slurm, tmp_path, job, "TERM")
    # Ten of forty steps done, nothing saved, not in the queue: and SLURM is told that all is well.
    assert slurm.wait(job) == "COMPLETED"
    assert slurm.job(job)["Restarts"] == "0"
    assert not (tmp_path / "end-0").exists()
    assert not list(tmp_path.rglob("*.ckpt"))


def test_sigterm_is_survived_with_ours(slurm: MiniSlurm, tmp_path: Path) -> None:
    job = start(slurm, tmp_path, "ours", "01")
    signal(slurm, tmp_path, job, "TERM")
    resumed(slurm, tmp_path, job)


def resumed(slurm: MiniSlurm, folder: Path, job: str) -> None:
    """The job came back to the step at which it was stopped, and went on to its end."""
    assert slurm.wait(job) == "COMPLETED", said(folder)
    assert slurm.job(job)["Restarts"] == "1", said(folder)
    for rank in range(2):
        assert (folder / f"start-1-{rank}").read_text() == "11"
        assert (folder / f"end-{rank}").read_text() == "40"
