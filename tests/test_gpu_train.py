"""The benchmark of GPUs runs on a CPU too, with a small model, so that it does not fail first where time is dear."""

import json
from pathlib import Path

from forks import fork

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_train.py"


def test_each_case_of_the_smoke_run_is_measured(tmp_path: Path) -> None:
    process = fork(SCRIPT, "--smoke", "--output", tmp_path / "out.json")
    assert process.wait(300) == 0, process.communicate()
    cases = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert len(cases) == 2
    for found in cases.values():
        assert "error" not in found, found
        assert found["tokens_per_second"] > 0
