"""Jobs of the SLURM tests: submitted by `megalit slurm`, watched through what they write."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from mini_slurm import MiniSlurm, until

from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.scaling.records import CurvePoint, read_record

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# At a higher learning rate, sums in another order grow apart within 30 steps, on one process, too.
SMALL = """
data:
  class_path: StitchedStream
  init_args: {generations: 3, context_length: 32, global_batch: 4, total_tokens: 24_000}
model: {shape: nano, learning_rate: 0.001}
checkpoint: {every_n_steps: 20}
record: {every_n_steps: 1}
trainer: {accelerator: cpu, val_check_interval: 0.3, callbacks: [tracing.Windows]}
"""


def submit(slurm: MiniSlurm, folder: Path, *arguments: str | Path) -> str:
    """Give `megalit slurm` in a folder; its answer is the job's id. Jobs find the tests' own modules."""
    command = [sys.executable, "-m", "megalit", "slurm", *map(str, arguments)]
    environment = {**slurm.environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def output(folder: Path) -> str:
    """What the jobs of a folder of results have said."""
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted((folder / "slurm").glob("*.log")))


def finished(slurm: MiniSlurm, job: str, folder: Path, restarts: int = 0) -> None:
    """Wait for a job's good end, after so many starts besides the first."""
    state = slurm.wait(job)
    assert state == "COMPLETED", f"{slurm.job(job)}\n{output(folder)}"
    assert slurm.job(job)["Restarts"] == str(restarts), output(folder)


def until_step(slurm: MiniSlurm, job: str, folder: Path, step: int) -> None:
    """Wait until a run has saved a step."""

    def reached() -> bool:
        newest = newest_checkpoint(folder)
        return newest is not None and int(re.findall(r"\d+", newest.name)[0]) >= step

    until(reached, 300, lambda: f"{slurm.job(job)}\n{output(folder)}")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The last weights of a run."""
    newest = newest_checkpoint(folder)
    assert newest is not None
    state: dict[str, torch.Tensor] = torch.load(newest, weights_only=True)["state_dict"]
    return state


def curves(folder: Path) -> tuple[list[CurvePoint], list[CurvePoint]]:
    """Every training and validation loss of a finished run."""
    record = read_record(folder)
    assert record.status == "finished"
    return record.training_curve, record.validation_curve


def same(one: Path, other: Path) -> bool:
    """Whether two runs agree in every loss and weight, to the bit."""
    first, second = weights(one), weights(other)
    return curves(one) == curves(other) and all(torch.equal(first[name], second[name]) for name in first)
