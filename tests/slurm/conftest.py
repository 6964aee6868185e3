"""One cluster for all tests; jobs end with the test that started them."""

import signal
from collections.abc import Iterator

import pytest
from mini_slurm import MiniSlurm, missing

LIMIT_SECONDS = 600


@pytest.fixture(scope="session")
def cluster() -> Iterator[MiniSlurm]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with MiniSlurm() as started:
        yield started


@pytest.fixture
def slurm(cluster: MiniSlurm) -> Iterator[MiniSlurm]:
    """The cluster, idle, for a test of ten minutes at most (a few, where nobody else works)."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"a test took more than {LIMIT_SECONDS} s\n{cluster.logs()}")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_SECONDS)
    try:
        cluster.until_idle()
        yield cluster
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        cluster.cancel_all()
