"""Imports what a run imports, then forks a process for each line of its input; started by forks.py.

python fork_server.py FOLDER

Each process has a folder of its own in FOLDER with what it says and, once it has ended, its exit code. Where the input
ends, processes that are left end with it, and the folder goes.
"""

import json
import os
import runpy
import select
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

IMPORTED = (
    "lightning.pytorch.loggers",
    "megalit.callbacks",
    "megalit.cli.ensemble",
    "megalit.cli.generate",
    "megalit.cli.preparing",
    "megalit.cli.sweep",
    "megalit.cli.training",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "transformers.tokenization_utils_base",
)


def main(folder: Path) -> None:
    for name in IMPORTED:
        import_module(name)
    children: dict[int, tuple[int, Path]] = {}  # by what becomes readable when the process has ended
    while True:
        readable, _, _ = select.select([0, *children], [], [])
        for ended in set(readable) - {0}:
            pid, own = children.pop(ended)
            os.close(ended)
            note_end(pid, own)
        if 0 not in readable:
            continue
        line = read_line()
        if not line:
            break
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            for other in children:
                os.close(other)
            return become(request)  # The loop is left, so that the process ends as any interpreter.
        children[os.pidfd_open(pid)] = (pid, Path(request["own"]))
        print(pid, flush=True)
    for pid, own in children.values():
        os.kill(pid, signal.SIGKILL)
        note_end(pid, own)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def read_line() -> bytes:
    """A line of the input, byte by byte: select does not see what a buffer holds."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line


def note_end(pid: int, own: Path) -> None:
    """Write the exit code of a child, as subprocess gives it, to where it is looked for."""
    _, status = os.waitpid(pid, 0)
    (own / "writing").write_text(str(os.waitstatus_to_exitcode(status)))
    (own / "writing").rename(own / "status")


def become(request: dict[str, Any]) -> None:
    """Be the process that was asked for."""
    if request["new_session"]:
        os.setsid()
    own = Path(request["own"])
    outputs = (os.open(own / name, os.O_WRONLY | os.O_APPEND) for name in ("out", "err"))
    opened = (os.open(os.devnull, os.O_RDONLY), *outputs)
    for descriptor, file in enumerate(opened):
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:] = request["path"]
    sys.argv = [request["program"], *request["arguments"]]
    if request["program"].endswith(".py"):
        runpy.run_path(request["program"], run_name="__main__")
    else:
        runpy.run_module(request["program"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
