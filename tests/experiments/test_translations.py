"""The experiment on translations: its table holds together, and its driver goes on where it stopped."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from data_sets import make_rows, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megalit import cli
from megalit.corpus.tables import TRAIN, VALIDATION, Corpus
from megalit.errors import UserError

HERE = Path(__file__).parents[2] / "experiments" / "translations"

# A base configuration's place in seconds: everything small, nothing compiled.
TINY = """
prepare:
  corpus: {validation_fraction: 0.3}
  tokenizer: {vocabulary_size: 300}
data:
  init_args: {real_fraction: 1.0, context_length: 128, global_batch_tokens: 256}
model:
  shape: nano
  compile: false
trainer: {accelerator: cpu, precision: 32-true}
"""


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The experiment's modules, which lie in no package."""
    monkeypatch.syspath_prepend(str(HERE))
    for name in ("run", "table", "results", "report", "siblings"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import report
    import results
    import run
    import siblings
    import table

    return SimpleNamespace(run=run, table=table, results=results, report=report, siblings=siblings)


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    rows = make_rows(40)
    for number, row in enumerate(rows):
        row["id"] = f"Book {number // 4}:{number % 4}"
    return write_jsonl(tmp_path / "passages.jsonl", rows)


def all_runs(table: ModuleType, scale: str) -> list[Any]:
    tuned = table.START[scale]
    return [run for group in table.GROUPS.values() for run in group(tuned)]


@pytest.mark.parametrize("scale", ["small", "full"])
def test_names_tell_runs_apart(experiment: SimpleNamespace, scale: str) -> None:
    by_name: dict[str, list[str]] = {}
    for run in all_runs(experiment.table, scale):
        assert by_name.setdefault(run.name, run.arguments()) == run.arguments()
        assert not set(run.name) & set("/ ,:"), "the name is a file's"
    assert len(by_name) == len({tuple(arguments) for arguments in by_name.values()})


@pytest.mark.parametrize("scale", ["small", "full"])
def test_streams_are_compared_at_equal_tokens(experiment: SimpleNamespace, scale: str) -> None:
    table = experiment.table
    for name in ("generations", "order", "window", "seeds", "mixes", "steps"):
        for run in table.GROUPS[name](table.START[scale]):
            tuned = table.START[scale][run.stream]
            assert run.passes == pytest.approx(tuned.passes), run.name


def test_each_setting_is_one_that_fit_knows(
    experiment: SimpleNamespace, passages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megalit.cli.training import TrainingCLI

    parsed = []
    monkeypatch.setattr(TrainingCLI, "fit", lambda self, **_: parsed.append(self.plain_config))
    distinct = {tuple(run.settings): run for run in all_runs(experiment.table, "small") if run.settings}
    for run in distinct.values():
        configs = [str(HERE / name) for name in ("base.yaml", "small.yaml")]
        cli_fit(["--config", configs[0], "--config", configs[1], f"--run={tmp_path}", *run.arguments()])
    assert len(parsed) == len(distinct)


def cli_fit(arguments: Sequence[str]) -> None:
    code: int | str | None = 0
    try:
        cli.main(["fit", *arguments])
    except SystemExit as end:
        code = end.code
    assert not code


def test_driver_goes_on_after_the_runs_that_have_a_record(
    experiment: SimpleNamespace, passages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, table = experiment.run, experiment.table
    two = [
        replace(table.START["small"]["real"], epochs=1),
        replace(
            table.START["small"]["stitched"], epochs=1, change="real first", settings={"data.real_document": "first"}
        ),
    ]
    monkeypatch.setitem(table.GROUPS, "two", lambda tuned: iter(two))
    trained: list[str] = []

    def in_this_process(command: list[str]) -> subprocess.CompletedProcess[str]:
        trained.append(next(part for part in command if part.startswith("--run=")).split("/")[-1])
        if stop_at == len(trained):
            raise KeyboardInterrupt
        cli_fit(command[command.index("fit") + 1 :])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=in_this_process))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments: dict[str, Any] = {
        "passages": str(passages),
        "only": ["two"],
        "results": "results",
        "configs": ["tiny.yaml"],
    }

    stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        run.main(**arguments)
    assert two[0].name in Path("results/small/results.md").read_text()
    stop_at = 0
    run.main(**arguments)
    assert trained == [two[0].name, two[1].name, two[1].name]
    run.main(**arguments)
    assert len(trained) == 3, "what has a record is not trained again"

    kept = experiment.results.Results(Path("results/small"), None)
    record = experiment.results.read_record(Path("runs/translations/small") / two[1].name)
    assert kept[two[1].name].loss == pytest.approx(record.losses["iid"]["nats_per_token"], abs=1e-5)
    assert kept[two[1].name].curve[-1][0] == kept[two[1].name].tokens
    corpus = Corpus(Path("runs/translations/data/corpus"))
    held_out, read = (
        {row["id"].split(":")[0] for row in corpus.rows("documents", split, ["id"])} for split in (VALIDATION, TRAIN)
    )
    assert held_out
    assert read
    assert not held_out & read, "chapters are held out whole"

    folder = Path("runs/translations/small") / two[1].name
    experiment.siblings.main("runs/translations/data", [str(folder)], most=1, output="siblings.json")
    own, others = json.loads(Path("siblings.json").read_text())[two[1].name].values()
    assert own[0] == others[0], "behind nothing is behind nothing"
    assert own[1] != others[1]
    assert all(loss == pytest.approx(own[0], abs=0.5) for loss in (*own, *others))

    write_jsonl(tmp_path / "others.jsonl", make_rows(40, seed=1))
    with pytest.raises(UserError, match="choose another --results"):
        run.main(**{**arguments, "passages": "others.jsonl"})


def test_a_run_that_fails_keeps_no_other_back(
    experiment: SimpleNamespace, passages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[str]] = []

    def fails(command: list[str]) -> subprocess.CompletedProcess[str]:
        tried.append(command)
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr(experiment.run, "subprocess", SimpleNamespace(run=fails))
    with pytest.raises(UserError, match="real_.*, simple-4_.*, stitched-4_.* failed"):
        experiment.run.main(passages=str(passages), only=["seeds"], results=str(tmp_path / "results"))
    assert len(tried) == 6


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=2, max_size=12), st.lists(st.integers(0, 9), max_size=20)),
        min_size=1,
    ),
    st.integers(1, 16),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_only_the_real_document_is_predicted(
    experiment: SimpleNamespace, pairs: list[tuple[list[int], list[int]]], length: int
) -> None:
    suite = experiment.siblings.RealBehind(*zip(*pairs, strict=True), length)
    batch = suite.batch(range(suite.windows))
    for (own, piece), tokens, targets in zip(pairs, batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        predicted = [at for at, target in enumerate(targets) if target != experiment.siblings.IGNORED]
        assert [targets[at] for at in predicted] == own[1:][-length:]
        end = predicted[-1]
        assert [*tokens[: end + 1], targets[end]] == (piece + own)[-length - 1 :]
    assert suite.targets == sum(min(len(own) - 1, length) for own, _ in pairs)


def test_copying_gets_right_what_follows_most_often(experiment: SimpleNamespace) -> None:
    copied = experiment.siblings.copied
    assert copied([1, 2, 3, 4], [[1, 2, 3, 4]]) == 2, "the first two have no predecessors"
    assert copied([1, 2, 3], [[1, 2, 5], [1, 2, 3], [9, 1, 2, 5]]) == 0
    assert copied([1, 2, 5, 7], [[1, 2, 5], [1, 2, 3], [9, 1, 2, 5]]) == 1
    assert copied([1, 2, 3], [[1], [2, 3]]) == 0, "pieces are apart"
    assert copied([1, 2, 3], []) == 0


def test_search_ends_where_no_neighbour_is_better(experiment: SimpleNamespace) -> None:
    """Each loss is a convex function with another optimum, and only what the search asks for is known to it."""
    table, run = experiment.table, experiment.run
    optima = {"real": (32, 3e-3, 1.6), "simple": (4, 1e-2, 0.0), "stitched": (1, 3e-2, 0.8)}

    def loss(tried: Any) -> float:
        values = (tried.epochs, tried.learning_rate, tried.weight_decay)
        return sum(
            abs(steps.index(value) - steps.index(best))
            for steps, value, best in zip(table.GRID.values(), values, optima[tried.stream], strict=True)
        )

    known: dict[str, Any] = {}
    while tried := run.following(["search"], "small", known, (), float("inf")):
        known[tried.name] = SimpleNamespace(loss=loss(tried))
    for stream, best in experiment.results.tuned("small", known).items():
        assert (best.epochs, best.learning_rate, best.weight_decay) == optima[stream]
        for axis in table.GRID:
            assert all(near.name in known for near in table.neighbours(best, axis))
    assert len(known) < 60, "of 588"
