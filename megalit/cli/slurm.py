"""``megalit slurm``: another verb as a SLURM job, a job array, or a job behind its preparation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from megalit.cli import VERBS
from megalit.cli.commands import parse
from megalit.cli.console import console
from megalit.cli.parsing import in_one_line
from megalit.cli.prepare import PrepareSettings, is_prepared
from megalit.errors import UserError
from megalit.launch import Array, Script, SlurmSettings, Submission, resolve


@dataclass(frozen=True)
class Traits:
    """How a verb behaves as a job.

    Attributes:
        results: the setting that names its folder of results, where that folder may hold more than the results.
        each: what tells a task of an array its part of the work.
        saves_itself: it handles the signal before the time limit; others are asked to end with SIGTERM.
        continues: it goes on inside what it was stopped in; one that begins anew would meet its time limit again and
            again.
    """

    results: str | None = None
    each: str | None = None
    saves_itself: bool = False
    continues: bool = False


# What is not named here keeps nothing of a stopped job, or, as `evaluate`, no more than whole suites, and those not for
# an average or where it overwrites.
TRAITS = {
    "fit": Traits("run", saves_itself=True, continues=True),
    "validate": Traits("run"),
    "test": Traits("run"),
    "prepare": Traits("run"),
    "generate": Traits("output", "--shard {index}/{count}", continues=True),
    "ensemble": Traits("run", "--only {index}", saves_itself=True, continues=True),
    "sweep": Traits("output", "", continues=True),
}

# Verbs whose tasks are in each other's way where they are told the same. (Those of `sweep` are workers of one study.)
_ALIKE = {"generate": "make the same generations", "ensemble": "train the same members"}

HELP = """
The verb and its arguments come behind `--`:

  megalit slurm --config configs/slurm/site.yaml --nodes 2 -- fit --config mine.yaml --run runs/mine
  megalit slurm --config configs/slurm/generate.yaml --array 16 -- generate --config mine.yaml --output data/rephrase

The same command again continues what is unfinished.
"""


# Of a job's settings. (What is Any, the parser reads once more, and the quotes of "4:00:00" would be for nothing.)
Setting = str | int | bool | None | dict[str, str | int | None] | dict[str, str] | list[str]


@dataclass(frozen=True)
class SlurmCommand(SlurmSettings):
    """Write a batch script for another verb, with a snapshot of the code and the configuration, and submit it.

    Attributes:
        array: submit a job array of so many tasks, among which the verb divides its work.
        each: words put behind the verb's arguments in each task, with `{index}` and `{count}`, or '' where all tasks do
            the same (default: what `generate`, `ensemble` and `sweep` need to divide their work; no other verb does).
        indices: tasks of the array to submit, as SLURM writes them, such as 2 or 0-3,7 (default: all).
        folder: folder whose `slurm/` takes script, snapshot and output (default: `run` of fit, `output` of generate,
            else the current folder).
        after: id of a job that must have succeeded before.
        prepare: where stores that `fit` needs are missing, build them in a job of their own, and start behind it.
        preparation: settings of that job that differ, such as {partition: cpu, cpus_per_task: 16, time: "4:00:00"};
            it has one node, one task and no GPU unless they say otherwise.
        dry_run: print the script, and submit nothing.
    """

    array: int | None = None
    each: str | None = None
    indices: str | None = None
    folder: str | None = None
    after: str | None = None
    prepare: bool = True
    preparation: dict[str, Setting] = field(default_factory=dict)
    dry_run: bool = False


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit slurm … -- VERB …``."""
    own, (launched, *rest) = _divided(arguments)
    command = parse(verb, SlurmCommand, own, HELP)
    settings = SlurmSettings(**{part.name: getattr(command, part.name) for part in fields(SlurmSettings)})
    if launched == "fit" and settings.tasks_per_node is None:
        settings = replace(settings, tasks_per_node=settings.gpus or 1)
    settings.check()
    if launched in _ALIKE and (settings.nodes > 1 or (settings.tasks_per_node or 1) > 1):
        raise UserError(f"all tasks of one job would {_ALIKE[launched]}: give --array, whose tasks divide them")
    traits = TRAITS.get(launched, Traits())
    array = _array(command, launched, traits)
    for_preparation = _for_preparation(settings, command.preparation)
    configuration = resolve(launched, rest)
    if launched in ("fit", "validate", "test"):
        # Lightning compares them with what SLURM says.
        configuration["trainer"] |= {"num_nodes": settings.nodes, "devices": settings.tasks_per_node or 1}
    if launched in ("fit", "ensemble"):  # whose members are runs of fit
        handled = configuration["preemption"]["signals"]
        handled += [name for name in [f"SIG{settings.signal}"] if name not in handled]
    submission = Submission(Path(command.folder or configuration.get(traits.results or "") or "."))
    hand_over = _show if command.dry_run else _submit
    after = command.after
    if launched == "fit":
        _check_stores(configuration)
        if command.prepare and _is_unprepared(configuration):
            after = hand_over(submission, "prepare", for_preparation, None, after, configuration)
    job = hand_over(submission, launched, settings, array, after, configuration, _own_flags(launched, rest))
    if not command.dry_run:
        print(job)


def _divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's own arguments, and the verb with its."""
    given = list(arguments)
    place = given.index("--") if "--" in given else len(given)
    own, launched = given[:place], given[place + 1 :]
    if {"--help", "-h", "--print_config"}.intersection(own):
        return own, launched or [""]
    if not launched:
        raise UserError("no verb is given to submit: put it behind `--`, as in `megalit slurm --nodes 2 -- fit …`")
    if launched[0] not in VERBS or launched[0] == "slurm":
        choices = ", ".join(name for name in VERBS if name != "slurm")
        raise UserError(f"'{launched[0]}' is no verb to submit: choose one of {choices}")
    return own, launched


def _array(command: SlurmCommand, verb: str, traits: Traits) -> Array | None:
    if command.array is None:
        if command.each is not None or command.indices is not None:
            raise UserError("each and indices are of an array: give --array with the number of its tasks, too")
        return None
    each = command.each if command.each is not None else traits.each
    if verb == "fit":
        raise UserError("tasks of an array would train in one run folder: submit each run for itself, or a sweep")
    if each is None:
        raise UserError(
            f"`{verb}` does not divide its work as generate, ensemble and sweep do: leave --array out, or give "
            "--each, the flags in which the tasks differ"
        )
    array = Array(command.array, each, command.indices)
    array.check()
    return array


def _check_stores(configuration: dict[str, Any]) -> None:
    """Refuse a run that would find no data. (Stores that are named may lie where only the job sees them.)"""
    if configuration["prepare"]["folder"] is None and configuration["data"]["init_args"].get("stores") is None:
        raise UserError(
            "no token stores are named: set data.stores, or prepare.folder to build them in a job that goes first"
        )


def _is_unprepared(configuration: dict[str, Any]) -> bool:
    if configuration["prepare"]["folder"] is None:
        return False
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PrepareSettings)
    return not is_prepared(PrepareSettings(**parser.instantiate_classes(parser.parse_object(configuration["prepare"]))))


def _for_preparation(settings: SlurmSettings, different: Mapping[str, Setting]) -> SlurmSettings:
    """Settings of the job that builds the data: a CPU job unless they say otherwise."""
    unknown = set(different) - {part.name for part in fields(SlurmSettings)}
    if unknown:
        raise UserError(f"preparation.{min(unknown)}: there is no such setting; `--help` shows what can be set")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SlurmSettings)
    try:
        with in_one_line():
            parsed = parser.parse_object(dict(different))
    except UserError as error:
        raise UserError(f"preparation.{error}") from error
    options = {name: value for name, value in settings.options.items() if name != "gres" and not name.startswith("gpu")}
    cpu_job = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": None, "gres": None, "options": options}
    named = {name: parsed[name] for name in different}
    return replace(settings, **{**cpu_job, "name": f"{settings.name}-prepare", **named})


def _submit(
    submission: Submission,
    verb: str,
    settings: SlurmSettings,
    array: Array | None,
    after: str | None,
    configuration: dict[str, Any],
    flags: Sequence[str] = (),
) -> str:
    job = submission.submit(_script(submission, verb, settings, array, after, flags), verb, configuration)
    what = f"{verb}, {array.numbers} of {array.count} tasks" if array else verb
    console.print(f"job {job.id}: {what}" + (f", behind job {after}" if after else ""), soft_wrap=True)
    console.print(f"  follow it   {job.following}\n  its state   squeue -j {job.id}", soft_wrap=True)
    console.print(f"  its script  {job.script}\n  end it      scancel {job.id}", soft_wrap=True)
    return job.id


def _show(
    submission: Submission,
    verb: str,
    settings: SlurmSettings,
    array: Array | None,
    after: str | None,
    configuration: dict[str, Any],
    flags: Sequence[str] = (),
) -> str:
    print(_script(submission, verb, settings, array, after, flags).render())
    return f"ID-OF-{verb}"


def _own_flags(verb: str, arguments: Sequence[str]) -> list[str]:
    """What a verb is told besides its configuration: an ensemble's is that of the ``fit`` that it starts."""
    if verb != "ensemble":
        return []
    from megalit.cli.ensemble import divided

    return divided(arguments)[0]


def _script(
    submission: Submission,
    verb: str,
    settings: SlurmSettings,
    array: Array | None,
    after: str | None,
    flags: Sequence[str],
) -> Script:
    traits = TRAITS.get(verb, Traits())
    command = [verb, "--config", str(submission.configuration(verb)), *flags]
    return submission.script(settings, command, array, after, traits.saves_itself, traits.continues)
