"""Ranks on several nodes: one folder, and one checkpoint that all of them go on from."""

from pathlib import Path

import pytest
from data_sets import DataSet
from forks import Fork, fork, ranks
from running import Run, losses

from megalit.evaluation.checkpoints import newest_checkpoint

HERE = Path(__file__).parent
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def fit(config: Path, *places: Path, patience: int = 1, **variables: str) -> list[Fork]:
    """A command on two nodes, each in a folder of its own, that waits some seconds for what it does not see."""
    script = HERE / "impatient_fit.py"
    return [
        fork(script, "fit", "--config", config, *TWO, folder=place, PATIENCE=str(patience), **rank, **variables)
        for place, rank in zip(places, ranks(2), strict=True)
    ]


@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_that_nodes_do_not_share_is_refused_at_once(
    begun: bool, small: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Before the first step of a run that no start after it could continue, or with weights of two states."""
    if begun:
        request.getfixturevalue("stopped")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for process in fit(small, tmp_path, elsewhere):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 2, said
        line = said.splitlines()[-1]
        assert line.startswith("megalit: error: rank 1 does not see what rank 0 writes into run: choose a --run on")
    assert not list((tmp_path / "run").glob(".token*"))
    assert not list((elsewhere / "run").glob(".token*"))


@pytest.mark.parametrize("late", ["0", "1"])
def test_a_node_that_sees_the_newest_checkpoint_late_waits_for_it(
    late: str, run: Run, small: Path, stopped: Path, tmp_path: Path
) -> None:
    """It goes on from there with the others, though it was about to begin anew, and ends as an undisturbed run."""
    for process in fit(small, tmp_path, tmp_path, patience=300, LATE=late, LOOKS="3"):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert run("fit", "--config", small, "--run", "whole") == 0
    found, expected = losses(stopped), losses(tmp_path / "whole")
    assert [step for step, _ in found] == list(range(1, 41))
    assert found[:12] == expected[:12]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], abs=1e-4)


def test_a_checkpoint_that_a_node_never_sees_ends_all_of_them(small: Path, stopped: Path, tmp_path: Path) -> None:
    for process in fit(small, tmp_path, tmp_path, LATE="1", LOOKS="1000000"):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 2, said
        line = said.splitlines()[-1]
        assert "rank 1 does not see run/checkpoints/step-000000012.ckpt, which another rank would go on from" in line


# Where the folder's own look has let it pass.
BLIND = """
import runpy, sys
from megalit.callbacks import Checkpoint
from megalit.evaluation import shared_folder
shared_folder.PATIENCE = 0.0
Checkpoint.setup = lambda *_, **__: None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_sharded_checkpoint_without_another_nodes_part_gets_no_name(data_set: DataSet, tmp_path: Path) -> None:
    (tmp_path / "blind.py").write_text(BLIND)
    script = HERE.parent / "modeling" / "sharded_training.py"
    processes = []
    for rank in ranks(2):
        place = tmp_path / rank["RANK"]
        place.mkdir()
        arguments = (script, data_set.folder, "run", "3", "32-true", "shards")
        processes.append(fork(tmp_path / "blind.py", *arguments, folder=place, **rank))
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode != 0
        assert "was written and is not there, so the checkpoint could not be read" in said
    assert [newest_checkpoint(tmp_path / rank / "run") for rank in "01"] == [None, None]
