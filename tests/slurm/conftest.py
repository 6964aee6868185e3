"""One cluster for all tests; jobs end with the test that started them."""

import os
import signal
from collections.abc import Iterator

import pytest
from mini_slurm import MiniSlurm, missing
from running import from_files, run, small

__all__ = ["from_files", "run", "small"]

LIMIT_SECONDS = 240


@pytest.fixture(scope="session")
def cluster() -> Iterator[MiniSlurm]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with MiniSlurm() as started:
        yield started


@pytest.fixture
def slurm(cluster: MiniSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[MiniSlurm]:
    """The cluster, idle, with its commands working in this process, for at most four minutes."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"a test took more than {LIMIT_SECONDS} s\n{cluster.logs()}")

    cluster.until_idle()
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(cluster.configuration))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield cluster
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        everything = ("-u", cluster.out("id", "-un"))
        cluster.run("scancel", "--signal=KILL", "--full", *everything, check=False)
        cluster.run("scancel", *everything, check=False)
        cluster.run("scontrol", "update", "nodename=ALL", "state=resume", check=False)
