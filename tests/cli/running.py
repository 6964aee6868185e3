"""Running verbs: in this process where that is enough, in a process of their own where it matters."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
from data_sets import DataSet, make_rows, write_jsonl
from forks import Fork, fork

from megalit import cli
from megalit.callbacks import Checkpoint
from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.scaling.records import read_record

SMALL = """
run: run
data:
  class_path: StitchedStream
  init_args: {generations: 3, context_length: 32, global_batch: 4, total_tokens: 5000}
model: {shape: nano, learning_rate: 0.01}
checkpoint: {every_n_steps: 5}
record: {every_n_steps: 1}
trainer: {accelerator: cpu, devices: 1, val_check_interval: 0.5}
"""

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``megalit`` in this process, in a folder of its own; give its exit code."""
    monkeypatch.chdir(tmp_path)

    def megalit(*arguments: str | Path) -> int:
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return megalit


@pytest.fixture
def small(tmp_path: Path, data_set: DataSet) -> Path:
    """A configuration that trains for a second on finished stores."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("init_args: {", f"init_args: {{stores: '{data_set.folder}', "))
    return path


@pytest.fixture
def stopped(run: Run, small: Path) -> Path:
    """The folder of a run that was stopped after step 12."""
    fit_and_stop(run, "--config", small)
    return small.parent / "run"


def fit_and_stop(run: Run, *arguments: str | Path) -> None:
    """``fit``, and stop after step 12, as a time limit or early stopping would."""

    def stop(self: Checkpoint, trainer: lightning.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.global_step == 12

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "on_train_batch_end", stop)
        assert run("fit", *arguments) == 0


@pytest.fixture
def from_files(tmp_path: Path) -> Path:
    """A configuration that prepares its data from a file of the user's."""
    write_jsonl(tmp_path / "documents.jsonl", make_rows(40))
    path = tmp_path / "from_files.yaml"
    prepare = """
prepare:
  folder: data
  corpus: {inputs: [documents.jsonl], validation_fraction: 0.2}
  tokenizer: {vocabulary_size: 300}
"""
    path.write_text(SMALL + prepare)
    return path


def start(*arguments: str | Path, folder: Path, **variables: str) -> Fork:
    """Start ``megalit`` as a process of its own, that has its imports behind it."""
    return fork("megalit", *arguments, folder=folder, **variables)


def start_interpreter(*arguments: str | Path, folder: Path) -> "subprocess.Popen[str]":
    """Start ``megalit`` as a user does, for tests of the start itself and of Lightning's launcher."""
    return subprocess.Popen(
        [sys.executable, "-m", "megalit", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_checkpoint(process: "Fork | subprocess.Popen[str]", run: Path) -> None:
    """Wait until a process has saved a step of a run; it may not end before."""
    while newest_checkpoint(run) is None:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of each point of a run's training curve."""
    return [(point.step, point.losses["train"]) for point in read_record(folder).training_curve]
