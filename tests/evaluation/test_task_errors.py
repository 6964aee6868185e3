"""An error over benchmarks is one of the same questions for every model, whatever was measured before."""

from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from megalit.cli.tables import evaluation_tables
from megalit.evaluation.downstream import TaskResult
from megalit.evaluation.results import Evaluation, error_tasks, over_runs

ASKED = {"definition": "lm-eval 1", "data_files": {}, "limit": None, "tokenizer": "t", "context_length": 32}


def evaluation(name: str, conditions: dict[str, Any] | None = None, **accuracies: float) -> Evaluation:
    tasks = {
        task: TaskResult(accuracy, None, 10, {}, {**ASKED, **(conditions or {})})
        for task, accuracy in accuracies.items()
    }
    return Evaluation(name, "step-1.ckpt", {}, tasks)


def shown(evaluations: Sequence[Evaluation], asked: Sequence[str] = ()) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        for table in evaluation_tables(evaluations, asked):
            console.print(table)
    return captured.get()


def test_what_one_model_was_asked_before_is_not_compared() -> None:
    """Two models of equal accuracy on the benchmark that is asked for have equal errors."""
    runs = [evaluation("A", arc=0.5, piqa=0.7, sciq=0.7), evaluation("B", arc=0.5)]
    spread = over_runs(runs, ["arc"])["task_error"]
    assert spread == {"mean": 0.5, "deviation": 0.0, "runs": 2, "tasks": ["arc"]}
    assert [run.to_json(["arc"])["task_error"] for run in runs] == [0.5, 0.5]
    said = shown(runs, ["arc"])
    assert "error of arc" in said
    assert "0.5000 ± 0.0000" in said
    assert "0.3667" not in said
    # Of what was not asked for now the error is that of what both have.
    assert error_tasks(runs) == ["arc"]
    assert runs[0].to_json()["task_error"] == pytest.approx(1 - 1.9 / 3)


def test_benchmarks_of_other_questions_make_no_error() -> None:
    few = evaluation("few", {"limit": 3}, arc=0.5)
    mixed = evaluation("mixed", arc=0.5)
    mixed.tasks["piqa"] = evaluation("", {"limit": 3}, piqa=1.0).tasks["piqa"]
    assert "task_error" not in mixed.to_json()
    assert "error" not in shown([mixed])
    assert mixed.to_json(["arc"])["task_error"] == 0.5
    assert over_runs([mixed, few], ["arc"]) == {"suites": {}, "tasks": {}}
    assert "error" not in shown([mixed, few])
    assert "±" not in shown([mixed, few])


def test_models_of_other_tokenizers_and_contexts_are_compared() -> None:
    other = evaluation("B", {"tokenizer": "u", "context_length": 64}, arc=0.7, piqa=0.5)
    runs = [evaluation("A", arc=0.5, piqa=0.5), other]
    assert error_tasks(runs, ["piqa", "arc", "arc"]) == ["piqa", "arc"]
    assert over_runs(runs)["task_error"]["mean"] == pytest.approx(0.45)
    assert "error (1 - mean)" in shown(runs)
