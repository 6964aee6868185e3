"""Runs as processes of their own: starting, continuing, stopping, and whether one is on this machine."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from results import Results
from spec import HARD_LABELS, RUNS, Run

from megalit.cli.console import console
from megalit.errors import UserError
from megalit.streams.store import read_manifest

# How often the processes are looked at.
WATCH_SECONDS = 0.5

# How a teacher is sampled; a sample may be a little longer than the longest passage.
GENERATE = Path(__file__).parents[2] / "configs" / "generate" / "self_distillation.yaml"
SAMPLE_TOKENS = 400


@dataclass(frozen=True)
class Trainer:
    """What all runs share: configurations, passages, and the folders of the data and of the runs.

    With ``quiet``, what a run says goes to a log beside its folder; ``books`` are stores of long documents;
    ``precision`` and ``micro_batch`` are this machine's, where they are not the configurations'.
    """

    configs: Sequence[Path]
    passages: Path
    data: Path
    runs: Path
    quiet: bool
    books: Path | None = None
    precision: str | None = None
    micro_batch: int | None = None

    def start(self, run: Run) -> "subprocess.Popen[bytes]":
        """Train a run, or continue it."""
        command = [sys.executable, "-m", "megalit", "fit"]
        for path in self.configs:
            command += ["--config", str(path)]
        # The stores of samples are made by ``sample``, the others by the first run that needs them.
        prepared = run.stream == "samples"
        command += [f"--run={self.runs / run.name}", f"--prepare.folder={'null' if prepared else self.data}"]
        command += [f"--prepare.corpus.inputs={json.dumps([str(self.passages.resolve())])}"]
        command += [argument.replace(RUNS, str(self.runs)) for argument in run.arguments()]
        if self.precision is not None:
            command.append(f"--trainer.precision={self.precision}")
        if self.micro_batch is not None:
            command.append(f"--model.micro_batch={self.micro_batch}")
        if not self.quiet:
            return subprocess.Popen(command)
        self.runs.mkdir(parents=True, exist_ok=True)
        with self._log(run).open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def sample(self, run: Run, known: Results) -> None:
        """Draw the samples that a run trains on from its teacher, and tokenize them; what is there stays.

        Raises:
            UserError: that failed.
        """
        (teacher,) = run.teachers
        folder = self.runs / teacher.name / HARD_LABELS
        model, said = folder / "model", folder / "samples"
        commands = [] if model.exists() else [["export", f"--run={self.runs / teacher.name}", f"--output={model}"]]
        commands.append(["generate", f"--config={GENERATE}", f"--engine.model={model}", f"--output={said}"])
        commands[-1] += [f"--sampling.max_tokens={SAMPLE_TOKENS}"]
        commands[-1] += [f"--total_tokens={run.generations * known[teacher.name].real_tokens}"]
        commands.append(["tokenize", f"--corpus={self.data / 'corpus'}", f"--generations={json.dumps([str(said)])}"])
        commands[-1] += [f"--tokenizer.name={self.data / 'stores' / 'tokenizer'}", f"--output={folder / 'stores'}"]
        for command in commands:
            if subprocess.run([sys.executable, "-m", "megalit", *command], stdout=subprocess.DEVNULL).returncode:
                raise UserError(f"the samples of {teacher.name} cannot be made: mend what it says above")

    def explain(self, run: Run) -> None:
        """Say why a run failed, where it could not say so itself."""
        if self.quiet:
            lines = [line for line in self._log(run).read_text(errors="replace").splitlines() if line.strip()]
            said = lines[-1] if lines else "it said nothing"
            console.print(f"{run.name}: {said} ({self._log(run)})", markup=False)

    def has(self, run: Run, known: Results) -> bool:
        """Whether the weights that the run's record is about are on this machine."""
        return known.of(run) is not None and known.is_of(self.runs / run.name)

    @property
    def long_store(self) -> str | None:
        """What identifies the long documents."""
        return read_manifest(self.books / "validation").content_hash if self.books else None

    def average(self, name: str, members: Sequence[Run]) -> Path | None:
        """Measure the averages of the first K members, and return the file that says so."""
        output = self.runs / f"ensemble-{name}.json"
        folders = [str(self.runs / run.name) for run in members]
        command = [sys.executable, "-m", "megalit", "ensemble", "--runs", *folders, f"--output={output}"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
        return output if done else None

    def long(self, run: Run) -> Path:
        """Measure a run's losses of long documents, and return the file that says them.

        Raises:
            UserError: they cannot be measured.
        """
        output = self.runs / f"long-{run.name}.json"
        command = [sys.executable, "-m", "megalit", "evaluate", "--run", str(self.runs / run.name)]
        command += [f"--suites={json.dumps({'long': str(self.books)})}", "--separate=false", f"--output={output}"]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise UserError(f"the long documents cannot be measured with {run.name}: mend what it says above")
        return output

    def _log(self, run: Run) -> Path:
        return self.runs / f"{run.name}.log"


def first_to_end(processes: "Mapping[Run, subprocess.Popen[bytes]]") -> tuple[Run, int]:
    """Wait for one of the processes; return its run and its exit status."""
    while True:
        for run, process in processes.items():
            status = process.poll()
            if status is not None:
                return run, status
        time.sleep(WATCH_SECONDS)


def stop(processes: "Iterable[subprocess.Popen[bytes]]") -> None:
    """Let processes save a checkpoint and end."""
    processes = list(processes)
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
