"""Nodes that hold other data do not train together."""

import shutil
from pathlib import Path

import pytest
from data_sets import DataSet
from forks import fork, ranks

SCRIPT = Path(__file__).parent / "traced_training.py"
OTHER_NUMPY = """
import numpy
numpy.__version__ = "1.26.4"
import traced_training
traced_training.main()
"""


@pytest.mark.parametrize("other", ["stores", "numpy"])
def test_ranks_that_would_read_other_data_stop(data_set: DataSet, tmp_path: Path, other: str) -> None:
    """A node's copy of the stores is an older one, or its numpy, which draws the orders: all ranks say so."""
    stores, script = data_set.folder, SCRIPT
    if other == "stores":
        stores = tmp_path / "older"
        shutil.copytree(data_set.folder, stores, ignore=shutil.ignore_patterns("validation"))
    else:
        script = tmp_path / "other_numpy.py"
        script.write_text(OTHER_NUMPY)
    (tmp_path / "run").mkdir()
    first, second = ranks(2)
    rest = (tmp_path / "run", "2", "0", "2", "6")
    processes = [fork(SCRIPT, data_set.folder, *rest, **first), fork(script, stores, *rest, **second)]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 1], said
    for text in said:
        assert "UserError: rank 1 would read other data than rank 0 (" in text
        assert ("settings.stores[0].validation is None" if other == "stores" else "numpy is '1.26.4', not") in text
