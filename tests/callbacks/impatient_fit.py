"""``megalit fit`` whose ranks wait PATIENCE seconds for what others have written; started by test_ranks_agree.py.

python impatient_fit.py ARGUMENTS

RANK's file system shows checkpoints late where the variable LATE names it: not before it has been asked LOOKS times.
"""

import os
import sys
from pathlib import Path

from megalit import cli
from megalit.cli.run_folder import RunFolder
from megalit.evaluation import shared_folder


def show_late(looks: int) -> None:
    """Hide checkpoints from who lists their folder, and from who asks for one by its name, but for so many times."""
    exists, asked = Path.exists, []

    def late(path: Path) -> bool:
        if path.suffix == ".ckpt":
            asked.append(path)
        return exists(path) and (path.suffix != ".ckpt" or len(asked) > looks)

    RunFolder.newest_checkpoint = None  # type: ignore[assignment, method-assign]
    Path.exists = late  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    shared_folder.PATIENCE = float(os.environ["PATIENCE"])
    if os.environ["RANK"] == os.environ.get("LATE"):
        show_late(int(os.environ["LOOKS"]))
    cli.main(sys.argv[1:])
