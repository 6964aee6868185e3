"""What was measured of a model, as a file, and of several runs, as mean and deviation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from megalit.errors import UserError
from megalit.evaluation.downstream import TaskResult, paper_error
from megalit.evaluation.measuring import SuiteLoss
from megalit.files import read_json, write_json

FORMAT = 1
FILE = "evaluation.json"
# Conditions of a benchmark that are its own, and those that are the model's.
_OF_TASK = ("definition", "data_files")
_OF_MODEL = ("tokenizer", "bos", "context_length", "precision", "average")
# Of checkpoints that are not their run's newest one.
FILES_OF_CHECKPOINTS = "evaluation-*.json"


def file_of_checkpoint(checkpoint: Path) -> str:
    """The name of the file for a checkpoint that is not its run's newest one."""
    return FILES_OF_CHECKPOINTS.replace("*", checkpoint.stem)


@dataclass
class Evaluation:
    """What was measured of one model.

    Attributes:
        model: the folder of its run, or the folder it was exported to, or a checkpoint before the run's newest one;
            of an ensemble, its members'.
        checkpoint: where its weights came from.
        suites: losses by suite.
        tasks: benchmarks by name.
    """

    model: str
    checkpoint: str
    suites: dict[str, SuiteLoss] = field(default_factory=dict)
    tasks: dict[str, TaskResult] = field(default_factory=dict)

    def to_json(self, asked: Sequence[str] = ()) -> dict[str, Any]:
        """As JSON, with the error over the benchmarks that are asked for (default: all that there are)."""
        value: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        names = error_tasks([self], asked)
        return {**value, "task_error": self.error(names)} if names else value

    def error(self, tasks: Sequence[str]) -> float:
        """1 - the mean accuracy on these benchmarks, of which there is one or more."""
        return paper_error({name: self.tasks[name] for name in tasks})

    def write(self, path: Path) -> None:
        """Write it, atomically."""
        write_json(path, self.to_json())


def read_evaluation(path: Path) -> Evaluation:
    """Read what :meth:`Evaluation.write` wrote.

    Raises:
        UserError: it is not there, not readable, or written by a newer megalit.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: measure the run with `megalit evaluate`")
    value = read_json(path)
    if isinstance(value, dict) and value.get("format", 0) > FORMAT:
        raise UserError(f"{path} was written by a newer megalit: upgrade megalit, or move it away")
    try:
        suites = {name: SuiteLoss(**suite) for name, suite in value["suites"].items()}
        tasks = {name: TaskResult(**task) for name, task in value["tasks"].items()}
        return Evaluation(value["model"], value["checkpoint"], suites, tasks)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no evaluation ({error}): move it away") from error


@dataclass(frozen=True)
class Spread:
    """Mean of a value over runs, and its standard deviation (of a sample: divided by runs - 1; None for one run)."""

    mean: float
    deviation: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def error_tasks(evaluations: Sequence[Evaluation], asked: Sequence[str] = ()) -> list[str]:
    """The benchmarks that an error is taken over, alike for all models; none where that cannot be.

    Args:
        evaluations: of the models.
        asked: benchmarks that were asked for (default: those that all models have). Files keep what was measured
            earlier, under other conditions and of some models alone.
    """
    names = list(dict.fromkeys(asked)) or _shared([evaluation.tasks for evaluation in evaluations])
    if not all(_is_shared(name, evaluations) for name in names):
        return []
    # All questions of one benchmark and some of another make no error together.
    alike = all(
        _without(evaluation.tasks[name], _OF_TASK) == _without(evaluation.tasks[names[0]], _OF_TASK)
        for evaluation in evaluations
        for name in names
    )
    return names if alike else []


def _is_shared(task: str, evaluations: Sequence[Evaluation]) -> bool:
    """Whether all models were asked the same questions of a benchmark."""
    if not all(task in evaluation.tasks for evaluation in evaluations):
        return False
    first, *others = (_without(evaluation.tasks[task], _OF_MODEL) for evaluation in evaluations)
    return all(other == first for other in others)


def _without(result: TaskResult, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in result.conditions.items() if name not in names}


def over_runs(evaluations: Sequence[Evaluation], asked: Sequence[str] = ()) -> dict[str, Any]:
    """Means and deviations over runs that differ in their seeds, as JSON: losses, curves and benchmarks.

    A suite counts where all runs have it, a point of a curve where all of them have this point, a task where all were
    asked the same questions, and their error over the tasks that are ``asked`` for (:func:`error_tasks`).
    """
    suites, tasks = {}, {}
    for name in _shared([evaluation.suites for evaluation in evaluations]):
        losses = [evaluation.suites[name] for evaluation in evaluations]
        suites[name] = {
            "nats_per_token": asdict(Spread.of([loss.nats_per_token for loss in losses])),
            "bits_per_byte": asdict(Spread.of([loss.bits_per_byte for loss in losses])),
            "by_position": _curve([loss.by_position for loss in losses]),
            "by_context_length": _curve([loss.by_context_length for loss in losses]),
        }
    for name in [name for name in evaluations[0].tasks if _is_shared(name, evaluations)]:
        tasks[name] = {"accuracy": asdict(Spread.of([evaluation.tasks[name].accuracy for evaluation in evaluations]))}
    found: dict[str, Any] = {"suites": suites, "tasks": tasks}
    names = error_tasks(evaluations, asked)
    if names:
        errors = Spread.of([evaluation.error(names) for evaluation in evaluations])
        found["task_error"] = {**asdict(errors), "tasks": names}
    return found


def _shared(parts: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in parts[0] if all(name in part for part in parts)]


def _curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[list[float | None]]:
    """[x, mean, deviation] of each point that all curves have."""
    values = [dict(curve) for curve in curves]
    points = [x for x in values[0] if all(x in value for value in values)]
    spreads = [Spread.of([value[x] for value in values]) for x in points]
    return [[x, spread.mean, spread.deviation] for x, spread in zip(points, spreads, strict=True)]
