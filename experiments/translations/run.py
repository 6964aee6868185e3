"""The megadocs effect on real text, without a language model: trains the runs of ``table.py`` one by one.

    python experiments/translations/run.py --passages passages.jsonl.gz
    python experiments/translations/run.py --report true

It goes on after the runs that have a record in ``results/``, can be stopped at any time, and says after each
run what is known so far. README.md tells what the passages are.
"""

import math
import subprocess
import sys
import time
from collections.abc import Container, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import CLI
from report import write_report
from results import Results, setup_fingerprint, tuned
from table import GROUPS, RUNS, START, Run, ensembles

from megalit.cli.console import console
from megalit.errors import UserError

HERE = Path(__file__).parent


def main(
    passages: str | None = None,
    scale: str = "small",
    only: Sequence[str] = (),
    budget_minutes: float | None = None,
    jobs: int = 1,
    report: bool = False,
    output: str = "runs/translations",
    results: str = str(HERE / "results"),
    configs: Sequence[str] = (),
) -> None:
    """Train what has no record yet, in the table's order, and write the report.

    Args:
        passages: JSON lines of documents with generations (README.md); needed to train.
        scale: ``small`` (minutes a run on one core) or ``full`` (a GPU).
        only: groups of the table, such as ``[key, seeds]`` (default: all of them).
        budget_minutes: start no run after that time.
        jobs: runs at a time; with several, what each says is in a log beside its folder.
        report: write the report of what is known, and train nothing.
        output: folder of the data and the runs.
        results: folder of the records and the report, with a folder for each scale.
        configs: further configurations of ``megalit fit`` for all runs; they are another setup.
    """
    groups = list(only) or list(GROUPS)
    for name in groups:
        if name not in GROUPS:
            raise UserError(f"--only names '{name}', which is no group: choose among {', '.join(GROUPS)}")
    if scale not in START:
        raise UserError(f"--scale is {scale}: choose {' or '.join(START)}")
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}: choose at least 1")
    folder = Path(results) / scale
    if report:
        write_report(Results(folder, None), scale, folder)
        return
    if passages is None or not Path(passages).is_file():
        raise UserError(f"--passages {passages} is no file: name the file of documents with generations")
    base = [HERE / "base.yaml", HERE / f"{scale}.yaml", *map(Path, configs)]
    known = Results(folder, setup_fingerprint(Path(passages), base))
    ends = math.inf if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    trainer = Trainer(base, Path(passages), Path(output) / "data", Path(output) / scale, quiet=jobs > 1)
    failed = train_table(groups, scale, known, trainer, jobs, ends)
    if failed:
        raise UserError(f"{', '.join(failed)} failed: mend what they say above, then give the same command")


@dataclass(frozen=True)
class Trainer:
    """What all runs share: configurations, passages, and the folders of the data and of the runs."""

    configs: Sequence[Path]
    passages: Path
    data: Path
    runs: Path
    quiet: bool

    def train(self, run: Run) -> bool:
        """Train one run, or continue it, as a process of its own; say whether it is finished."""
        command = [sys.executable, "-m", "megalit", "fit"]
        for path in self.configs:
            command += ["--config", str(path)]
        command += [f"--run={self.runs / run.name}", f"--prepare.folder={self.data}"]
        command += [f"--prepare.corpus.inputs=[{self.passages}]"]
        command += [argument.replace(RUNS, str(self.runs)) for argument in run.arguments()]
        if not self.quiet:
            return subprocess.run(command).returncode == 0
        log = self.runs / f"{run.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            done = subprocess.run(command, stdout=file, stderr=file).returncode == 0
        if not done:
            console.print(f"{run.name}: {last_line(log)} ({log})")
        return done


def last_line(log: Path) -> str:
    """What a process said last."""
    return ([line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["(nothing)"])[-1]


def train_table(
    groups: Sequence[str], scale: str, known: Results, trainer: Trainer, jobs: int, ends: float
) -> list[str]:
    """Train the table's runs that have no record, some at a time, and return the names of those that failed."""
    begun: set[str] = set()
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        under_way: dict[Future[bool], Run] = {}
        while True:
            while len(under_way) < jobs and (run := following(groups, scale, known, begun, ends)):
                begun.add(run.name)
                under_way[pool.submit(trainer.train, run)] = run
            if not under_way:
                return failed
            for job in wait(under_way, return_when=FIRST_COMPLETED).done:
                run = under_way.pop(job)
                if not job.result():
                    # A learning rate may be too high, and the other runs are worth as much without it.
                    failed.append(run.name)
                    continue
                result = known.add(run, trainer.runs / run.name)
                console.print(f"{run.name}: {result.loss:.4f} nats per token")
                measure_averages(known, scale, trainer.runs)
                write_report(known, scale, known.folder)


def following(groups: Sequence[str], scale: str, known: Results, begun: Container[str], ends: float) -> Run | None:
    """The table's first run that has no record and was not begun, at the best settings known by now."""
    best = tuned(scale, known)
    for group in groups:
        for run in GROUPS[group](best):
            if run.name not in known and run.name not in begun:
                if time.monotonic() > ends:
                    console.print("the time is used up: the same command goes on")
                    return None
                console.print(f"{group}: {run.name}")
                return run
    return None


def measure_averages(known: Results, scale: str, runs: Path) -> None:
    """Measure the ensembles whose members have all been trained, where those are on this machine."""
    for name, members in ensembles(tuned(scale, known)).items():
        there = all(run.name in known and (runs / run.name).is_dir() for run in members)
        if not there or known.average_file(name).exists():
            continue
        output = runs / f"ensemble-{name}.json"
        folders = [str(runs / run.name) for run in members]
        command = [sys.executable, "-m", "megalit", "ensemble", "--runs", *folders, f"--output={output}"]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0:
            known.add_average(name, members, output)


if __name__ == "__main__":
    try:
        CLI(main, as_positional=False)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
