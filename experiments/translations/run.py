"""The megadocs effect on real text, without a language model: trains the runs of ``table.py`` one by one.

    python experiments/translations/run.py --passages passages.jsonl.gz
    python experiments/translations/run.py --report true

It goes on after the runs that have a record in ``results/``, can be stopped at any time, and says after each
run what is known so far. README.md tells what the passages are.
"""

import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from grid import START
from jsonargparse import CLI
from report import write_report
from results import Results, setup_fingerprint, tuned
from spec import Run
from table import GROUPS, MEMBERS, ensembles, seeded
from training import Trainer, first_to_end, stop

from megalit.cli.console import console
from megalit.errors import UserError
from megalit.preemption import STOPPED

HERE = Path(__file__).parent
# When so many runs have failed and none has succeeded, it is not the runs' fault.
HOPELESS = 3


def main(
    passages: str | None = None,
    scale: str = "small",
    only: Sequence[str] = (),
    matching: str = "",
    budget_minutes: float | None = None,
    jobs: int = 1,
    books: str | None = None,
    report: bool = False,
    output: str = "runs/translations",
    results: str = str(HERE / "results"),
    configs: Sequence[str] = (),
    precision: str | None = None,
    micro_batch: int | None = None,
) -> None:
    """Train what has no record yet, in the table's order, and write the report.

    Args:
        passages: JSON lines of documents with generations (README.md); needed to train.
        scale: ``small`` (minutes a run on one core) or ``full`` (a GPU).
        only: groups of the table, such as ``[search, seeds]`` (default: all of them).
        matching: train only runs whose names match this regular expression somewhere; a search that it leaves out is
            not waited for.
        budget_minutes: start no run after that time.
        jobs: runs at a time; with several, what each says is in a log beside its folder.
        books: stores of long documents, which the tuned runs are measured on.
        report: write the report of what is known, and train nothing.
        output: folder of the data and the runs.
        results: folder of the records and the report, with a folder for each scale.
        configs: further configurations of ``megalit fit`` for all runs; they are another setup.
        precision: of this machine, where the scale's own is slow (``32-true`` on a CPU without bf16). It is the same
            setup, and stands in the records.
        micro_batch: windows in a pass on this machine; it changes no result.
    """
    agenda = Agenda(tuple(only) or tuple(GROUPS), scale, matching)
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}: choose at least 1")
    folder = Path(results) / scale
    if report:
        write_report(Results(folder, None), scale, folder)
        return
    if passages is None or not Path(passages).is_file():
        raise UserError(f"--passages {passages} is no file: name the file of documents with generations")
    if books is not None and not (Path(books) / "validation").is_dir():
        raise UserError(f"--books {books} holds no validation store: build the stores as README.md says")
    base = [HERE / "base.yaml", HERE / f"{scale}.yaml", *map(Path, configs)]
    for path in base:
        if not path.is_file():
            raise UserError(f"--configs names {path}, which is no file: name configurations of `megalit fit`")
    setup = setup_fingerprint(Path(passages), base)
    known = Results(folder, setup)
    runs = Path(output) / f"{scale}-{setup[:8]}"
    trainer = Trainer(
        base,
        Path(passages),
        Path(output) / "data",
        runs,
        quiet=jobs > 1,
        books=Path(books) if books else None,
        precision=precision,
        micro_batch=micro_batch,
    )
    ends = math.inf if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    failed = train_table(agenda, known, trainer, jobs, ends)
    if failed:
        raise UserError(f"{', '.join(failed)} failed: mend what they say above, then give the same command")


@dataclass(frozen=True)
class Agenda:
    """What of the table to train: groups of runs, in this order, and of them those whose names match.

    Raises:
        UserError: there is no such group or scale, or the expression is none.
    """

    groups: Sequence[str]
    scale: str
    matching: str = ""

    def __post_init__(self) -> None:
        for name in self.groups:
            if name not in GROUPS:
                raise UserError(f"--only names '{name}', which is no group: choose among {', '.join(GROUPS)}")
        if self.scale not in START:
            raise UserError(f"--scale is {self.scale}: choose {' or '.join(START)}")
        try:
            re.compile(self.matching)
        except re.error as error:
            raise UserError(f"--matching '{self.matching}' is no regular expression ({error}): mend it") from None

    def asked(self, known: Results) -> list[tuple[str, list[Run]]]:
        """The runs of each group, at the best settings known by now."""
        best = tuned(self.scale, known)
        return [
            (name, [run for run in GROUPS[name](best) if re.search(self.matching, run.name)]) for name in self.groups
        ]

    def runs(self, known: Results) -> Iterator[tuple[str, list[Run]]]:
        """Those of them that have no record."""
        for group, runs in self.asked(known):
            yield group, [run for run in runs if known.of(run) is None]


def train_table(agenda: Agenda, known: Results, trainer: Trainer, jobs: int, ends: float) -> list[str]:
    """Train the agenda's runs that have no record, some at a time, and return the names of those that failed.

    Raises:
        UserError: runs were told to stop, or the first ones all failed, or no run has a name that matches.
    """
    # Once: later the best settings, and with them the names, may move away from what matches.
    if agenda.matching and not any(runs for _, runs in agenda.asked(known)):
        raise UserError(f"--matching '{agenda.matching}' matches no run of {', '.join(agenda.groups)}: mend it")
    failed: list[str] = []
    unmeasured: set[str] = set()
    under_way: dict[Run, subprocess.Popen[bytes]] = {}
    try:
        while True:
            while len(under_way) < jobs and time.monotonic() < ends:
                following = next_run(agenda, known, trainer, under_way, failed)
                if following is None:
                    break
                group, run = following
                console.print(f"{group}: {run.name}")
                if run.stream == "samples":
                    trainer.sample(run, known)
                under_way[run] = trainer.start(run)
            # Beside the runs that were just started, so that none waits for it.
            unmeasured |= measure(known, agenda.scale, trainer, unmeasured)
            if known:
                write_report(known, agenda.scale, known.folder)
            if not under_way:
                if time.monotonic() >= ends:
                    console.print("the time is used up: the same command goes on")
                    return failed
                for run, teacher in untaught(agenda, known, trainer):
                    reason = "was trained elsewhere: delete its record" if known.of(teacher) else "is not trained"
                    console.print(f"{run.name} needs {teacher.name}, which {reason}", markup=False)
                return failed
            run, status = first_to_end(under_way)
            del under_way[run]
            if status == STOPPED:
                raise UserError("a run was told to stop: the same command goes on")
            if status:
                # A learning rate may be too high, and the other runs are worth as much without it.
                trainer.explain(run)
                failed.append(run.name)
                if len(failed) == HOPELESS and not known:
                    raise UserError(f"the first {HOPELESS} runs failed: mend what they say above")
                continue
            result = known.add(run, trainer.runs / run.name, trainer.precision)
            console.print(f"{run.name}: {result.loss:.4f} nats per token")
    finally:
        stop(under_way.values())


def next_run(
    agenda: Agenda, known: Results, trainer: Trainer, under_way: Container[Run], failed: Container[str]
) -> tuple[str, Run] | None:
    """The agenda's first run that has yet to be begun, with its group."""
    for group, without_record in agenda.runs(known):
        runs = [run for run in without_record if run.name not in failed]
        for run in runs:
            if run not in under_way and all(trainer.has(teacher, known) for teacher in run.teachers):
                return group, run
        if group == "search" and runs:
            return None  # what comes after it depends on where it ends
    return None


def untaught(agenda: Agenda, known: Results, trainer: Trainer) -> Iterator[tuple[Run, Run]]:
    """Runs that cannot be trained because a teacher has no weights on this machine, with that teacher."""
    for _, runs in agenda.runs(known):
        for run in runs:
            missing = [teacher for teacher in run.teachers if not trainer.has(teacher, known)]
            if missing:
                yield run, missing[0]


def measure(known: Results, scale: str, trainer: Trainer, unmeasured: Container[str] = ()) -> set[str]:
    """Measure the ensembles whose members are all on this machine, and long documents with the tuned runs.

    Args:
        known, scale, trainer: of the runs.
        unmeasured: names of ensembles that could not be measured, and are left out.

    Returns:
        The names of those that cannot be measured either.
    """
    failed = set()
    for best in tuned(scale, known).values() if trainer.long_store else ():
        for run in seeded(best):
            if trainer.has(run, known) and not known.long(run, trainer.long_store):
                known.add_long(run, trainer.long(run))
    for name, members in ensembles(tuned(scale, known)).items():
        there = list(takewhile(lambda run: trainer.has(run, known), members))
        averages = known.averages(name)
        if name not in unmeasured and len(there) >= max(MEMBERS, len(averages["logits"]) + 1 if averages else 0):
            output = trainer.average(name, there)
            if output is not None:
                known.add_average(name, there, output)
            else:
                failed.add(name)
    return failed


def interrupt(*_: object) -> None:
    """What a terminal's Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    try:
        CLI(main, as_positional=False)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
