"""Runs of two ranks that are told to stop at every moment there is, and go on to the same end."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning
import pytest
import torch
from data_sets import DataSet
from forks import finish, fork, ranks
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from megalit.callbacks import Preemption
from megalit.errors import UserError
from megalit.preemption import STOP, STOPPED, Preempted

SCRIPT = Path(__file__).with_name("preempted_training.py")
# The step at which each case stops; at a validation's step the checkpoint stands behind it. Agreement is every 2 steps,
# and at each where one rank's steps take long.
STOPS = {
    "one_rank": 6,
    "sigterm": 6,
    "between_agreements": 6,
    "long_steps": 5,
    "loader_processes": 6,
    "second_signal": 6,
    "in_backward": 8,
    "before_first_step": 0,
    "in_validation": 14,
}


@pytest.fixture(scope="module")
def runs(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, run by two processes."""
    folder = tmp_path_factory.mktemp("preempted")
    processes = [fork(SCRIPT, data_set.folder, folder, start_new_session=True, **rank) for rank in ranks(2)]
    finish(processes, timeout=900)
    return folder


def result(folder: Path, rank: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / f"result-{rank}.json").read_text())
    return value


def trace(folder: Path, rank: int) -> list[str]:
    return (folder / f"trace-{rank}.txt").read_text().splitlines()


@pytest.mark.parametrize("case", STOPS)
def test_all_ranks_stop_at_one_step_and_the_run_ends_as_if_undisturbed(case: str, runs: Path) -> None:
    for rank in range(2):
        # Lightning would kill all where a process behind the first one ended with a code.
        assert result(runs / case, rank)["codes"] == [STOPPED if rank == 0 else 0, 0]
        # No step twice, none left out, each validation once; not even with the work of a checkpoint lost.
        assert trace(runs / case, rank) == trace(runs / "undisturbed", rank)
        assert len(trace(runs / case, rank)) == 24 + 2
        expected = torch.load(runs / "undisturbed" / f"weights-{rank}.pt", weights_only=True)
        found = torch.load(runs / case / f"weights-{rank}.pt", weights_only=True)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("case", STOPS)
def test_the_first_rank_requeues_once_when_the_checkpoint_is_whole(case: str, runs: Path) -> None:
    assert result(runs / case, 1)["requeued"] == []
    saved = [f"step-{STOPS[case]:09d}.ckpt"] if STOPS[case] else []
    assert result(runs / case, 0)["requeued"] == saved


def test_a_run_that_is_at_its_last_step_ends_as_any_other(runs: Path) -> None:
    for rank in range(2):
        assert result(runs / "last_step", rank) == {"codes": [0], "requeued": []}


@pytest.mark.parametrize(
    ("environment", "local_rank", "code"),
    [
        (LightningEnvironment, 0, STOPPED),
        (LightningEnvironment, 1, 0),
        (TorchElasticEnvironment, 1, STOPPED),
        (SLURMEnvironment, 1, STOPPED),
    ],
)
def test_only_what_lightning_has_started_ends_without_the_code(
    environment: type[ClusterEnvironment], local_rank: int, code: int
) -> None:
    """torchrun and SLURM take a code of any rank for what it is."""
    strategy = SimpleNamespace(barrier=lambda: None, cluster_environment=environment.__new__(environment))
    trainer = SimpleNamespace(loggers=[], strategy=strategy, is_global_zero=False, local_rank=local_rank)
    with pytest.raises(Preempted) as ended:
        Preemption()._leave(cast(lightning.Trainer, trainer))
    assert ended.value.code == code


def test_a_trainer_without_a_checkpoint_is_refused() -> None:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, callbacks=[Preemption()], enable_model_summary=False)
    with pytest.raises(UserError, match="nothing to save with"):
        Preemption().setup(trainer, lightning.LightningModule(), "fit")


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2)]
    with STOP.installed():
        STOP.at_once = False
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert STOP.received == "SIGTERM"
        STOP.install(["SIGUSR2"])
        assert signal.getsignal(signal.SIGUSR1) == before[0]
        assert signal.getsignal(signal.SIGUSR2) == STOP._receive
    assert [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2)] == before
