"""Several workers on one study: nothing twice, and nothing lost where one of them dies."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from surfaces import PAPER, Toy, open_study, ridge, sweep

from megalit.errors import UserError
from megalit.tuning import Results, certify
from megalit.tuning.results import BEAT, CLAIM, Unit
from megalit.tuning.samplers import ConvexSampler
from megalit.tuning.space import Space
from megalit.tuning.study import JOURNAL, SharedStudy
from megalit.tuning.trials import FitRunner, Outcome
from megalit.tuning.worker import Task, Worker

LINE = {"a": [1, 2, 3, 4, 5]}


def start(folder: Path, seconds: float) -> "subprocess.Popen[bytes]":
    script = Path(__file__).parent / "toy_worker.py"
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(script.parent)])
    return subprocess.Popen([sys.executable, script, folder, str(seconds)], env={**os.environ, "PYTHONPATH": path})


def asked(folder: Path) -> list[str]:
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("code", "told", "status"), [(75, False, "interrupted"), (1, True, "interrupted"), (1, False, "failed")]
)
def test_a_trial_that_is_signalled_with_its_worker_has_not_failed(
    code: int, told: bool, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM signals both; the trial may end before the worker looks."""
    ended = threading.Event()

    class Ends(subprocess.Popen[bytes]):
        def poll(self) -> int | None:
            self.wait()
            ended.set()
            return super().poll()

    monkeypatch.setattr(subprocess, "Popen", Ends)
    monkeypatch.setattr(FitRunner, "command", lambda *_: [sys.executable, "-c", f"raise SystemExit({code})"])
    outcome = FitRunner((), tmp_path)(Unit((1,), 0), Space.parse(LINE), 0, lambda: told and ended.is_set())
    assert outcome.status == status


def test_workers_at_once_run_no_point_twice(tmp_path: Path) -> None:
    workers = [start(tmp_path, 0.1) for _ in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    lines = asked(tmp_path)
    assert len({line.split()[0] for line in lines}) > 1
    units = Counter(line.partition(" ")[2] for line in lines)
    assert set(units.values()) == {1}
    results = SharedStudy(tmp_path).results
    assert len(results.claims) == len(results.valid) == len(lines)
    assert certify(results).certified


def test_a_killed_worker_leaves_its_point_to_the_next(tmp_path: Path) -> None:
    worker = start(tmp_path, 600)
    while not asked(tmp_path):
        assert worker.poll() is None
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    toy = Toy(ridge)
    # At once: the dead process was one of this machine.
    results = sweep(open_study(tmp_path, PAPER), toy)
    assert certify(results).certified
    assert set(toy.asked.values()) == {1}
    (given_up,) = [claim for claim in results.claims if claim.status == "abandoned"]
    assert toy.asked[given_up.unit] == 1
    assert "died" in (given_up.error or "")


def claim_elsewhere(study: SharedStudy) -> int:
    """A claim by a worker of another machine."""
    task = Worker(study, ConvexSampler(), Toy(lambda unit: 0.0)).next()
    assert isinstance(task, Task)
    task.trial.set_user_attr(CLAIM, {"seed": 0, "machine": "another", "host": "another", "pid": 1})
    return task.trial.number


def test_a_silent_worker_of_another_node_is_taken_over_and_one_that_counts_is_not(tmp_path: Path) -> None:
    study = open_study(tmp_path, LINE)
    number = claim_elsewhere(study)
    other = SharedStudy(tmp_path, dead_after_seconds=0.3)
    trial = study.study.get_trials(deepcopy=False)[number]
    for beat in range(8):
        study._storage.set_trial_user_attr(trial._trial_id, BEAT, beat)
        with other.asking():
            other.release_dead()
        assert other.results.valid[Unit((3,), 0)].number == number
        time.sleep(0.1)
    time.sleep(0.4)
    with other.asking():
        other.release_dead()
    assert Unit((3,), 0) not in other.results.valid
    # Should it live after all, what it says comes too late.
    study.tell(number, Outcome("done", 0.5))
    assert study.results.claims[number].status == "abandoned"


def test_a_worker_that_lost_its_claim_stops_its_trial(tmp_path: Path) -> None:
    study = SharedStudy(tmp_path, dead_after_seconds=0.3)
    study.describe({}, Space.parse(LINE), [0], {}, False)
    task = Worker(study, ConvexSampler(), Toy(lambda unit: 0.0)).next()
    assert isinstance(task, Task)
    lost = threading.Event()
    with study.alive(task.trial, lost):
        assert not lost.wait(0.5)
        SharedStudy(tmp_path).give_up(task.trial.number, "taken over")
        assert lost.wait(10)


def test_a_worker_that_dies_while_it_asks_leaves_no_claim(tmp_path: Path) -> None:
    study = open_study(tmp_path, LINE)
    study.study.sampler = optuna.samplers.RandomSampler()
    study.study.ask(study.results.space.distributions(by_number=True))
    toy = Toy(lambda unit: abs(unit.point[0] - 3))  # type: ignore[operator]
    results = sweep(study, toy)
    assert certify(results).certified
    assert results.claims[0].status == "abandoned"


@pytest.mark.parametrize("sampler", [ConvexSampler(), optuna.samplers.RandomSampler()])
def test_a_worker_whose_lock_was_broken_before_it_claimed_asks_again(
    sampler: optuna.samplers.BaseSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(tmp_path, LINE, by_number=isinstance(sampler, ConvexSampler))
    claim, slept = study.claim, []

    def sleeps_once(trial: optuna.Trial, seed: int) -> None:
        if not slept:
            slept.append(trial.number)
            SharedStudy(tmp_path).release_dead()  # by a worker that holds the lock now
        claim(trial, seed)

    monkeypatch.setattr(study, "claim", sleeps_once)
    toy = Toy(lambda unit: abs(unit.point[0] - 3))  # type: ignore[operator]
    results = sweep(study, toy, sampler)
    assert slept == [0]
    assert results.claims[0].status == "abandoned"
    assert certify(results).certified
    assert set(toy.asked.values()) == {1}


def test_a_worker_that_fails_gives_its_point_back(tmp_path: Path) -> None:
    study = open_study(tmp_path, LINE)

    def broken(*_: object) -> Outcome:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Worker(study, ConvexSampler(), broken).run(threading.Event())
    toy = Toy(lambda unit: abs(unit.point[0] - 3))  # type: ignore[operator]
    assert certify(sweep(study, toy)).certified


def test_half_a_line_at_the_journals_end_is_cut_off(tmp_path: Path) -> None:
    toy = Toy(lambda unit: abs(unit.point[0] - 3))  # type: ignore[operator]
    sweep(open_study(tmp_path, LINE), toy, trials=2)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "wor')
    assert certify(sweep(open_study(tmp_path, LINE), toy)).certified
    assert set(toy.asked.values()) == {1}


def test_another_sweep_in_the_folder_is_refused(tmp_path: Path) -> None:
    SharedStudy(tmp_path).describe({"suite": "iid"}, Space.parse(LINE), [0], {}, False)
    with pytest.raises(UserError, match="another suite"):
        SharedStudy(tmp_path).describe({"suite": "long"}, Space.parse(LINE), [0], {}, False)
    sweep(SharedStudy(tmp_path), Toy(lambda unit: 1.0))
    with pytest.raises(UserError, match=r"space\.a has values of another kind"):
        SharedStudy(tmp_path).describe({"suite": "iid"}, Space.parse({"a": ["x", "y"]}), [0], {}, False)
    larger = Space.parse({"a": [1, 2, 3, 4, 5, 6]})
    SharedStudy(tmp_path).describe({"suite": "iid"}, larger, [0], {}, False)
    assert Results(SharedStudy(tmp_path).study).space == larger


@pytest.mark.parametrize("study_name", ["sweep", "old"])
def test_a_folder_under_another_name_holds_the_same_sweep(study_name: str, tmp_path: Path) -> None:
    """Also one whose study was named after the folder, and one that lies beside an empty study since it was renamed."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    storage = JournalStorage(JournalFileBackend(str(old / JOURNAL)))
    optuna.create_study(storage=storage, study_name=study_name)
    toy = Toy(lambda unit: abs(unit.point[0] - 3))  # type: ignore[operator]
    sweep(open_study(old, LINE), toy, trials=2)
    optuna.create_study(storage=storage, study_name="new")
    shutil.copytree(old, new)
    old.rename(tmp_path / "older")
    for folder in (new, tmp_path / "older"):
        assert SharedStudy(folder).results.count("done") == 2
    certificate = certify(sweep(open_study(new, LINE), toy))
    assert certificate.certified
    assert set(toy.asked.values()) == {1}


def test_a_look_at_a_sweep_writes_no_journal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sweep"):
        SharedStudy(tmp_path / "nowhere", create=False)
    assert not (tmp_path / "nowhere").exists()
    # A command that was killed before it had said what the sweep is.
    for begin in (lambda: (tmp_path / JOURNAL).touch(), lambda: SharedStudy(tmp_path)):
        begin()
        before = (tmp_path / JOURNAL).read_bytes()
        with pytest.raises(UserError, match="stopped before it began: give its command again"):
            SharedStudy(tmp_path, create=False)
        assert (tmp_path / JOURNAL).read_bytes() == before
    open_study(tmp_path, LINE)
    before = (tmp_path / JOURNAL).read_bytes()
    assert SharedStudy(tmp_path, create=False).results.claims == []
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text("this is\nno journal\n")
    with pytest.raises(UserError, match="is no journal"):
        SharedStudy(tmp_path)
