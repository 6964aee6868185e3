"""``megalit sweep``: tune to a locally optimal point, with any number of workers."""

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from optuna.samplers import BaseSampler

from megalit.cli.commands import parse
from megalit.cli.console import console
from megalit.cli.fit_config import ParsedFit, WithoutTrainer, fit_config, parse_fit
from megalit.cli.run_folder import CONFIG, RunFolder
from megalit.cli.sweep_report import show
from megalit.errors import UserError
from megalit.scaling.ledger import at_key
from megalit.streams.remote import is_remote
from megalit.streams.store_set import open_stores
from megalit.tuning.results import Unit
from megalit.tuning.samplers import ConvexSampler, DrawnSampler, ExhaustiveSampler, GridSampler, ShuffledSampler
from megalit.tuning.space import Point, Space, Value
from megalit.tuning.study import SharedStudy
from megalit.tuning.trials import FitRunner, Outcome, flags, run_name, trial_flags
from megalit.tuning.worker import Worker

HELP = """
space: for each setting (dotted key of `megalit fit`) one of
  [1e-3, 3e-3, 1e-2]                           a grid, in order
  {grid: [0.5, 0.75], low: 0, high: 1}         a grid, with bounds for --extend
  {float: [1e-4, 1e-1], log: true}             a range (with random search, or a sampler of Optuna's)
  {int: [1, 64], log: true}
--extend adds a value past an edge of the grid on which the best point lies: a geometric or an arithmetic step, by the
grid's own spacing there (1, 3, 10 is followed by 30; 0.1, 0.2, 0.3 by 0.4), until the point lies inside or `fit`
takes no more.
Any number of the same command may work at a time, on any nodes that share the output folder: each is a worker.
`optuna-dashboard OUTPUT/study.journal` shows the study.
"""

Search = Literal["convex", "grid", "random"]


@dataclass(frozen=True)
class SweepCommand:
    """Tune settings of ``megalit fit``; each trial is a run of its own, and no point is run twice.

    Attributes:
        fit: arguments of `megalit fit`, as on the command line: what all trials have in common.
        space: the settings to vary, and the values of each; see below.
        output: folder of the sweep, shared by all workers.
        search: `convex` goes to a point that beats its neighbours on every axis; `grid` runs all points; `random`
            draws them without repeats; or a sampler of Optuna, by class path.
        suite: validation suite whose final loss is made small.
        seeds: each point is run with each of these as model and data seed; more may be added later. The base
            configuration's if not given.
        start: values to start from; the base configuration's where they are on the grid, else the grid's middle.
        trials: points to try, at most.
        extend: grow the grid past an edge on which the best point lies.
        workers: trials at a time on this machine; they share its GPUs and cores evenly.
        retry_failed: run again what failed (what diverged is a result, and stays).
        dead_after_seconds: a worker that has not been heard of for so long is dead, and its trial is taken over.
        status: say how far the sweep is, and run nothing.
    """

    fit: list[str] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)
    output: str = "sweeps/default"
    search: Search | BaseSampler = "convex"
    suite: str = "iid"
    seeds: list[int] | None = None
    start: dict[str, Any] = field(default_factory=dict)
    trials: int | None = None
    extend: bool = False
    workers: int = 1
    retry_failed: bool = False
    dead_after_seconds: float = 180.0
    status: bool = False


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit sweep``."""
    command = parse(verb, SweepCommand, arguments, HELP)
    folder = Path(command.output)
    if command.status:
        show(SharedStudy(folder, create=False).results, folder)
        return
    space = Space.parse(command.space)
    base = _base_settings(command, space)
    sampler = _sampler(command, space, int(base["seed_everything"]))
    seeds = _seeds(command, base)
    base_seed = seeds[0] if command.seeds is None else None
    study = SharedStudy(folder, command.dead_after_seconds)
    _check_trials(study, command.fit, base_seed)
    study.describe(
        sweep={
            "search": command.search if isinstance(command.search, str) else type(command.search).__name__,
            "suite": command.suite,
            "fit": command.fit,
            "keys": sorted(space.keys),
            "by_number": isinstance(sampler, GridSampler),
        },
        space=space,
        seeds=seeds,
        start={axis.key: at_key(base, axis.key) for axis in space.axes} | command.start,
        retry_failed=command.retry_failed,
    )
    done = study.results.count("done")
    console.print(
        f"{folder}: {f'continuing after {done} trials' if done else 'a new sweep'}; {command.workers} at a time"
    )
    _work(command, sampler, folder, base_seed)
    certificate = show(study.results, folder)
    if not certificate.is_settled and any(study.results.count(status) for status in ("failed", "diverged")):
        raise UserError(f"the sweep ends without a certificate: {certificate.reason}")


# What is asked for ----------------------------------------------------------------------------------------


def _sampler(command: SweepCommand, space: Space, seed: int = 0) -> BaseSampler:
    for name, number in (("workers", command.workers), ("trials", command.trials)):
        if number is not None and number < 1:
            raise UserError(f"{name} is {number}: it is at least 1")
    if command.dead_after_seconds <= 0:
        raise UserError("dead_after_seconds is not positive: mend it")
    if not space.is_grid:
        key = space.ranges[0][0]
        if command.search in ("convex", "grid"):
            raise UserError(f"space.{key} is a range, and search '{command.search}' needs a grid: list values")
        if command.trials is None:
            raise UserError(f"space.{key} is a range, so the search has no end: give trials")
    if isinstance(command.search, BaseSampler):
        return command.search
    if command.search == "random":
        return ShuffledSampler(seed) if space.is_grid else DrawnSampler(seed)
    return ConvexSampler() if command.search == "convex" else ExhaustiveSampler()


def _base_settings(command: SweepCommand, space: Space) -> dict[str, Any]:
    """The resolved base configuration; it is also tried with the first and the last values of the space, so that an
    unknown key or a value of a wrong kind ends the sweep before it begins."""
    stranger = next((key for key in space.keys if key in ("run", "overwrite", "seed_everything", "config")), None)
    if stranger is not None:
        raise UserError(
            f"space.{stranger} is the sweep's own affair: leave it out"
            + (" and use seeds" if stranger == "seed_everything" else "")
        )
    wrong = next((key for key in command.start if key not in space.keys), None)
    if wrong is not None:
        raise UserError(f"start.{wrong} is not in space: mend it")
    for axis in space.axes:
        if axis.key in command.start and command.start[axis.key] not in axis.values:
            raise UserError(f"start.{axis.key} is not on the grid: choose one of {', '.join(map(str, axis.values))}")
    ends: list[list[Value]] = [[axis.values[0] for axis in space.axes], [axis.values[-1] for axis in space.axes]]
    if isinstance(command.fit, list) and "fit" in command.fit[:1]:
        raise UserError("fit holds the verb itself: leave out 'fit'")
    for values in ends:
        fit_config([*command.fit, *flags([axis.key for axis in space.axes], values)])
    base = parse_fit(ParsedFit, command.fit)
    if base.config.overwrite:
        raise UserError("fit.overwrite is not for sweeps, which go on with the trials that are there: leave it out")
    _check_suite(command, base.config)
    return base.plain_config


def _check_suite(command: SweepCommand, config: Any) -> None:
    """Refuse a suite that no trial will have a loss on, as far as that is known before anything is trained or built."""
    if config.trainer.limit_val_batches == 0:
        raise UserError("fit sets trainer.limit_val_batches to 0, so no trial has a loss to compare: leave it out")
    if not config.data.class_path.startswith("megalit."):
        return  # a data module of the user's own may have others
    if command.suite != "iid":
        raise UserError(f"suite is '{command.suite}', and `megalit fit` validates on iid alone: leave suite out")
    stores = config.data.init_args.get("stores")
    if config.prepare.folder is not None:
        # Another worker's first trial may be building the stores.
        held_out = config.prepare.corpus.validation_fraction > 0
    else:
        is_there = stores is not None and not is_remote(stores) and any(Path(stores).glob("[!.]*/manifest.json"))
        held_out = not is_there or open_stores(Path(stores)).validation is not None
    if not held_out:
        raise UserError(
            "the token stores hold no held-out documents, so no trial has a loss to compare: build them with a "
            "corpus.validation_fraction"
        )


def _can_run(command: SweepCommand, keys: Sequence[str], point: Point) -> bool:
    """Whether ``fit`` takes a point's values, which may lie beyond the grid that was asked for."""
    try:
        parse_fit(WithoutTrainer, [*command.fit, *flags(keys, point)])
    except UserError:
        return False
    return True


def _check_trials(study: SharedStudy, fit: Sequence[str], base_seed: int | None) -> None:
    """Refuse to go on with trials of another base: a file that ``fit`` names may have changed since they were run."""
    if not study.study.trials:
        return
    results = study.results
    seen: set[int] = set()
    for unit in results.valid:
        run = study.folder / "runs" / run_name(unit, results.space)
        if unit.seed not in seen and (run / CONFIG).exists():
            seen.add(unit.seed)
            held = yaml.safe_load((run / CONFIG).read_text())
            asked = fit_config([*fit, *trial_flags(unit, results.space, run, base_seed)])
            difference = RunFolder(run).difference(held, asked)
            if difference and difference.startswith(("model.seed", "data.seed")):
                raise UserError(
                    f"{study.folder} holds trials that an earlier version gave the base's own seeds ({difference}), so "
                    "those of one point are equal: choose another --output"
                )
            if difference:
                raise UserError(
                    f"{study.folder} holds trials with another {difference}: give `fit` what it was, or choose another "
                    "--output"
                )


def _seeds(command: SweepCommand, base: dict[str, Any]) -> list[int]:
    seeds = command.seeds if command.seeds is not None else [int(base["seed_everything"])]
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError("seeds are none, repeated or negative: list different ones")
    return seeds


# The work -------------------------------------------------------------------------------------------------


def _work(command: SweepCommand, sampler: BaseSampler, folder: Path, base_seed: int | None) -> None:
    """Run this machine's workers until the search is over."""
    runner = FitRunner(command.fit, folder, command.suite, command.workers, _gpus(), base_seed)
    stop = threading.Event()

    def worker(slot: int) -> None:
        study = SharedStudy(folder, command.dead_after_seconds)
        can_run = partial(_can_run, command, study.results.space.keys)

        def started(unit: Unit) -> None:
            console.print(f"running    {run_name(unit, study.results.space)}", soft_wrap=True)

        def ended(unit: Unit, outcome: Outcome) -> None:
            said = f"{outcome.loss:.4f}" if outcome.loss is not None else outcome.error
            console.print(f"{outcome.status:<10} {run_name(unit, study.results.space)}: {said}", soft_wrap=True)

        Worker(study, sampler, runner, command.trials, command.extend, can_run, slot, started, ended).run(stop)

    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with ThreadPoolExecutor(command.workers) as pool:
        futures = [pool.submit(worker, slot) for slot in range(command.workers)]
        try:
            pending = set(futures)
            while pending and not any(future.done() and future.exception() for future in futures):
                # Signals are handled between two waits.
                pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION).not_done
        finally:
            stop.set()
            for number, handler in previous.items():
                signal.signal(number, handler)
    for future in futures:
        future.result()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]
