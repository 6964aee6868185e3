"""The experiment on translations: its table holds together, and its driver goes on where it stopped."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data_sets import make_rows, write_jsonl

from megalit import cli
from megalit.corpus.tables import TRAIN, VALIDATION, Corpus
from megalit.errors import UserError
from megalit.streams.store import read_manifest

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
def passages(tmp_path: Path) -> Path:
    rows = make_rows(40)
    for number, row in enumerate(rows):
        row["id"] = f"Book {number // 4}:{number % 4}"
    return write_jsonl(tmp_path / "passages.jsonl", rows)


def all_runs(experiment: SimpleNamespace, scale: str) -> list[Any]:
    tuned = experiment.grid.START[scale]
    return [run for group in experiment.table.GROUPS.values() for run in group(tuned)]


@pytest.mark.parametrize("scale", ["small", "full"])
def test_names_tell_runs_apart(experiment: SimpleNamespace, scale: str) -> None:
    by_name: dict[str, list[str]] = {}
    for run in all_runs(experiment, scale):
        assert by_name.setdefault(run.name, run.arguments()) == run.arguments()
        assert not set(run.name) & set("/ ,:"), "the name is a file's"
    assert len(by_name) == len({tuple(arguments) for arguments in by_name.values()})


@pytest.mark.parametrize("scale", ["small", "full"])
def test_streams_are_compared_at_equal_tokens(experiment: SimpleNamespace, scale: str) -> None:
    start = experiment.grid.START[scale]
    tuned_runs = start | {"samples": start["simple"]}
    groups = ("generations", "order", "batch", "mask", "window", "muon", "copying", "seeds", "mixes", "steps")
    for name in (*groups, "repeats", "hard_labels"):
        for run in experiment.table.GROUPS[name](start):
            tuned = tuned_runs[run.stream]
            assert run.passes == pytest.approx(tuned.passes), run.name


def test_each_setting_is_one_that_fit_knows(
    experiment: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megalit.cli.training import TrainingCLI

    parsed = []
    monkeypatch.setattr(TrainingCLI, "fit", lambda self, **_: parsed.append(self.plain_config))
    distinct = {(run.stream, str(run.settings), bool(run.teachers)): run for run in all_runs(experiment, "small")}
    for run in distinct.values():
        configs = [str(HERE / name) for name in ("base.yaml", "small.yaml")]
        cli_fit(["--config", configs[0], "--config", configs[1], f"--run={tmp_path}", *run.arguments()])
    assert len(parsed) == len(distinct)


def cli_fit(arguments: Sequence[str]) -> None:
    megalit(["fit", *arguments])


def megalit(arguments: Sequence[str]) -> None:
    code: int | str | None = 0
    try:
        cli.main(list(arguments))
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

    def execute(command: list[str], **_: Any) -> SimpleNamespace:
        megalit(command[command.index("megalit") + 1 :])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(experiment.training, "subprocess", SimpleNamespace(Popen=start, run=execute, DEVNULL=None))
    return seen


@pytest.fixture
def arguments(passages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of the driver, for a group ``two`` of tiny runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return {"passages": str(passages), "only": ["two"], "results": "results", "configs": ["tiny.yaml"]}


def test_driver_goes_on_after_the_runs_that_have_a_record(
    experiment: SimpleNamespace,
    started: SimpleNamespace,
    passages: Path,
    arguments: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, start = experiment.run, experiment.grid.START["small"]
    two = [
        replace(start["real"], epochs=1),
        replace(start["stitched"], epochs=1, change="real first", settings={"data.real_document": "first"}),
    ]
    monkeypatch.setitem(experiment.table.GROUPS, "two", lambda tuned: iter(two))

    started.statuses = {2: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run.main(**arguments)
    assert started.processes[-1].stopped, "no training outlives the driver"
    assert two[0].name in Path("results/small/results.md").read_text()
    started.statuses = {3: 75}
    with pytest.raises(UserError, match="told to stop: the same command goes on"):
        run.main(**arguments)
    run.main(**arguments, precision="bf16-mixed", micro_batch=1)
    kept = experiment.results.Results(Path("results/small"), None)
    assert [kept[one.name].precision for one in two] == [None, "bf16-mixed"], "how one machine trains is no other setup"
    assert f"Trained in bf16-mixed, the precision of another machine than the others': {two[1].name}." in (
        Path("results/small/results.md").read_text()
    )
    assert started.names == [two[0].name, *3 * [two[1].name]]
    run.main(**arguments)
    assert len(started.names) == 4, "what has a record is not trained again"

    with pytest.raises(UserError, match="--books nowhere holds no validation store"):
        run.main(**arguments, books="nowhere")
    run.main(**arguments, books="runs/translations/data/stores")
    kept = experiment.results.Results(Path("results/small"), None)
    store = read_manifest(Path("runs/translations/data/stores/validation")).content_hash
    assert max(kept.long(two[0], store)) == 128
    assert not kept.long(two[0], "other books")
    assert "## Long documents" in Path("results/small/results.md").read_text()
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

    measure = experiment.siblings.main
    measure("runs/translations/data", [str(runs / one.name) for one in two], most=1, results="results/small")
    run.main(report=True, results="results")
    kept = experiment.results.Results(Path("results/small"), None)
    own, others = kept.behind_siblings(two[1].name).values()
    (Path("results/small") / f"{two[1].name}.json").unlink()
    with pytest.raises(UserError, match="has no record of the weights in"):
        measure("runs/translations/data", [str(runs / two[1].name)], results="results/small")
    row = f"| {two[1].name} | others | {others[0]:.3f} | {others[1]:.3f} |"
    assert row in Path("results/small/results.md").read_text()
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
        experiment.run.train_table(experiment.run.Agenda(["search", "seeds"], "small"), known, trainer, 2, float("inf"))
    assert all(process.stopped for process in started.processes[3:])

    known.add(experiment.grid.START["small"]["real"], Path())
    failed = experiment.run.train_table(experiment.run.Agenda(["seeds"], "small"), known, trainer, 2, float("inf"))
    assert len(failed) == 6


def test_single_runs_are_chosen_by_name(experiment: SimpleNamespace, known: Any) -> None:
    chosen = experiment.run.Agenda(["search", "mask"], "small", "^stitched.*(wd0.8|masked)")
    (_, of_search), (_, of_mask) = chosen.runs(known)
    assert [run.name for run in of_search] == ["stitched-4_e4_lr0.01_wd0.8"]
    assert [(run.seed, run.stream) for run in of_mask] == [(0, "stitched"), (1, "stitched"), (2, "stitched")]
    with pytest.raises(UserError, match=r"--matching '\(' is no regular expression"):
        experiment.run.Agenda(["search"], "small", "(")
    with pytest.raises(UserError, match="--matching 'mskd' matches no run of search, mask: mend it"):
        experiment.run.train_table(experiment.run.Agenda(["search", "mask"], "small", "mskd"), known, None, 1, 0.0)


def test_the_whole_table_several_runs_at_a_time(
    experiment: SimpleNamespace, known: Any, trained: SimpleNamespace
) -> None:
    table, grid = experiment.table, experiment.grid
    order = [run.name for run in trained.order]
    assert len(order) == len(set(order)), "no run twice"
    assert set(trained.failed) == {run.name for run in trained.order if run.stream == "real" and "lr0.03" in run.name}
    best = experiment.results.tuned("small", known)
    longest = [*table.epochs(best), *table.longer_generations(best)]
    longer = [*table.longer(best), *table.wsd(best), *table.members(best)]
    for run in trained.order:
        times = 4 if run in longest else 2 if run in longer else 1
        assert run.passes <= 1.001 * grid.MOST_PASSES * times
    for stream, run in best.items():
        assert (run.epochs, run.learning_rate, run.weight_decay) == known.optima[stream]
        untried = [near.name for axis in grid.GRID for near in grid.neighbours(run, axis) if near.name not in known]
        assert set(untried) <= set(trained.failed)
    settled = max(order.index(run.name) for run in table.search(best) if run.name not in trained.failed)
    for name, group in table.GROUPS.items():
        named = [run.name for run in group(best)]
        assert len(named) == len(set(named)), f"{name} lists no run twice"
    others = [run for name, group in table.GROUPS.items() if name != "search" for run in group(best)]
    assert {run.name for run in others} <= set(known) | set(trained.failed), "the whole table, at the best settings"
    # What the search may meet on its way has its place there.
    met = {run.name for start in grid.START["small"].values() for run in grid.settings(start)}
    assert all(order.index(run.name) > settled for run in others if run.name not in met)
    assert {name for name, _ in known.measured} >= set(table.ensembles(best))
    of_students = table.ensembles(best)[f"{best['simple'].name}_one-teacher"]
    assert [run.seed for run in of_students] == [3, 4, 5], "no student begins where its teacher did"
    assert {run.teachers for run in of_students} == {(best["simple"],)}
    of_real = [count for name, count in known.measured if name == best["real"].name]
    assert of_real == [3, 4, 5], "three members are measured as soon as they are there"
    assert known.measured.count((f"{best['real'].name}_one-teacher", 3)) == 1


def test_a_student_reads_what_its_teacher_said(
    experiment: SimpleNamespace,
    started: SimpleNamespace,
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = replace(experiment.grid.START["small"]["real"], epochs=1)
    student = replace(teacher, stream="samples", generations=2, seed=1, teachers=(teacher,), change="hard labels")
    monkeypatch.setitem(experiment.table.GROUPS, "two", lambda tuned: iter([teacher, student]))
    monkeypatch.setattr(experiment.training, "SAMPLE_TOKENS", 60)
    experiment.run.main(**arguments)

    known = experiment.results.Results(Path("results/small"), None)
    (runs,) = Path("runs/translations").glob("small-*")
    stores = runs / teacher.name / "hard_labels" / "stores"
    # Sampled tokens are counted with their ends, and their text may need fewer.
    assert read_manifest(stores / "samples").tokens == pytest.approx(2 * known[teacher.name].real_tokens, rel=0.1)
    assert known[student.name].real_tokens == known[teacher.name].real_tokens
    assert set(known[student.name].epochs) == {"real", "samples"}
    assert known[student.name].synthetic_share == pytest.approx(0.75, abs=0.05)
    text = Path("results/small/results.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {student.name} |")]
    gap = known[student.name].loss - known[teacher.name].loss
    assert row.split("|")[-2].strip() == f"{gap:+.4f}"


def test_students_wait_for_their_teachers(
    experiment: SimpleNamespace, known: Any, started: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = experiment.training.Trainer([], Path("passages"), Path("data"), Path("runs"), quiet=False)
    agenda = experiment.run.Agenda(["students"], "small", "^real")
    assert experiment.run.train_table(agenda, known, trainer, 1, float("inf")) == []
    assert not started.names
    teacher = experiment.grid.START["small"]["real"].name
    assert f"needs {teacher}, which is not trained" in capsys.readouterr().err
