"""``megalit ensemble``: members that differ in their seeds, and what their average is worth."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch

from megalit.callbacks import SelfDistillation
from megalit.cli.commands import gather, parse
from megalit.cli.console import Step, console
from megalit.cli.fit_config import ParsedFit, fit_config, parse_fit
from megalit.cli.models import TrainedModel, check_members, named_device, open_model, parse_device
from megalit.cli.run_folder import RunFolder
from megalit.cli.suites import Cutting, check_unseen, suite_store
from megalit.cli.tables import ensemble_tables
from megalit.errors import UserError
from megalit.evaluation.ensembles import kept_losses, logit_curve, losses_file, probability_curve, select
from megalit.evaluation.losses import Losses, token_losses
from megalit.files import write_json
from megalit.modeling.out_of_memory import no_room, told_out_of_memory
from megalit.preemption import STOP, STOPPED, Preempted, requeue_job, say_stopped
from megalit.scaling.ensembles import FILE
from megalit.scaling.fitting import fit_power_law
from megalit.scaling.records import FILE as RECORD
from megalit.scaling.records import read_record, refuse_unfinished
from megalit.scaling.report.setting import NOT_ALIKE, are_alike
from megalit.streams.loading import SuiteWindows
from megalit.streams.store import TokenStore
from megalit.tuning.trials import seed_flags

# How often a member's process is looked at.
_WATCH_SECONDS = 0.5

HELP = """
All other arguments are those of `megalit fit`; its --run is the folder of the ensemble, with a run of its own for each
member. The same command goes on where it was stopped, and with more --members trains those that are missing.
  megalit ensemble --members 5 --config configs/quickstart.yaml --run runs/five
  megalit ensemble --members 5 --chain previous --config configs/quickstart.yaml --run runs/chain
  megalit slurm --array 5 -- ensemble --members 5 --config mine.yaml --run runs/five   (and once more without slurm)
  megalit ensemble --runs runs/a runs/b --output average.json                  (runs that are finished)
  megalit ensemble --runs runs/a/checkpoints/step-*.ckpt --output average.json (snapshots of one run)
"""


@dataclass(frozen=True)
class EnsembleCommand:
    """Train members that differ in model and data seed, and measure the average of the first K of them.

    Attributes:
        members: how many.
        runs: finished runs, checkpoints or exported models to measure instead of training.
        only: train this member alone (counted from 0), as one task of a job array does, and measure nothing.
        chain: each member also distils from the one before it (`previous`) or from all before it (`all`).
        chain_weight: share of the distillation in the loss.
        chain_temperature: of the distillation.
        suites: validation suites by name: a store, a folder of stores, or null for the run's held-out documents.
        logits: measure averages of raw logits, too; all members are in memory at once.
        batch: windows in a pass.
        device: `auto`, or torch's name for one.
        output: file of the result (default: `ensemble.json` in the ensemble's folder).
    """

    members: int = 5
    runs: list[str] = field(default_factory=list)
    only: int | None = None
    chain: Literal["previous", "all"] | None = None
    chain_weight: float = 0.5
    chain_temperature: float = 1.0
    suites: dict[str, str | None] = field(default_factory=lambda: {"iid": None})
    logits: bool = True
    batch: int = 8
    device: str = "auto"
    output: str | None = None


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit ensemble``."""
    own, of_fit = divided(arguments)
    command = parse(verb, EnsembleCommand, gather(own, "--runs"), HELP)
    _check_settings(command)
    if command.runs:
        if of_fit:
            raise UserError(f"{of_fit[0]} is given beside --runs, which trains nothing: leave one of them out")
        if command.output is None:
            raise UserError("runs that are there already have no folder in common: name a file with --output")
        for run in command.runs:
            refuse_unfinished(run, Path(run))
        measure([Path(run) for run in command.runs], command, Path(command.output))
        return
    fit = parse_fit(ParsedFit, of_fit)
    if fit.config.overwrite:
        # Members that are there are what an ensemble goes on with, at each start.
        raise UserError("overwrite is not for ensembles: choose another --run, or remove the members to be made anew")
    config = fit.plain_config
    STOP.install(config["preemption"]["signals"])  # which members handle, too
    folder = Path(config["run"])
    members = [folder / f"member-{number}" for number in range(command.members)]
    chosen = range(command.members) if command.only is None else [command.only]
    for number in chosen:
        _train(number, members, of_fit, config, command)
    if command.only is None:
        _leave_if_told(config)
        measure(members, command, Path(command.output) if command.output else folder / FILE)


def _check_settings(command: EnsembleCommand) -> None:
    """Refuse, before anything is trained, what would be found out after it."""
    for name in ("members", "batch"):
        if getattr(command, name) < 1:
            raise UserError(f"{name} is {getattr(command, name)}: choose at least 1")
    if command.only is not None and not 0 <= command.only < command.members:
        raise UserError(f"only is {command.only} and members are counted from 0 to {command.members - 1}: choose one")
    if not command.suites:
        raise UserError("no suite is named, so there is nothing to measure: name one in suites")
    parse_device(command.device)
    if command.chain is not None:
        SelfDistillation("a member", weight=command.chain_weight, temperature=command.chain_temperature)


def divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """This verb's own arguments, and those of ``fit``."""
    known = {f"--{part.name}" for part in fields(EnsembleCommand)} | {"-h", "--help"}
    own: list[str] = []
    of_fit: list[str] = []
    for argument in arguments:
        if argument.startswith("-"):
            into = own if argument.partition("=")[0] in known else of_fit
        elif not (own or of_fit):
            raise UserError(f"'{argument}' belongs to no flag: write --config {argument}")
        into.append(argument)
    return own, of_fit


# Members ------------------------------------------------------------------------------------------------


def _train(
    number: int, members: Sequence[Path], of_fit: Sequence[str], config: dict[str, Any], command: EnsembleCommand
) -> None:
    """Train a member, or go on with it; a finished one says so."""
    seed = int(config["seed_everything"]) + number
    flags = ["--run", str(members[number]), *seed_flags(seed)]
    if command.chain is not None and number:
        teachers = members[number - 1 : number] if command.chain == "previous" else members[:number]
        unfinished = next((teacher for teacher in teachers if RunFolder(teacher).finished is None), None)
        if unfinished is not None:
            raise UserError(f"member {number} distils from {unfinished}, which is not finished: train that first")
        callback = {
            "class_path": "megalit.callbacks.SelfDistillation",
            "init_args": {
                "teachers": [str(teacher) for teacher in teachers],
                "weight": command.chain_weight,
                "temperature": command.chain_temperature,
            },
        }
        flags.append(f"--trainer.callbacks+={json.dumps(callback)}")
    run = RunFolder(members[number])
    run.check(fit_config([*of_fit, *flags]), instead="remove that folder")
    if run.finished is not None:
        console.print(f"member {number}: the run in {run.path} is finished")
        return
    _leave_if_told(config)
    console.print(f"member {number} of {len(members)}: {run.path}")
    code = _run([sys.executable, "-m", "megalit", "fit", *of_fit, *flags])
    if code == STOPPED:
        raise Preempted()
    if code < 0:
        _leave_if_told(config)  # it was told before it had begun, and has nothing to save
    if code:
        raise UserError(
            f"member {number} ended with exit code {code}, as said above: mend that and give the same command again"
        )
    if run.finished is None:
        raise UserError(f"member {number} has stopped before its end: the same command continues")


def _run(command: Sequence[str]) -> int:
    """Run a process to its end. What tells this one to stop is passed on, and the process saves itself."""
    alone, STOP.at_once = STOP.at_once, False
    told = False
    with subprocess.Popen(command, env=_environment()) as process:
        while process.poll() is None:
            if STOP.received is not None and not told:
                process.send_signal(signal.Signals[STOP.received])
                told = True
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_WATCH_SECONDS)
    STOP.at_once = alone
    return process.returncode


def _leave_if_told(config: dict[str, Any]) -> None:
    """Stop between two members: the one that trained when the signal came was at its end."""
    if STOP.received is not None:
        say_stopped(STOP.received, config["preemption"]["requeue"] and requeue_job())
        raise Preempted()


def _environment() -> dict[str, str]:
    """Without what SLURM says of this task's place among others: a member's devices are its own affair."""
    kept = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_CONF")
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name in kept}


# Measuring ----------------------------------------------------------------------------------------------


def measure(members: Sequence[Path], command: EnsembleCommand, output: Path) -> None:
    """Measure the averages of the first K members on every suite, and write the result."""
    device = named_device(command.device)
    opened = [open_model(members[0])]
    folders = [opened[0].folder]
    stores = {name: suite_store(name, location, opened) for name, location in command.suites.items()}
    suites = {name: _windows(store, opened[0]) for name, store in stores.items()}
    losses: dict[str, list[Losses]] = {name: [] for name in suites}
    for number, path in enumerate(members):
        member = opened[0] if number == 0 else open_model(path)
        if number:
            folders.append(member.folder)
            check_members([opened[0], member])
            for name, store in stores.items():
                check_unseen(name, store, member.folder, member.documents)
        for name, suite in suites.items():
            losses[name].append(_losses(path, member, name, suite, command.batch, device))
        if number and command.logits:
            opened.append(member)  # all in memory at once, for the sums of their logits alone
    alike = _are_alike(folders)
    result: dict[str, Any] = {"format": 1, "members": [str(member) for member in members], "suites": {}}
    for name, suite in suites.items():
        averages = {"probabilities": probability_curve(losses[name])}
        if command.logits:
            with Step(f"average of logits, {name}"):
                with told_out_of_memory(no_room("all members at once", "set logits to false, or take fewer members")):
                    models = [member.model.to(device) for member in opened]
                averages["logits"] = logit_curve(models, suite, command.batch, opened[0].precision)
        result["suites"][name] = _result(suite, losses[name], averages, alike)
        write_json(output, result)
    for table in ensemble_tables(result):
        console.print(table)
    print(output)


def _windows(store: TokenStore, model: TrainedModel) -> SuiteWindows:
    cutting = Cutting().of(model)
    return cutting.windows(store)(int(cutting.context_length or 0))


def _losses(
    path: Path, member: TrainedModel, name: str, suite: SuiteWindows, batch: int, device: torch.device
) -> Losses:
    """A member's losses on a suite: those that are kept, or computed now."""

    def compute() -> Losses:
        with told_out_of_memory(no_room(f"the model of {path}", "choose another device, such as cpu")):
            member.model.to(device)
        found = token_losses(member.model, suite, batch, member.precision)
        member.model.to("cpu")
        return found

    with Step(f"{path}, {name}"):
        return kept_losses(losses_file(path, name, suite.fingerprint, member.precision), suite.targets, compute)


def _are_alike(folders: Sequence[Path]) -> bool:
    """Whether the members are runs of one setting, as far as that is known: exported models have no record."""
    records = [read_record(folder) for folder in folders if (folder / RECORD).exists()]
    return len(records) < len(folders) or are_alike(list(zip(folders, records, strict=True)))


def _result(
    suite: SuiteWindows, losses: Sequence[Losses], averages: dict[str, list[float]], alike: bool
) -> dict[str, Any]:
    return {
        "targets": suite.targets,
        "text_bytes": suite.text_bytes,
        "alone": [float(own.mean(dtype="float64")) for own in losses],
        "averages": averages,
        "best_average": min(averages, key=lambda kind: averages[kind][-1]),
        "laws": {kind: _law(curve, alike) for kind, curve in averages.items()},
        "selection": asdict(select(losses, suite.window_targets)) if len(losses) > 1 and suite.windows > 1 else None,
    }


def _law(curve: Sequence[float], alike: bool) -> dict[str, Any] | None:
    """The fitted power law in K, whose asymptote is the loss of an infinite ensemble (arXiv 2509.14786) of members
    that are alike; of others, it is said that it is not."""
    if len(curve) < 3:
        return None
    law = fit_power_law(range(1, len(curve) + 1), curve).to_json()
    return law if alike else law | {"remarks": [*law["remarks"], NOT_ALIKE]}
