"""Processes that begin with everything imported: forks of one process that has done nothing else.

Importing torch and Lightning takes most of a short run's time, and a test that kills a run and starts it again waits
for it each time. A fork has a folder, environment, output and exit code of its own, takes signals, and ends as an
interpreter does. What it shares with others is what its imports left: the hash seed of strings, numpy's global random
state, and what was read from the environment when it was imported. So where the start itself is under test, Lightning's
launcher, or that nothing hangs on the order of a set, tests start interpreters.
"""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")


class Fork:
    """A process, with the methods of ``subprocess.Popen`` that tests use; its output goes to files."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._folder = folder

    def poll(self) -> int | None:
        status = self._folder / "status"
        if self.returncode is None and status.exists():
            self.returncode = int(status.read_text())
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            _server()  # which says so if it is gone, and with it all exit codes
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout, self._read("out"), self._read("err"))
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """What it wrote to its two outputs, once it has ended."""
        self.wait(timeout)
        return self._read("out"), self._read("err")

    def send_signal(self, number: int, whole_session: bool = False) -> None:
        """To the process, or to all of the session that began with it."""
        with suppress(ProcessLookupError):  # it has just ended
            if whole_session:
                os.killpg(self.pid, number)
            elif self.poll() is None:
                os.kill(self.pid, number)

    def kill(self, whole_session: bool = False) -> None:
        self.send_signal(signal.SIGKILL, whole_session)

    def _read(self, name: str) -> str:
        return (self._folder / name).read_text(errors="replace")


def fork(
    program: str | Path,
    *arguments: str | Path,
    folder: Path | None = None,
    start_new_session: bool = False,
    **variables: str,
) -> Fork:
    """Run a module, as ``python -m`` does, or a script, with further environment variables."""
    server = _server()
    folder = folder or Path.cwd()
    own = Path(tempfile.mkdtemp(dir=_place()))
    for name in ("out", "err"):
        (own / name).touch()
    request = {
        "program": str(program),
        "arguments": [str(argument) for argument in arguments],
        "folder": str(folder),
        "environment": {**os.environ, "OMP_NUM_THREADS": "1", **variables},
        "path": [str(program.parent if isinstance(program, Path) else folder), *sys.path],
        "new_session": start_new_session,
        "own": str(own),
    }
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return Fork(int(server.stdout.readline()), own)


def ranks(count: int) -> list[Mapping[str, str]]:
    """What a launcher tells each rank of a run on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def finish(processes: Sequence[Fork], timeout: float = 300) -> None:
    """Wait for the ranks of a run; where one fails, say what it has said, for others may wait for it for ever."""
    deadline = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes):
            failed = [process for process in processes if process.poll()]
            assert not failed, failed[0].communicate()
            assert time.monotonic() < deadline, f"not done after {timeout} s"
            time.sleep(0.01)
        for process in processes:
            assert process.returncode == 0, process.communicate()
    finally:
        for process in processes:
            process.kill()


@functools.cache
def _place() -> Path:
    """Where what is said lies, by the processes and by the one that forks them; it goes with that one."""
    return Path(tempfile.mkdtemp(prefix="megalit-forks."))


@functools.cache
def _started() -> "subprocess.Popen[str]":
    with (_place() / "server").open("w") as said:
        return subprocess.Popen(
            [sys.executable, str(SERVER), str(_place())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            process_group=0,  # Ctrl-C is for the tests, with which it ends
        )


def _server() -> "subprocess.Popen[str]":
    """The process that forks; it ends when this one does."""
    server = _started()
    assert server.poll() is None, (_place() / "server").read_text()
    return server
