"""The experiment on translations: its table holds together, and its driver goes on where it stopped."""

import json
import math
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
    for name in ("run", "table", "results", "report", "siblings", "estimates", "figure", "training"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import estimates
    import report
    import results
    import run
    import siblings
    import table
    import training

    return SimpleNamespace(
        run=run, table=table, results=results, report=report, siblings=siblings, estimates=estimates, training=training
    )


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
    experiment: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megalit.cli.training import TrainingCLI

    parsed = []
    monkeypatch.setattr(TrainingCLI, "fit", lambda self, **_: parsed.append(self.plain_config))
    distinct = {(run.stream, str(run.settings), bool(run.teachers)): run for run in all_runs(experiment.table, "small")}
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


class Process:
    """A run as the driver sees it, trained in this process; a status that is no number is raised when it is asked."""

    def __init__(self, command: list[str], status: Any = None) -> None:
        self.command = command
        self.status = status
        self.stopped = False

    def poll(self) -> int:
        if self.status is not None:
            if not isinstance(self.status, int):
                raise self.status
            return int(self.status)
        cli_fit(self.command[self.command.index("fit") + 1 :])
        return 0

    def terminate(self) -> None:
        self.stopped = True

    def wait(self) -> None:
        assert self.stopped


@pytest.fixture
def started(experiment: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the driver starts: names in order, and statuses by number that runs end with instead of training."""
    seen = SimpleNamespace(names=[], statuses={}, processes=[])

    def start(command: list[str], **_: Any) -> Process:
        seen.names.append(next(part for part in command if part.startswith("--run=")).split("/")[-1])
        seen.processes.append(Process(command, seen.statuses.get(len(seen.names))))
        return seen.processes[-1]

    monkeypatch.setattr(experiment.training, "subprocess", SimpleNamespace(Popen=start))
    return seen


def test_driver_goes_on_after_the_runs_that_have_a_record(
    experiment: SimpleNamespace,
    started: SimpleNamespace,
    passages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, table = experiment.run, experiment.table
    two = [
        replace(table.START["small"]["real"], epochs=1),
        replace(
            table.START["small"]["stitched"], epochs=1, change="real first", settings={"data.real_document": "first"}
        ),
    ]
    monkeypatch.setitem(table.GROUPS, "two", lambda tuned: iter(two))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments: dict[str, Any] = {
        "passages": str(passages),
        "only": ["two"],
        "results": "results",
        "configs": ["tiny.yaml"],
    }

    started.statuses = {2: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run.main(**arguments)
    assert started.processes[-1].stopped, "no training outlives the driver"
    assert two[0].name in Path("results/small/results.md").read_text()
    started.statuses = {3: 75}
    with pytest.raises(UserError, match="told to stop: the same command goes on"):
        run.main(**arguments)
    run.main(**arguments)
    assert started.names == [two[0].name, *3 * [two[1].name]]
    run.main(**arguments)
    assert len(started.names) == 4, "what has a record is not trained again"

    kept = experiment.results.Results(Path("results/small"), None)
    (runs,) = Path("runs/translations").glob("small-*")
    record = experiment.results.read_record(runs / two[1].name)
    assert kept[two[1].name].loss == pytest.approx(record.losses["iid"]["nats_per_token"], abs=1e-5)
    assert kept[two[1].name].curve[-1][0] == kept[two[1].name].tokens
    corpus = Corpus(Path("runs/translations/data/corpus"))
    held_out, read = (
        {row["id"].split(":")[0] for row in corpus.rows("documents", split, ["id"])} for split in (VALIDATION, TRAIN)
    )
    assert held_out
    assert read
    assert not held_out & read, "chapters are held out whole"

    trainer = experiment.training.Trainer([], passages, Path(), runs, quiet=False)
    assert trainer.has(two[1], kept)
    assert not trainer.has(replace(two[1], seed=1), kept)
    kept._results[two[1].name] = replace(kept[two[1].name], loss=1.0)
    assert not trainer.has(two[1], kept), "these are other weights than the record's"

    experiment.siblings.main("runs/translations/data", [str(runs / two[1].name)], most=1, output="siblings.json")
    own, others = json.loads(Path("siblings.json").read_text())[two[1].name].values()
    assert own[0] == others[0], "behind nothing is behind nothing"
    assert own[1] != others[1]
    assert all(loss == pytest.approx(own[0], abs=0.5) for loss in (*own, *others))

    write_jsonl(tmp_path / "others.jsonl", make_rows(40, seed=1))
    with pytest.raises(UserError, match="choose another --results"):
        run.main(**{**arguments, "passages": "others.jsonl"})


def test_a_run_that_fails_keeps_no_other_back(
    experiment: SimpleNamespace, started: SimpleNamespace, known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate may be too high; but where the first runs all fail, there is something else to mend."""
    started.statuses = dict.fromkeys(range(100), 1)
    trainer = experiment.training.Trainer([], Path("passages"), Path("data"), Path("runs"), quiet=False)
    with pytest.raises(UserError, match="the first 3 runs failed"):
        experiment.run.train_table(["search", "seeds"], "small", known, trainer, 2, float("inf"))
    assert all(process.stopped for process in started.processes[3:])

    known.add(experiment.table.START["small"]["real"], Path())
    failed = experiment.run.train_table(["seeds"], "small", known, trainer, 2, float("inf"))
    assert len(failed) == 6


@pytest.fixture
def known(experiment: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Records without files, of runs that reach the loss of :func:`loss`."""
    from megalit.scaling.records import RunRecord

    class Known(experiment.results.Results):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__(tmp_path / "records", "setup")
            self.measured: list[str] = []

        def add(self, run: Any, folder: Path) -> Any:
            values = dict.fromkeys(RunRecord.__dataclass_fields__)
            self._results[run.name] = experiment.results.Result(
                **{name: values.get(name) for name in experiment.results.Result.__dataclass_fields__}
                | {"name": run.name, "arguments": run.arguments(), "loss": loss(run), "bits_per_byte": 1.0}
                | {"tokens": int(1000 * run.passes), "epochs": {"real": run.epochs}, "real_tokens": real_tokens(run)}
            )
            return self._results[run.name]

        def add_average(self, name: str, members: Any, output: Path) -> None:
            self.measured.append(name)

        def averages(self, name: str) -> Any:
            return {"probabilities": [3.0, 2.9], "logits": [3.0, 2.95]} if name in self.measured else None

    return Known()


OPTIMA = {"real": (16, 3e-3, 1.6), "simple": (4, 1e-2, 0.0), "stitched": (8, 3e-2, 0.8)}


def loss(run: Any) -> float:
    """A convex function of the three axes with another optimum for each stream, and what seed and data are worth."""
    from table import GRID

    values = (run.epochs, run.learning_rate, run.weight_decay)
    far = sum(
        abs(steps.index(value) - steps.index(best)) if value in steps else 9
        for steps, value, best in zip(GRID.values(), values, OPTIMA[run.stream], strict=True)
    )
    fewer = math.log2(0.125 / float(run.settings.get("data.real_fraction", "0.125")))
    worth = {"real": 0.5, "simple": 0.2, "stitched": 0.1}[run.stream]
    return 3 + worth + 0.01 * far + 0.02 * run.seed * (1 if run.stream == "real" else 2) + 0.25 * fewer


def real_tokens(run: Any) -> int:
    return int(1000 * float(run.settings.get("data.real_fraction", "0.125")))


@pytest.fixture
def trained(experiment: SimpleNamespace, known: Any, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The whole table, three runs at a time; the highest learning rate fails for real only."""
    order: list[Any] = []

    class Trainer:
        runs = Path()

        def start(self, run: Any) -> SimpleNamespace:
            assert all(teacher.name in known for teacher in run.teachers), "teachers first"
            order.append(run)
            status = int(run.learning_rate == 3e-2 and run.stream == "real")
            return SimpleNamespace(poll=lambda: status)

        def has(self, run: Any, known: Any) -> bool:
            return known.of(run) is not None

        def average(self, name: str, members: Any) -> Path:
            return Path()

        def explain(self, run: Any) -> None:
            pass

    groups = list(experiment.table.GROUPS)
    with monkeypatch.context() as patch:
        patch.setattr(experiment.run, "write_report", lambda *_: None)
        failed = experiment.run.train_table(groups, "small", known, Trainer(), 3, float("inf"))
    return SimpleNamespace(order=order, failed=failed)


def test_the_whole_table_several_runs_at_a_time(
    experiment: SimpleNamespace, known: Any, trained: SimpleNamespace
) -> None:
    table = experiment.table
    order = [run.name for run in trained.order]
    assert len(order) == len(set(order)), "no run twice"
    assert set(trained.failed) == {run.name for run in trained.order if run.stream == "real" and "lr0.03" in run.name}
    for run in trained.order:
        assert run.passes <= 1.001 * table.MOST_PASSES * (2 if run.change == "member" else 1)
    best = experiment.results.tuned("small", known)
    for stream, run in best.items():
        assert (run.epochs, run.learning_rate, run.weight_decay) == OPTIMA[stream]
        untried = [near.name for axis in table.GRID for near in table.neighbours(run, axis) if near.name not in known]
        assert set(untried) <= set(trained.failed)
    settled = max(order.index(run.name) for run in table.search(best) if run.name not in trained.failed)
    others = [run for name, group in table.GROUPS.items() if name != "search" for run in group(best)]
    assert {run.name for run in others} <= set(known), "the whole table, at the best settings"
    assert all(order.index(run.name) > settled for run in others if run not in list(table.search(best)))
    assert set(known.measured) >= set(table.ensembles(best))


def test_nothing_to_report(experiment: SimpleNamespace, known: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records"):
        experiment.report.write_report(known, "small", tmp_path)


def test_report_of_made_up_losses(
    experiment: SimpleNamespace, known: Any, trained: SimpleNamespace, tmp_path: Path
) -> None:
    estimates = experiment.estimates
    best = experiment.results.tuned("small", known)
    # Real only: seeds 0, 1, 2 are .02 apart; the others .04.
    real, simple = (estimates.of_seeds(known, best[stream]) for stream in ("real", "simple"))
    base = loss(best["real"])
    assert {seed: real[seed] for seed in range(3)} == pytest.approx({0: base, 1: base + 0.02, 2: base + 0.04})
    differences, half = estimates.paired(simple, real)
    assert differences[:3] == pytest.approx([differences[0] + 0.02 * seed for seed in range(3)])
    # The 95% interval of the mean of (0, .02, .04): 4.3027 · .02 / sqrt(3).
    assert estimates.half_width([0.0, 0.02, 0.04]) == pytest.approx(0.049683, abs=1e-5)
    assert half is not None
    # Twice the data is worth .25: an eighth of 1,000 tokens is 125.
    points = estimates.baseline(known, best)
    assert [tokens for tokens, _ in points] == [62, 125, 250, 500]
    whole = dict(points)
    assert estimates.efficiency([(100, 4.0), (200, 3.75)], 100, 3.875) == "1.41"
    assert estimates.efficiency(points, 125, whole[500] - 0.1) == "> 4.00"
    assert estimates.efficiency(points, 125, whole[62] + 0.1) == "< 0.50"
    assert estimates.efficiency([(100, 4.0), (200, 4.1)], 100, 4.0).startswith("unknown")
    experiment.report.write_report(known, "small", tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "3.0000 / 2.9000 | 3.0000 / 2.9500" in text
    assert "stitched-4 minus simple-4: " in text
    of_search = text[text.index("## search") : text.index("## seeds")]
    assert "minus" not in of_search, "its runs differ in their settings"
    assert text.count("- stitched-11_") == text.count("- stitched-1_") == 1
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_search_says_where_it_ended(experiment: SimpleNamespace, known: Any) -> None:
    table, edges = experiment.table, experiment.estimates.edges
    run = replace(table.START["small"]["simple"], epochs=8)
    for axis in table.GRID:
        for near in table.neighbours(run, axis):
            known.add(near, Path())
    assert edges(known, run) == ["epochs: at the budget of 32 passes, more was not tried"]
    assert "weight_decay: at the edge of the grid" in edges(known, replace(run, weight_decay=0.0))
    assert edges(known, replace(run, epochs=4))[0] == "epochs: 8 and 2 not tried"


def test_a_record_of_another_meaning_is_not_taken(experiment: SimpleNamespace, known: Any) -> None:
    run = replace(experiment.table.START["small"]["real"], change="muon", settings={"model.optimizer.name": "muon"})
    known.add(run, Path())
    assert known.of(run) is not None
    assert known.of(replace(run, settings={"model.optimizer.momentum": "0.9"})) is None


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
