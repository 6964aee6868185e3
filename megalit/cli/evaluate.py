"""``megalit evaluate``: losses and benchmarks of trained models."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch

from megalit.cli.commands import gather, parse
from megalit.cli.console import Step, console
from megalit.cli.models import TrainedModel, check_members, named_device, open_model
from megalit.cli.suites import Cutting, conditions, suite_store
from megalit.cli.tables import evaluation_tables
from megalit.corpus.tokenizers import Tokenizer
from megalit.errors import UserError
from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.evaluation.downstream import evaluate_tasks, require_lm_eval, task_conditions
from megalit.evaluation.losses import Average
from megalit.evaluation.measuring import by_context_length, context_lengths, measure
from megalit.evaluation.plots import plot_curves
from megalit.evaluation.results import FILE, Evaluation, file_of_checkpoint, over_runs, read_evaluation
from megalit.files import write_json
from megalit.modeling.out_of_memory import no_room, told_out_of_memory
from megalit.ranks import ranks

Precision = Literal["32-true", "bf16-true", "bf16-mixed", "16-mixed"]
# The other processes wait where the first one runs benchmarks, however long these take.
_PATIENCE = timedelta(days=30)

HELP = """
A suite is a token store, or a folder of stores, of which the held-out documents are taken; null is the run's own.
  megalit evaluate --run runs/a
  megalit evaluate --run runs/seed0 runs/seed1 runs/seed2 --output seeds.json --plot curves.png
  megalit evaluate --run runs/a --suites '{iid: null, long: data/papers/stores/real}' --stride 512
  megalit evaluate --run runs/a --tasks '[arc_easy, piqa, sciq]'
"""


@dataclass(frozen=True)
class EvaluateCommand:
    """Measure trained models on validation suites and benchmarks.

    Results are kept in ``evaluation.json`` of each run's folder, those of an earlier checkpoint in a file of its own
    beside it (``evaluation-step-….json``); what is there already is not measured again.

    Attributes:
        run: folders of runs (their newest checkpoint), checkpoints, or exported models.
        suites: validation suites by name: a store, a folder of stores, or null for the run's held-out documents, which
            are also the default; `{}` with `tasks` measures no suite.
        context_length: tokens in a window (default: as the model was trained).
        context_lengths: points of the curve over context lengths (default: doubling from 256); `[]` for no curve.
        stride: slide the window over documents that are longer, so that each window but a document's first predicts
            so many tokens with the others as context.
        separate: start a window with each document (default: with a stride, or where the run was validated so).
        position_bucket: positions in a point of the curve over positions (default: for at most 64 points).
        tasks: benchmarks of lm-eval, such as arc_easy, piqa and sciq, or YAML files in its format.
        data_files: local files of a task's splits, `{arc_easy: {test: FILE}}`, instead of the hub.
        limit: questions of each task (default: all).
        bos: put BOS before each question (default: as the tokenizer does by itself).
        tokenizer: folder or hub name of the models' tokenizer, for tasks (default: the one beside them).
        ensemble: measure the average of all runs, of their `probabilities` or `logits`, as one model.
        batch: windows, or questions, in a pass.
        precision: of the computation (default: as the run was trained).
        device: `auto`, or torch's name for one.
        output: one more file for all runs, with means and deviations over them.
        plot: PNG file for the curves.
        overwrite: measure again what is there.
    """

    run: list[str] = field(default_factory=lambda: ["runs/default"])
    suites: dict[str, str | None] | None = None
    context_length: int | None = None
    context_lengths: list[int] | None = None
    stride: int | None = None
    separate: bool | None = None
    position_bucket: int | None = None
    tasks: list[str] = field(default_factory=list)
    data_files: dict[str, dict[str, str]] = field(default_factory=dict)
    limit: int | None = None
    bos: bool | None = None
    tokenizer: str | None = None
    ensemble: Average | None = None
    batch: int = 8
    precision: Precision | None = None
    device: str = "auto"
    output: str | None = None
    plot: str | None = None
    overwrite: bool = False


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit evaluate``."""
    command = parse(verb, EvaluateCommand, gather(arguments, "--run"), HELP)
    _check(command)
    with _processes():
        device = named_device(command.device)
        if command.ensemble is not None:
            measured = [_evaluate(command, [_open(command, run) for run in command.run], device)]
        else:
            measured = [_evaluate(command, [_open(command, run)], device) for run in command.run]
        if ranks()[0] == 0:
            _report(command, [evaluation for evaluation, _ in measured], [path for _, path in measured])


def _check(command: EvaluateCommand) -> None:
    if not command.run:
        raise UserError("no run is named: give --run FOLDER")
    if command.ensemble is not None and command.output is None:
        raise UserError("an ensemble has no folder of its own: name a file for its results with --output")
    for name in ("batch", "limit", "position_bucket", "context_length"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: choose at least 1")
    if command.suites == {} and not command.tasks:
        raise UserError("neither suites nor tasks are named, so there is nothing to measure: name one")
    if command.data_files and not command.tasks:
        raise UserError("data_files are given and no tasks: name the tasks that they are for")
    unknown = sorted(set(command.data_files) - set(command.tasks))
    if unknown:
        raise UserError(f"data_files has the task {unknown[0]}, which is not among the tasks: add it there")
    if command.tasks:
        require_lm_eval()


def _open(command: EvaluateCommand, run: str) -> TrainedModel:
    return open_model(Path(run), command.precision)


@contextmanager
def _processes() -> Iterator[None]:
    """Several processes, started by torchrun, share the windows of each suite."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or torch.distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _of_first_process(evaluation: Evaluation) -> Evaluation:
    """What the first process has read, on all: a suite that only some of them take for measured never ends."""
    if ranks()[1] == 1:
        return evaluation
    held = [evaluation]
    torch.distributed.broadcast_object_list(held)
    return held[0]


def _evaluate(
    command: EvaluateCommand, members: Sequence[TrainedModel], device: torch.device
) -> tuple[Evaluation, Path]:
    """Measure one model, or several as one; give what was measured and the file that it is in."""
    check_members(members)
    title = " + ".join(_title(member) for member in members)
    kept = _file(members[0]) if len(members) == 1 else None
    evaluation = Evaluation(title, " + ".join(member.checkpoint for member in members))
    if ranks()[0] == 0 and kept is not None and kept.exists() and not command.overwrite:
        earlier = read_evaluation(kept)
        # Another checkpoint is another model.
        if earlier.checkpoint == evaluation.checkpoint:
            evaluation = earlier
            evaluation.model = title
        else:
            console.print(f"{kept} has results of other weights ({earlier.checkpoint}), which are replaced")
    evaluation = _of_first_process(evaluation)
    with told_out_of_memory(no_room(title, "choose another device, such as cpu, or fewer members")):
        for member in members:
            member.model.to(device)
    # An ensemble has no folder, but an output.
    target = kept or Path(str(command.output))
    for name, location in ({"iid": None} if command.suites is None else command.suites).items():
        _measure_suite(command, members, name, location, evaluation)
        if ranks()[0] == 0:
            evaluation.write(target)
    if command.tasks and ranks()[0] == 0:
        _measure_tasks(command, members, evaluation)
        evaluation.write(target)
    for member in members:
        member.model.to("cpu")
    return evaluation, target


def _earlier(model: TrainedModel) -> Path | None:
    """The checkpoint of a model that is not the newest one of its run."""
    newest = newest_checkpoint(model.folder)
    if newest is None or newest.name == model.checkpoint:
        return None
    return newest.with_name(model.checkpoint)


def _title(model: TrainedModel) -> str:
    return str(_earlier(model) or model.folder)


def _file(model: TrainedModel) -> Path:
    """Where a model's results are kept: other verbs take ``evaluation.json`` for what the run came to."""
    earlier = _earlier(model)
    return model.folder / (FILE if earlier is None else file_of_checkpoint(earlier))


def _measure_suite(
    command: EvaluateCommand,
    members: Sequence[TrainedModel],
    name: str,
    location: str | None,
    evaluation: Evaluation,
) -> None:
    first = members[0]
    cutting = Cutting(command.context_length, command.stride, command.separate).of(first)
    store = suite_store(name, location, members)
    whole = int(cutting.context_length or 0)
    lengths = context_lengths(whole) if command.context_lengths is None else sorted(set(command.context_lengths))
    if lengths and not 1 <= lengths[0] <= lengths[-1] <= whole:
        raise UserError(
            f"context_lengths are {lengths} and a window has {whole} tokens: choose values from 1 to {whole}"
        )
    wanted = conditions(
        store,
        cutting,
        lengths=lengths,
        bucket=command.position_bucket,
        precision=first.precision,
        average=command.ensemble if len(members) > 1 else None,
    )
    known = evaluation.suites.get(name)
    if known is not None and known.conditions == wanted:
        console.print(f"{evaluation.model}, {name}: measured before")
        return
    suite_at = cutting.windows(store)
    settings: dict[str, Any] = {
        "batch": command.batch,
        "precision": first.precision,
        "average": command.ensemble or "probabilities",
    }
    models = [member.model for member in members]
    try:
        with Step(f"{evaluation.model}, {name}") as step:
            settings["progress"] = step.update
            loss = measure(models, suite_at(whole), bucket=command.position_bucket, **settings)
            curve = by_context_length(models, suite_at, [length for length in lengths if length < whole], **settings)
    except UserError as error:
        raise UserError(f"{evaluation.model}, suite {name}: {error}") from error
    if lengths and lengths[-1] == whole:
        curve.append((whole, loss.nats_per_token))
    evaluation.suites[name] = replace(loss, by_context_length=curve, conditions=wanted)


def _measure_tasks(command: EvaluateCommand, members: Sequence[TrainedModel], evaluation: Evaluation) -> None:
    from megalit.evaluation.lm_eval_model import MegalitLM

    first = members[0]
    named = command.tokenizer or first.tokenizer_folder()
    if named is None:
        raise UserError(f"{first.folder} has no tokenizer beside it, and tasks are texts: set tokenizer")
    tokenizer = Tokenizer(str(named))
    if first.tokenizer is not None and tokenizer.fingerprint != first.tokenizer and command.tokenizer is not None:
        raise UserError(f"tokenizer {named} is not the one that {first.folder} was trained with: leave tokenizer out")
    model = MegalitLM(
        [member.model for member in members],
        tokenizer,
        command.context_length or first.context_length,
        command.batch,
        first.precision,
        command.ensemble or "probabilities",
        command.bos,
    )
    asked = {}
    for name in command.tasks:
        wanted = {
            **task_conditions(name, command.data_files.get(name), command.limit),
            "tokenizer": tokenizer.fingerprint,
            "bos": model.bos,
            "context_length": model.max_length,
            "precision": model.precision,
            "average": command.ensemble if len(members) > 1 else None,
        }
        if name in evaluation.tasks and evaluation.tasks[name].conditions == wanted:
            console.print(f"{evaluation.model}, {name}: measured before")
        else:
            asked[name] = wanted
    if not asked:
        return
    with Step(f"{evaluation.model}, {', '.join(asked)}"):
        files = {name: own for name, own in command.data_files.items() if name in asked}
        found = evaluate_tasks(model, list(asked), files, command.limit)
    evaluation.tasks |= {name: replace(result, conditions=asked[name]) for name, result in found.items()}


def _report(command: EvaluateCommand, evaluations: Sequence[Evaluation], kept: Sequence[Path]) -> None:
    if command.output is not None:
        runs = [evaluation.to_json(command.tasks) for evaluation in evaluations]
        spread = over_runs(evaluations, command.tasks)
        write_json(Path(command.output), {"format": runs[0]["format"], "runs": runs, "over_runs": spread})
    for table in evaluation_tables(evaluations, command.tasks):
        console.print(table)
    if command.plot is not None:
        plot_curves(evaluations, Path(command.plot))
    written = [command.output] if command.output else kept
    for path in [*written, *([command.plot] if command.plot else [])]:
        print(path)
