"""Ranks on several nodes: one folder, and one checkpoint that all of them go on from."""

from pathlib import Path

import pytest
from data_sets import DataSet
from forks import Fork, fork, ranks

from megalit.callbacks import Checkpoint

HERE = Path(__file__).parent
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def fit(config: Path, *places: Path, **variables: str) -> list[Fork]:
    """A command on two nodes, each in a folder of its own."""
    script = HERE / "impatient_fit.py"
    return [
        fork(script, "fit", "--config", config, *TWO, folder=place, **rank, **variables)
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
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2, said
        line = said.splitlines()[-1]
        assert line.startswith("megalit: error: rank 1 does not see what rank 0 writes into run: choose a --run on")
    assert not list((tmp_path / "run").glob(".token*"))
    assert not list((elsewhere / "run").glob(".token*"))


# Where the folder's own look has let it pass.
BLIND = """
import runpy, sys
from megalit.callbacks import Checkpoint, checkpoint
checkpoint._PATIENCE = 0.0
Checkpoint.setup = lambda *_: None
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
        _, said = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "was written and is not there, so step-000000003.ckpt would never be read" in said
    assert [Checkpoint.newest(tmp_path / rank / "run") for rank in "01"] == [None, None]
