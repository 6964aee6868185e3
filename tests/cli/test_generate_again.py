"""``megalit generate`` on a folder that has seen it before: killed, refused, given twice, or asked for less."""

import signal
from pathlib import Path

import pytest
from data_sets import DataSet
from forks import fork
from running import Run

CONFIG = """
corpus: CORPUS
output: out
generations: 3
recipe: Rephrase
engine: {class_path: Scripted, init_args: {seconds: SECONDS}}
cleaning: {copy_threshold: null}
"""


@pytest.fixture
def config(data_set: DataSet, tmp_path: Path) -> Path:
    """A configuration of a scripted engine on a finished corpus."""
    path = tmp_path / "generate.yaml"
    path.write_text(CONFIG.replace("CORPUS", str(data_set.corpus.folder)).replace("SECONDS", "0"))
    return path


TABLE_IS_KILLED = """
import os, signal, sys
from megalit.cli import main
from megalit.synthesis import compaction

compaction._row = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_tables_that_were_half_written_do_not_pile_up(config: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(TABLE_IS_KILLED)
    for _ in range(2):
        victim = fork(tmp_path / "killed.py", "generate", "--config", config, folder=tmp_path)
        assert victim.wait(120) == -signal.SIGKILL
        assert len(list(Path("out").glob(".generations.parquet.*.tmp"))) == 1
    assert run("generate", "--config", config) == 0
    assert not list(Path("out").glob(".*.tmp"))
