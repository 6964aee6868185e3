"""Real runs, one and two processes, killed at random moments and continued."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import DataSet
from forks import Fork, finish, fork, ranks
from traced_training import data_module

from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.streams.loading import split

SCRIPT = Path(__file__).with_name("traced_training.py")
Windows = set[tuple[int, ...]]


def start(
    data_set: DataSet, folder: Path, steps: int, devices: int, workers: int = 0, micro_batch: int = 1
) -> list[Fork]:
    """The processes of a run, each in a session of its own with its loader's workers."""
    folder.mkdir(exist_ok=True)
    arguments = [str(argument) for argument in (data_set.folder, folder, devices, workers, micro_batch, steps)]
    told = ranks(devices) if devices > 1 else [{}]
    return [fork(SCRIPT, *arguments, start_new_session=True, **variables) for variables in told]


def kill_at(processes: list[Fork], folder: Path, step: int) -> None:
    """SIGKILL to all processes of the run, once it has passed a step."""
    deadline = time.monotonic() + 300
    while max((number for number, _ in trace(folder)), default=0) < step:
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for process in processes:
        process.kill(whole_session=True)
    for process in processes:
        process.wait(60)


def trace(folder: Path) -> list[tuple[int, Windows]]:
    """(step, windows) as each rank wrote them down; a line that was cut off by the kill does not count."""
    lines = [line for path in folder.glob("trace-*.txt") for line in path.read_text().split("\n")[:-1]]
    return [
        (int(step), {tuple(map(int, window.split(":"))) for window in windows})
        for step, *windows in (line.split() for line in lines)
    ]


def planned(data_set: DataSet, steps: int) -> list[Windows]:
    """What each step has to read, from the plan alone."""
    data = data_module(str(data_set.folder), steps)
    data.setup("validate")
    dataset = data.train_dataloader().dataset
    size = data.global_batch
    batches = [split(dataset[range(size * step, size * (step + 1))]) for step in range(steps)]
    return [{tuple(row) for row in batch["provenance"].tolist()} for batch in batches]


def check_trace(data_set: DataSet, folder: Path, steps: int) -> None:
    """Every step read its windows, all of them, and no others, each time it was run."""
    plan = planned(data_set, steps)
    read: list[Windows] = [set() for _ in plan]
    for step, windows in trace(folder):
        assert windows <= plan[step - 1]
        read[step - 1] |= windows
    assert read == plan


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def test_killed_and_continued_on_the_same_topology_is_bit_identical(data_set: DataSet, tmp_path: Path) -> None:
    steps = 60
    finish(start(data_set, tmp_path / "whole", steps, devices=2))
    kill_at(start(data_set, tmp_path / "killed", steps, devices=2), tmp_path / "killed", random.randint(5, 40))
    finish(start(data_set, tmp_path / "killed", steps, devices=2))
    check_trace(data_set, tmp_path / "whole", steps)
    check_trace(data_set, tmp_path / "killed", steps)
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(killed[name], value) for name, value in whole.items())


def test_killed_and_continued_with_other_ranks_workers_and_micro_batch(data_set: DataSet, tmp_path: Path) -> None:
    steps = 60
    kill_at(start(data_set, tmp_path / "run", steps, devices=2), tmp_path / "run", random.randint(4, 15))
    middle = start(data_set, tmp_path / "run", steps, devices=1, workers=1, micro_batch=3)
    kill_at(middle, tmp_path / "run", random.randint(25, 40))
    finish(start(data_set, tmp_path / "run", steps, devices=2, workers=1, micro_batch=2))
    check_trace(data_set, tmp_path / "run", steps)


@pytest.mark.slow
def test_fifty_kills(data_set: DataSet, tmp_path: Path) -> None:
    steps, topologies = 900, np.array([(1, 0, 1), (2, 0, 1), (1, 2, 4), (2, 1, 2)])
    for number in range(50):
        devices, workers, micro_batch = topologies[random.randrange(4)].tolist()
        processes = start(data_set, tmp_path / "run", steps, devices, workers, micro_batch)
        kill_at(processes, tmp_path / "run", 16 * number + random.randint(4, 16))
    finish(start(data_set, tmp_path / "run", steps, devices=2))
    check_trace(data_set, tmp_path / "run", steps)
