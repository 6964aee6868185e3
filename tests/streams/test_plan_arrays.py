"""Plans on a node's disk: computed once, shared, and removed by their last user."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megalit.streams.plan_arrays import PlanArrays, plans_folder

USER = """
import sys, numpy as np
from megalit.streams.plan_arrays import PlanArrays
plans = PlanArrays("key", lambda epoch: {"rows": np.full(3, 10 * epoch)})
print(plans[0]["rows"].tolist(), flush=True)
sys.stdin.readline()
print(plans[5]["rows"].tolist(), flush=True)
"""


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEGALIT_PLANS", str(tmp_path / "plans"))
    return tmp_path / "plans"


def test_a_run_that_ends_leaves_the_plans_of_another(node: Path) -> None:
    plans = PlanArrays("key", lambda epoch: {"rows": np.full(3, 10 * epoch)})
    assert plans[0]["rows"].tolist() == [0, 0, 0]
    other = subprocess.Popen(
        [sys.executable, "-c", USER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "[0, 0, 0]\n"
    plans.forget()
    assert (node / "key" / "epoch-0").exists()
    other.stdin.write("go on\n")
    assert other.stdout.readline() == "[50, 50, 50]\n"
    other.stdin.close()
    other.wait()
    assert plans[1]["rows"].tolist() == [10, 10, 10]
    plans.forget()
    assert not (node / "key").exists()


def test_a_killed_user_keeps_nothing(node: Path) -> None:
    plans = PlanArrays("key", lambda epoch: {"rows": np.full(3, 10 * epoch)})
    other = subprocess.Popen([sys.executable, "-c", USER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == "[0, 0, 0]\n"
    other.kill()
    other.communicate()
    assert plans[0]["rows"].tolist() == [0, 0, 0]
    plans.forget()
    assert not (node / "key").exists()


def test_what_is_mapped_stays_readable_and_is_made_again_when_needed(node: Path) -> None:
    made: list[int] = []

    def compute(epoch: int) -> dict[str, np.ndarray]:
        made.append(epoch)
        return {"rows": np.full(3, epoch)}

    plans = PlanArrays("key", compute)
    rows = plans[7]["rows"]
    plans.forget()
    assert rows.tolist() == [7, 7, 7]
    assert PlanArrays("key", compute)[7]["rows"].tolist() == [7, 7, 7]
    assert made == [7, 7]


@pytest.mark.parametrize("damage", ["rows.npy", "arrays.json", "short", "empty"])
def test_what_a_cleaner_has_left_of_an_epoch_is_made_again(node: Path, damage: str) -> None:
    """Old files in temporary spaces are removed one by one."""

    def plans() -> PlanArrays:
        return PlanArrays("key", lambda epoch: {"rows": np.full(3, 7), "ends": np.arange(4)})

    users = [plans()]
    assert users[0][0]["rows"].tolist() == [7, 7, 7]
    folder = node / "key" / "epoch-0"
    if damage in ("short", "empty"):
        content = (folder / "rows.npy").read_bytes()
        (folder / "rows.npy").unlink()
        (folder / "rows.npy").write_bytes(content[:-8] if damage == "short" else b"")
    else:
        (folder / damage).unlink()
    users.append(plans())
    assert {name: array.tolist() for name, array in users[1][0].items()} == {"rows": [7, 7, 7], "ends": [0, 1, 2, 3]}
    assert users[0][0]["rows"].tolist() == [7, 7, 7]


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 1234"), OSError("No username set")])
def test_a_user_without_a_name_has_plans_too(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """As in containers that are started with a number for a user."""

    def getuser() -> str:
        raise error

    monkeypatch.setattr("getpass.getuser", getuser)
    monkeypatch.delenv("MEGALIT_PLANS")
    assert plans_folder().name == f"megalit-plans-{os.getuid()}"
