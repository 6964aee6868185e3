"""Imports what a run imports, then forks a process for each line of its input; started by forks.py."""

import json
import os
import runpy
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


def main() -> None:
    for name in IMPORTED:
        import_module(name)
    children: dict[int, Path] = {}

    def reap(*_: object) -> None:
        """Write the exit codes of children that have ended, as subprocess gives them, to where they are looked for."""
        for pid, own in list(children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                (own / "writing").write_text(str(os.waitstatus_to_exitcode(status)))
                (own / "writing").rename(own / "status")
                del children[pid]

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        request = json.loads(line)
        # A child that ends at once is reaped once it is known.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            return become(request)  # The loop is left, so that the process ends as any interpreter.
        children[pid] = Path(request["own"])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        print(pid, flush=True)
    # The tests are over: nothing that a failed one has left goes on.
    for pid in list(children):
        os.kill(pid, signal.SIGKILL)
    return None


def become(request: dict[str, Any]) -> None:
    """Be the process that was asked for."""
    if request["new_session"]:
        os.setsid()
    own = Path(request["own"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(own / name, os.O_WRONLY | os.O_APPEND)
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
    main()
