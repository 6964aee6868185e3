"""Plans on a node's disk: computed once, shared, and removed by their last user."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megalit.streams.plan_arrays import PlanArrays

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
