"""Training on a CPU uses its memory again, seen in real processes' page faults."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from running import Run

from megalit.cli import training

STEPS, NUMBERS = 20, 2**24  # 64 MiB of float32: 16,384 pages

PROGRAM = f"""
import resource, sys
import torch
from megalit.cli.host_memory import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range({STEPS}):  # until the heap is as large as it gets
    torch.empty({NUMBERS}).fill_(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    torch.empty({NUMBERS}).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    assert page_faults("keep") < STEPS
    # Else there would be nothing to keep: huge pages fault once for 512 small ones.
    assert page_faults("default") >= STEPS * NUMBERS * 4 // 2**21


def test_fit_on_a_cpu_keeps_it(run: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(training, "keep_freed_memory", lambda: kept.append(True))
    assert run("fit", "--config", small) == 0
    assert kept == [True]
