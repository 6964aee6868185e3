"""The benchmark of GPUs runs on a CPU too, with a small model, so that it does not fail first where time is dear."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_train.py"


def test_each_case_of_the_smoke_run_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--smoke", "--output", str(tmp_path / "out.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    cases = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert len(cases) == 2
    for found in cases.values():
        assert "error" not in found, found
        assert found["tokens_per_second"] > 0
