"""Benchmarks through lm-eval (the extra ``eval``), its own task definitions, data from a hub or from local files."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from megalit.errors import UserError, missing_extra, reason
from megalit.files import digest

# The benchmarks of the megadocs papers (arXiv 2509.14786, 2603.18534).
TASKS = ("arc_easy", "piqa", "sciq")

_SPLITS = ("training", "validation", "test")
_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}


@dataclass(frozen=True)
class TaskResult:
    """What a model gets on one benchmark.

    Attributes:
        accuracy: share of questions whose most likely answer (``acc``) is the right one.
        standard_error: of the accuracy.
        questions: how many.
        metrics: everything that lm-eval reports, by its own names.
        conditions: what the numbers depend on, besides the model.
    """

    accuracy: float
    standard_error: float | None
    questions: int
    metrics: dict[str, float]
    conditions: dict[str, Any] = field(default_factory=dict)


def require_lm_eval() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise missing_extra("lm-eval", "eval", "evaluating on benchmarks")


def evaluate_tasks(
    model: Any,
    tasks: Sequence[str],
    data_files: Mapping[str, Mapping[str, str]] | None = None,
    limit: int | None = None,
) -> dict[str, TaskResult]:
    """Run benchmarks on a model of lm-eval's.

    Args:
        model: a :class:`megalit.evaluation.lm_eval_model.MegalitLM`, or any other ``lm_eval.api.model.LM``.
        tasks: names of lm-eval's, or paths of YAML files in its format.
        data_files: local files of a task's splits, ``{task: {split: path}}``, instead of its hub (the test split is
            asked, or the validation split where there is none).
        limit: questions of each task (default: all).

    Raises:
        UserError: lm-eval is not installed, a task or file that is not there, or a task without ``acc``.
    """
    require_lm_eval()
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    unknown = sorted(set(data_files or {}) - set(tasks))
    if unknown:
        raise UserError(f"data_files has the task {unknown[0]}, which is not among the tasks: add it there")
    manager = TaskManager(include_defaults=False)
    with TemporaryDirectory() as folder:
        loaded: dict[str, Any] = {}
        for name in tasks:
            path = _definition(name, (data_files or {}).get(name), Path(folder))
            try:
                (loaded[name],) = manager.load([str(path)])["tasks"].values()
            except Exception as error:
                raise UserError(
                    f"the data of task {name} cannot be loaded ({reason(error)}): name local files in data_files, or "
                    "check the connection to the hub"
                ) from error
        found: Any = simple_evaluate(
            model, tasks=list(loaded.values()), task_manager=manager, limit=limit, log_samples=False
        )
    return {
        name: _result(name, found["results"][task.task_name], found["n-samples"][task.task_name]["effective"])
        for name, task in loaded.items()
    }


def task_conditions(name: str, files: Mapping[str, str] | None, limit: int | None) -> dict[str, Any]:
    """What a task asks: its definition, its data and how many of its questions. (Data of a hub may change unseen.)

    Args:
        name, files, limit: as for :func:`evaluate_tasks`.
    """
    own = _own_definition(name)
    return {
        "definition": f"lm-eval {version('lm_eval')}" if own is None else digest(own.read_bytes()),
        # A file that is not there is refused when the task is asked.
        "data_files": {
            split: digest(Path(file).read_bytes()) for split, file in (files or {}).items() if Path(file).is_file()
        },
        "limit": limit,
    }


def paper_error(results: Mapping[str, TaskResult]) -> float:
    """1 - the unweighted mean of the accuracies, as the megadocs papers report it (arXiv 2603.18534)."""
    return 1 - sum(result.accuracy for result in results.values()) / len(results)


def _own_definition(name: str) -> Path | None:
    """The user's own YAML file, where that is what is named."""
    own = Path(name)
    return own.resolve() if own.suffix in (".yaml", ".yml") and own.is_file() else None


def _definition(name: str, files: Mapping[str, str] | None, folder: Path) -> Path:
    """The YAML file that defines a task, with its data replaced where files are given."""
    import lm_eval.tasks

    found = _own_definition(name)
    if found is None:
        found = next(iter(sorted(Path(lm_eval.tasks.__file__).parent.rglob(f"{name}.yaml"))), None)
    if found is None:
        raise UserError(f"there is no task {name}: choose {', '.join(TASKS)}, another of lm-eval's, or a YAML file")
    if files is None:
        return found
    for split, file in files.items():
        if split not in _SPLITS:
            raise UserError(f"data_files of {name} has the split {split}: choose of {', '.join(_SPLITS)}")
        if not Path(file).is_file():
            raise UserError(f"data_files of {name}: {file} does not exist: check the path")
    if not {"validation", "test"} & set(files):
        raise UserError(f"data_files of {name} has no file for validation or test: name one")
    kinds = {_builder(file) for file in files.values()}
    if len(kinds) > 1:
        raise UserError(f"data_files of {name} are of several formats ({', '.join(sorted(kinds))}): use one")
    replaced = {
        "include": str(found),
        "dataset_path": kinds.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(Path(file).resolve()) for split, file in files.items()}},
        **{f"{split}_split": split if split in files else None for split in _SPLITS},
    }
    path = folder / f"{found.stem}.yaml"
    path.write_text(yaml.safe_dump(replaced))
    return path


def _builder(file: str) -> str:
    suffixes = [suffix for suffix in Path(file).suffixes if suffix in _BUILDERS]
    if not suffixes:
        raise UserError(f"{file} has no format that is known: give .jsonl, .json, .parquet, .arrow or .csv")
    return _BUILDERS[suffixes[-1]]


def _result(name: str, metrics: Mapping[str, Any], questions: int) -> TaskResult:
    values = {
        key.removesuffix(",none"): float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and "," in key
    }
    if "acc" not in values:
        raise UserError(f"the task {name} reports no accuracy ('acc'): choose a multiple-choice task")
    return TaskResult(values["acc"], values.get("acc_stderr"), int(questions), values)
