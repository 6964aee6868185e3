"""Processes that begin with everything imported: forks of one process that has done nothing else.

Importing torch and Lightning takes most of a short run's time, and a test that kills a run and starts it again waits
for it each time. A fork differs from a process of its own in nothing that these tests are about: it has its own
folder, environment, output and exit code, takes signals, and ends as an interpreter does. Where the start itself is
under test, or Lightning's launcher, tests start interpreters.
"""

import atexit
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
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

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0, self._read("out"))
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to its two outputs, once it has ended."""
        self.wait(timeout)
        return self._read("out"), self._read("err")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

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
    server, place = _server()
    own = Path(tempfile.mkdtemp(dir=place))
    for name in ("out", "err"):
        (own / name).touch()
    request = {
        "program": str(program),
        "arguments": [str(argument) for argument in arguments],
        "folder": str(folder or Path.cwd()),
        "environment": {**os.environ, "OMP_NUM_THREADS": "1", **variables},
        "path": [str(program.parent if isinstance(program, Path) else folder or Path.cwd()), *sys.path],
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


@functools.cache
def _server() -> tuple["subprocess.Popen[str]", Path]:
    """The process that forks, and where its children's output lies; both go with this process."""
    place = Path(tempfile.mkdtemp(prefix="megalit-forks."))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    server = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
    )
    return server, place
