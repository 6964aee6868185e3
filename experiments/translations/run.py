"""The megadocs effect on real text, without a language model: trains the runs of ``table.py`` one by one.

    python experiments/translations/run.py --passages passages.jsonl.gz
    python experiments/translations/run.py --report true

It goes on after the runs that have a record in ``results/``, can be stopped at any time, and says after each
run what is known so far. README.md tells what the passages are.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import CLI
from report import write_report
from results import Results, setup_fingerprint
from table import GROUPS, TUNED, Run

from megalit.cli.console import console
from megalit.errors import UserError

HERE = Path(__file__).parent


def main(
    passages: str | None = None,
    scale: str = "small",
    only: Sequence[str] = (),
    budget_minutes: float | None = None,
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
        report: write the report of what is known, and train nothing.
        output: folder of the data and the runs.
        results: folder of the records and the report, with a folder for each scale.
        configs: further configurations of ``megalit fit`` for all runs; they are another setup.
    """
    groups = list(only) or list(GROUPS)
    for name in groups:
        if name not in GROUPS:
            raise UserError(f"--only names '{name}', which is no group: choose among {', '.join(GROUPS)}")
    if scale not in TUNED:
        raise UserError(f"--scale is {scale}: choose {' or '.join(TUNED)}")
    folder = Path(results) / scale
    if report:
        write_report(Results(folder, None), scale, folder)
        return
    if passages is None or not Path(passages).is_file():
        raise UserError(f"--passages {passages} is no file: name the file of documents with generations")
    base = [HERE / "base.yaml", HERE / f"{scale}.yaml", *map(Path, configs)]
    known = Results(folder, setup_fingerprint(Path(passages), base))
    began = time.monotonic()
    failed = []
    for group, run in table(groups, scale, known):
        if budget_minutes is not None and time.monotonic() - began > 60 * budget_minutes:
            console.print("the time is used up: the same command goes on")
            break
        console.print(f"{group}: {run.name}")
        place = Path(output) / scale / run.name
        if not train(run, base, Path(passages), Path(output) / "data", place):
            # A learning rate may be too high, and the other runs are worth as much without it.
            failed.append(run.name)
            continue
        result = known.add(run, place)
        console.print(f"{run.name}: {result.loss:.4f} nats per token")
        write_report(known, scale, folder)
    if failed:
        raise UserError(f"{', '.join(failed)} failed: mend what they say above, then give the same command")


def table(groups: Sequence[str], scale: str, known: Results) -> Iterator[tuple[str, Run]]:
    """The runs without a record, with their group, in the table's order."""
    for group in groups:
        for run in GROUPS[group](TUNED[scale]):
            if run.name not in known:
                yield group, run


def train(run: Run, configs: Sequence[Path], passages: Path, data: Path, folder: Path) -> bool:
    """Train one run, or continue it, as a process of its own; say whether it is finished."""
    command = [sys.executable, "-m", "megalit", "fit"]
    for path in configs:
        command += ["--config", str(path)]
    command += [f"--run={folder}", f"--prepare.folder={data}", f"--prepare.corpus.inputs=[{passages}]"]
    return subprocess.run([*command, *run.arguments()]).returncode == 0


if __name__ == "__main__":
    try:
        CLI(main, as_positional=False)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
