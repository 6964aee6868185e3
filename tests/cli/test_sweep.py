"""``megalit sweep``: real trials, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from data_sets import DataSet
from forks import Fork, fork
from optuna.samplers import TPESampler
from running import Run, start

from megalit.cli import sweep
from megalit.cli.fit_config import ParsedFit, fit_config, parse_fit
from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.scaling.records import read_record
from megalit.tuning import trials
from megalit.tuning.results import Unit
from megalit.tuning.space import Space
from megalit.tuning.study import SharedStudy
from megalit.tuning.trials import FitRunner, Outcome

CONFIGS = Path(__file__).parents[2] / "configs"


def config(folder: Path, base: Path, **settings: Any) -> Path:
    """A sweep over runs of a second: a rate that diverges is among its values."""
    path = folder / "sweep.yaml"
    value = {
        "output": "sweep",
        "fit": [f"--config={base}"],
        "start": {"model.weight_decay": 0.0},
        "space": {"model.learning_rate": [0.01, 1e30], "model.weight_decay": [0.0, 0.1]},
    }
    path.write_text(yaml.safe_dump(value | settings))
    return path


def certificate(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "sweep" / "certificate.json").read_text())
    return value


@pytest.fixture
def forked_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials without the start of an interpreter, for tests of what is between them."""

    def start_trial(command: list[str], **_: Any) -> Fork:
        return fork(command[2], *command[3:], start_new_session=True)

    monkeypatch.setattr(trials, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start_trial}))


def test_a_sweep_ends_with_a_certificate(run: Run, small: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    sweep_config = config(tmp_path, small)
    assert run("sweep", "--config", sweep_config, "--workers", "2") == 0
    found = certificate(tmp_path)
    assert found["certified"]
    assert found["trials"] == {"done": 2, "diverged": 1, "failed": 0, "running": 0}
    assert found["point"]["model.learning_rate"] == 0.01
    (rate,) = [n for n in found["neighbours"] if n["axis"] == "model.learning_rate"]
    assert rate["status"] == "diverged"
    assert {axis for axis, _ in found["edges"]} == {"model.learning_rate", "model.weight_decay"}
    # The loss is the record's, of an ordinary run with its own configuration.
    decay = found["point"]["model.weight_decay"]
    folder = tmp_path / "sweep" / "runs" / f"learning_rate=0.01,weight_decay={decay},seed=0"
    record = read_record(folder)
    assert record.status == "finished"
    assert record.config["model"]["weight_decay"] == decay
    assert found["loss"] == record.losses["iid"]["nats_per_token"]
    assert found["steps"] == record.steps
    said = capsys.readouterr().err
    assert "certified: locally optimal" in said
    assert "at the low edge of its grid" in said
    assert "is not finite at step" in said

    before = (tmp_path / "sweep" / "study.journal").read_text().count('"op_code":4')
    (tmp_path / "sweep" / "sweep.png").unlink()
    assert run("sweep", "--output", "sweep", "--status") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["certified"]
    assert "diverged" in shown.err
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert run("sweep", "--config", sweep_config) == 0
    assert (tmp_path / "sweep" / "study.journal").read_text().count('"op_code":4') == before


@pytest.mark.parametrize(
    ("of_sweep", "of_fit", "said"),
    [
        ({"suite": "long"}, [], "suite is 'long', and `megalit fit` validates on iid alone"),
        ({}, ["--trainer.limit_val_batches=0"], "fit sets trainer.limit_val_batches to 0, so no trial has a loss"),
        ({}, ["--data.stores=without"], "the token stores hold no held-out documents"),
        (
            {},
            ["--data.stores=null", "--prepare.folder=later", "--prepare.corpus.validation_fraction=0"],
            "the token stores hold no held-out documents",
        ),
    ],
)
def test_a_suite_that_no_trial_will_have_is_refused_before_the_first_one(
    run: Run,
    small: Path,
    data_set: DataSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    of_sweep: dict[str, Any],
    of_fit: list[str],
    said: str,
) -> None:
    shutil.copytree(data_set.folder, tmp_path / "without", ignore=shutil.ignore_patterns("validation"))
    assert run("sweep", "--config", config(tmp_path, small, fit=[f"--config={small}", *of_fit], **of_sweep)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_suite_that_may_come_is_not_refused(small: Path, data_set: DataSet, tmp_path: Path) -> None:
    """While another worker's trial builds the stores; and a data module of the user's own may have others."""
    shutil.copytree(data_set.stores.real.folder, tmp_path / "data" / "stores" / "real")
    prepared = [f"--prepare.folder={tmp_path / 'data'}", "--prepare.corpus.validation_fraction=0.2"]
    built = parse_fit(ParsedFit, [f"--config={small}", "--data.stores=null", *prepared]).config
    own = SimpleNamespace(trainer=built.trainer, data=SimpleNamespace(class_path="mine.Module", init_args={}))
    for suite, asked in (("iid", built), ("own", own)):
        sweep._check_suite(sweep.SweepCommand(suite=suite), asked)


@pytest.mark.slow
def test_a_sweep_killed_in_a_trial_continues_that_run(run: Run, small: Path, tmp_path: Path) -> None:
    small.write_text(small.read_text().replace("total_tokens: 5000", "total_tokens: 60000"))
    sweep_config = config(tmp_path, small, space={"model.weight_decay": [0.0, 0.1]})
    process = start("sweep", "--config", sweep_config, folder=tmp_path)
    runs = tmp_path / "sweep" / "runs"
    while not (runs.is_dir() and any(newest_checkpoint(folder) for folder in runs.iterdir() if folder.is_dir())):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (trial,) = [folder.name for folder in runs.iterdir() if folder.is_dir()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    for pid in trials_of(tmp_path):
        os.killpg(pid, signal.SIGKILL)
    second = start("sweep", "--config", sweep_config, folder=tmp_path)
    assert second.wait(300) == 0, second.communicate()
    log = (tmp_path / "sweep" / "logs" / f"{trial}.log").read_text()
    assert log.count("continuing from") == 1
    results = SharedStudy(tmp_path / "sweep").results
    assert Counter(claim.status for claim in results.claims) == {"abandoned": 1, "done": 2}
    assert certificate(tmp_path)["certified"]


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_gives_its_trial_back(small: Path, tmp_path: Path) -> None:
    small.write_text(small.read_text().replace("total_tokens: 5000", "total_tokens: 10_000_000"))
    sweep_config = config(tmp_path, small, space={"model.weight_decay": [0.0, 0.1]})
    process = start("sweep", "--config", sweep_config, folder=tmp_path)
    while not trials_of(tmp_path):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "the same command continues" in said
    assert not trials_of(tmp_path)
    (claim,) = SharedStudy(tmp_path / "sweep").results.claims
    assert claim.status == "abandoned"


def trials_of(folder: Path) -> list[int]:
    """Trials that run in a folder, by the command lines of all processes."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if b"\0fit\0" in (entry / "cmdline").read_bytes() and (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return [pid for pid in found if os.getpgid(pid) == pid]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--workers", "0"], "workers is 0"),
        (["--trials", "0"], "trials is 0"),
        (["--seeds", "[]"], "seeds are none"),
        (["--seeds", "[1,1]"], "seeds are none, repeated"),
        (["--search", "steepest"], "search"),
        (["--start", "{model.shape: tiny}"], "start.model.shape is not in space"),
        (["--start", "{model.weight_decay: 7}"], "is not on the grid"),
        (["--fit", "[fit]"], "leave out 'fit'"),
        (["--fit", "[--model.depth=3]"], "model.depth"),
        (["--fit+=[--overwrite, 'true']"], "fit.overwrite is not for sweeps"),
        (["--space", "{}"], "space is empty"),
        (["--space", "{model.depth: [1, 2]}", "--start", "{}"], "model.depth"),
        (["--space", "{model.weight_decay: []}"], "is an empty grid"),
        (["--space", "{model.weight_decay: [0.2, 0.1]}"], "is not in order"),
        (["--space", "{model.weight_decay: [0.1, 0.1]}"], "holds a value twice"),
        (["--space", "{model.weight_decay: [low, high]}"], "weight_decay"),
        (["--space", "{run: [a, b]}"], "the sweep's own affair"),
        (["--space", "{seed_everything: [1, 2]}"], "use seeds"),
        (["--space", "{model.weight_decay: {float: [0, 1]}}"], "needs a grid"),
        (["--space", "{model.weight_decay: {float: [0, 1]}}", "--search", "random"], "give trials"),
        (["--status", "--output", "nowhere"], "nowhere holds no sweep"),
    ],
)
def test_bad_input_ends_in_one_line(  # type: ignore[no-untyped-def]
    run: Run, small: Path, tmp_path: Path, capsys, flags: list[str], said: str
) -> None:
    assert run("sweep", "--config", config(tmp_path, small), *flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("megalit: error:")
    assert said in line
    assert not (tmp_path / "sweep").exists()


@pytest.mark.usefixtures("forked_trials")
def test_trials_of_a_base_that_has_changed_are_not_mixed_with_others(
    run: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"space": {"model.learning_rate": [0.01, 0.02]}, "start": {}, "search": "grid"}
    first = config(tmp_path, small, **space, trials=1)
    assert run("sweep", "--config", first) == 0
    small.write_text(small.read_text().replace("total_tokens: 5000", "total_tokens: 2500"))
    assert run("sweep", "--config", first) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "sweep holds trials with another data.total_tokens (5000, not 2500): give `fit` what it was" in said
    small.write_text(small.read_text().replace("total_tokens: 2500", "total_tokens: 5000"))
    assert run("sweep", "--config", first, "--trials", "2") == 0


@pytest.mark.usefixtures("forked_trials")
def test_trials_that_had_no_seeds_of_their_own_are_told_of(
    run: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version ran them where the base states its seeds."""
    small.write_text(small.read_text().replace("model: {", "model: {seed: 0, "))
    fit = [f"--config={small}", "--data.seed=0"]
    space = {"space": {"model.learning_rate": [0.01, 0.02]}, "start": {}, "search": "grid", "seeds": [0, 1]}
    asked = config(tmp_path, small, **space, fit=fit)
    with monkeypatch.context() as patch:
        patch.setattr(trials, "seed_flags", lambda seed: [f"--seed_everything={seed}"])
        assert run("sweep", "--config", asked, "--trials", "1") == 0
    assert run("sweep", "--config", asked, "--trials", "2") == 2
    assert "an earlier version gave the base's own seeds" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("forked_trials")
def test_a_sweep_over_a_setting_of_a_callback_goes_on(run: Run, small: Path, tmp_path: Path) -> None:
    fit = [f"--config={small}", "--trainer.callbacks+=EMAWeightAveraging"]
    space = {"space": {"trainer.callbacks.decay": [0.5, 0.9]}, "start": {}, "search": "grid"}
    asked = config(tmp_path, small, **space, fit=fit, trials=1)
    assert run("sweep", "--config", asked) == 0
    assert run("sweep", "--config", asked, "--trials", "2") == 0
    assert certificate(tmp_path)["trials"]["done"] == 2


def test_a_sweep_that_was_killed_before_it_began_is_told_of_in_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SharedStudy(tmp_path / "begun")
    assert run("sweep", "--output", "begun", "--status") == 2
    said = capsys.readouterr().err
    assert said == "megalit: error: begun holds a sweep that was stopped before it began: give its command again\n"


def seeds_of_a_trial(fit: list[str], seed: int, space: dict[str, Any], **settings: Any) -> tuple[int, int]:
    """Model and data seed of the first point's trial."""
    held = Space.parse(space)
    unit = Unit(held.start({}), seed)
    _, _, _, _, *arguments = FitRunner(fit, Path("sweep"), **settings).command(unit, held, Path("trial"))
    found = fit_config(arguments)
    return found["model"]["seed"], found["data"]["init_args"]["seed"]


def test_a_trials_seed_is_that_of_model_and_data_whatever_the_base_states(small: Path, tmp_path: Path) -> None:
    """The saved configuration of a run states all seeds: without more, three trials would be one."""
    saved = tmp_path / "saved.yaml"
    saved.write_text(yaml.safe_dump(fit_config(["--config", str(small)])))
    of_a_class = ["--data=RealStream", "--data.stores=x", "--model.shape=nano"]
    space = {"model.weight_decay": [0.1]}
    for fit in (["--config", str(saved)], ["--config", str(small)], of_a_class):
        assert [seeds_of_a_trial(fit, seed, space) for seed in (0, 1, 2)] == [(0, 0), (1, 1), (2, 2)]
    # An axis may be a seed itself; and a sweep that names no seeds keeps a base's own, that are set apart.
    assert seeds_of_a_trial(["--config", str(saved)], 1, {"data.seed": [7]}) == (1, 7)
    apart = ["--config", str(saved), "--model.seed=3", "--data.seed=7"]
    assert seeds_of_a_trial(apart, 0, space, base_seed=0) == (3, 7)
    assert seeds_of_a_trial(apart, 1, space, base_seed=0) == (1, 1)


def test_a_grid_of_fractions_ends_where_fit_takes_no_more(
    run: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.5, 0.75, 0.9 would be followed by 1.05."""

    def trial(runner: FitRunner, unit: Unit, *_: object) -> Outcome:
        fraction = float(unit.point[0])
        return (
            Outcome("done", 2 - fraction, 1) if fraction <= 1 else Outcome("failed", error="choose a value in [0, 1]")
        )

    monkeypatch.setattr(FitRunner, "__call__", trial)
    space = {"data.synthetic_fraction": [0.5, 0.75, 0.9]}
    assert run("sweep", "--config", config(tmp_path, small, space=space, start={}), "--extend") == 0
    found = certificate(tmp_path)
    assert found["certified"]
    assert found["edges"] == [["data.synthetic_fraction", "high"]]


def test_a_base_that_cannot_run_ends_with_its_own_error(run: Run, small: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    broken = config(tmp_path, small, fit=[f"--config={small}", "--data.stores=nowhere"])
    assert run("sweep", "--config", broken) == 2
    said = capsys.readouterr().err
    assert "failed" in said
    assert "nowhere" in said
    assert "no point has a finite loss" in said
    assert certificate(tmp_path)["trials"]["failed"] == 1


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").iterdir()), ids=lambda path: path.stem)
def test_the_sweeps_that_come_with_megalit_are_well_formed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    command = sweep.parse("sweep", sweep.SweepCommand, ["--config", str(path)])
    space = Space.parse(command.space)
    assert sweep._base_settings(command, space)["model"]["shape"]


def test_a_sampler_of_optuna_is_named_by_class_path(small: Path, tmp_path: Path) -> None:
    named = {"class_path": "optuna.samplers.TPESampler", "init_args": {"seed": 0, "n_startup_trials": 3}}
    command = sweep.parse("sweep", sweep.SweepCommand, ["--config", str(config(tmp_path, small, search=named))])
    assert type(sweep._sampler(command, Space.parse(command.space))) is TPESampler


@pytest.mark.parametrize("values", [list(range(1, 10)), {"float": [0.001, 0.1]}])
def test_the_bases_seed_is_that_of_a_random_search(
    values: Any, run: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FitRunner, "__call__", lambda *_: Outcome("done", 1.0))
    search = {"space": {"model.learning_rate": values}, "start": {}, "search": "random", "trials": 2}

    def drawn(name: str, seed: int) -> Any:
        fit = [f"--config={small}", f"--seed_everything={seed}"]
        assert run("sweep", "--config", config(tmp_path, small, **search, fit=fit, output=name)) == 0
        return SharedStudy(tmp_path / name).results.points

    assert drawn("one", 0) == drawn("two", 0) != drawn("three", 1)
