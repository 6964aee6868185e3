"""``megalit fit`` on a disk that is full when some checkpoints are written; started by test_full_disk.py, or imported.

FULL=2,3 python full_disk.py ARGUMENTS
"""

import errno
import os
import sys
from collections.abc import Callable, Container
from typing import IO, Any

import torch

from megalit import cli


def writer(full: Container[int], at: Callable[[int], None] = lambda _: None) -> Callable[..., None]:
    """In place of ``torch.save``: the disk is full when checkpoint number so and so is written, and ``at`` is told."""
    save, written = torch.save, []

    def write(state: Any, file: IO[bytes], *rest: Any, **options: Any) -> None:
        written.append(state["global_step"])
        at(len(written))
        if len(written) in full:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, file, *rest, **options)

    return write


if __name__ == "__main__":
    torch.save = writer([int(number) for number in os.environ["FULL"].split(",")])  # type: ignore[assignment]
    cli.main(sys.argv[1:])
