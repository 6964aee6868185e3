"""``megalit slurm``: another verb as a SLURM job, a job array, or a job behind its preparation."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from megalit.cli import VERBS
from megalit.cli.commands import parse
from megalit.cli.console import console
from megalit.errors import UserError
from megalit.launch import Array, Job, SlurmSettings, Submission, resolve
from megalit.launch.submission import EACH

HELP = """
The verb and its arguments come behind `--`:

  megalit slurm --config configs/slurm/site.yaml --nodes 2 -- fit --config mine.yaml --run runs/mine
  megalit slurm --config configs/slurm/site.yaml --array 16 -- generate --config rephrase.yaml --output data/rephrase

The same command again continues what is unfinished.
"""


@dataclass(frozen=True)
class SlurmCommand(SlurmSettings):
    """Write a batch script for another verb, with a snapshot of the code and the configuration, and submit it.

    Attributes:
        array: submit a job array of so many tasks, among which the verb divides its work.
        each: words that tell each task its part, with `{index}` and `{count}` (known for `generate`; empty, where
            all tasks do the same, such as workers of a sweep).
        indices: tasks of the array to submit, such as 2 or 0-3,7 or, at most four at a time, 0-99%4 (default: all).
        folder: folder of results, whose `slurm/` takes script, snapshot and output (default: the verb's own `run` or
            `output`).
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
    preparation: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit slurm … -- VERB …``."""
    own, (launched, *rest) = _divided(arguments)
    command = parse(verb, SlurmCommand, own, HELP)
    settings = SlurmSettings(**{part.name: getattr(command, part.name) for part in fields(SlurmSettings)})
    if launched == "fit" and settings.tasks_per_node is None:
        settings = replace(settings, tasks_per_node=settings.gpus_per_node or 1)
    settings.check()
    array = _array(command, launched)
    configuration = resolve(launched, [*rest, *_topology(launched, settings)])
    submission = Submission(_folder(command, launched, configuration))
    submit = _show if command.dry_run else _submit
    after = command.after
    if launched == "fit" and command.prepare and _is_unprepared(configuration):
        after = submit(
            submission, _for_preparation(settings, command.preparation), "prepare", None, after, configuration
        )
    job = submit(submission, settings, launched, array, after, configuration)
    if not command.dry_run:
        print(job)


def _divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's own arguments, and the verb with its."""
    given = list(arguments)
    place = given.index("--") if "--" in given else len(given)
    own = [part + "=true" if part == "--dry_run" else part for part in given[:place]]
    launched = given[place + 1 :]
    if {"--help", "-h", "--print_config"}.intersection(own):
        return own, launched or [""]
    if not launched:
        raise UserError("no verb is given to submit: put it behind `--`, as in `megalit slurm --nodes 2 -- fit …`")
    if launched[0] not in VERBS or launched[0] == "slurm":
        choices = ", ".join(name for name in VERBS if name != "slurm")
        raise UserError(f"'{launched[0]}' is no verb to submit: choose one of {choices}")
    return own, launched


def _array(command: SlurmCommand, verb: str) -> Array | None:
    if command.array is None:
        if command.each is not None or command.indices is not None:
            raise UserError("each and indices are of an array: give --array with the number of its tasks, too")
        return None
    each = command.each if command.each is not None else EACH.get(verb)
    if verb == "fit":
        raise UserError("tasks of an array would train in one run folder: submit each run for itself, or a sweep")
    if each is None:
        raise UserError(f"how `{verb}` divides its work is not known: give --each, such as '--member {{index}}' or ''")
    array = Array(command.array, each, command.indices)
    array.check()
    return array


def _topology(verb: str, settings: SlurmSettings) -> list[str]:
    """What ``fit`` has to know of the job: Lightning compares it with SLURM's variables."""
    if verb not in ("fit", "validate", "test"):
        return []
    return ["--trainer.num_nodes", str(settings.nodes), "--trainer.devices", str(settings.tasks_per_node or 1)]


def _folder(command: SlurmCommand, verb: str, configuration: dict[str, Any]) -> Path:
    named = command.folder or configuration.get("run") or configuration.get("output")
    if not isinstance(named, str):
        raise UserError(
            f"`{verb}` names no folder of results in its configuration: give --folder for script and output"
        )
    return Path(named)


def _is_unprepared(configuration: dict[str, Any]) -> bool:
    from megalit.cli.prepare import PrepareSettings, is_prepared

    if configuration["prepare"]["folder"] is None:
        return False
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PrepareSettings)
    return not is_prepared(PrepareSettings(**parser.instantiate_classes(parser.parse_object(configuration["prepare"]))))


def _for_preparation(settings: SlurmSettings, different: dict[str, Any]) -> SlurmSettings:
    """Settings of the job that builds the data: a CPU job unless they say otherwise."""
    unknown = set(different) - {part.name for part in fields(SlurmSettings)}
    if unknown:
        raise UserError(f"preparation.{min(unknown)}: there is no such setting; `--help` shows what can be set")
    cpu_job = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": None, "gres": None}
    return replace(settings, **{**cpu_job, "name": f"{settings.name}-prepare", **different})


def _submit(
    submission: Submission,
    settings: SlurmSettings,
    verb: str,
    array: Array | None,
    after: str | None,
    configuration: dict[str, Any],
) -> str:
    script = submission.script(settings, [verb, "--config", str(submission.configuration(verb))], array, after)
    job: Job = submission.submit(script, verb, configuration)
    what = f"{verb}, {array.numbers} of {array.count} tasks" if array else verb
    console.print(f"job {job.id}: {what}" + (f", behind job {after}" if after else ""), soft_wrap=True)
    console.print(f"  follow it   {job.following}\n  its state   squeue -j {job.id}", soft_wrap=True)
    console.print(f"  its script  {job.script}\n  end it      scancel {job.id}", soft_wrap=True)
    return job.id


def _show(
    submission: Submission,
    settings: SlurmSettings,
    verb: str,
    array: Array | None,
    after: str | None,
    configuration: dict[str, Any],
) -> str:
    script = submission.script(settings, [verb, "--config", str(submission.configuration(verb))], array, after)
    print(script.render())
    return f"ID-OF-{verb}"
