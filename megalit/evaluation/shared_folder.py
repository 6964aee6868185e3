"""A run's folder as the ranks of several nodes see it: one folder, shown to some of them late."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch import distributed

from megalit.errors import UserError
from megalit.evaluation.checkpoints import checkpoint_folder, shards
from megalit.files import first_unseen, remove_leftovers
from megalit.ranks import of_all_ranks

# A shared file system may show a node what another has written only after so many seconds; NFS after up to 60.
PATIENCE = 120.0


def newest_of_all(run: Path, found: Path | None) -> Path | None:
    """The newest checkpoint that any rank has found, which all of them see by now; None is the beginning.

    To be called by all ranks. A file system may show a node late what another has written, so each waits for a
    checkpoint that it does not see yet.

    Args:
        run: the run's folder.
        found: what this rank would go on from.

    Raises:
        UserError: a rank does not see what the first one writes into the folder, so that the run could not go on after
            its next start, and a sharded checkpoint would be scattered over nodes; or it does not see the checkpoint.
    """
    here = found.name if found else ""
    with _token(run) if distributed.get_rank() == 0 else nullcontext("") as token:
        told = of_all_ranks((token, here))
        token, newest = told[0][0], max(name for _, name in told)
        chosen = found if newest == here else checkpoint_folder(run) / newest
        # A rank that has found it need not look again.
        awaited = [run / token, *([chosen] if chosen and chosen != found else [])]
        unseen = of_all_ranks(first_unseen(awaited, PATIENCE))
    for rank, path in enumerate(unseen):
        if path is not None and path.name == token:
            raise UserError(
                f"rank {rank} does not see what rank 0 writes into {run}: choose a --run on storage that all nodes "
                "share, and start all of them in the same folder"
            )
        if path is not None:
            raise UserError(
                f"rank {rank} does not see {path}, which another rank would go on from: the file system shows it late, "
                "so give the command again, or look why it is not there"
            )
    return chosen


def check_shards(checkpoint: Path) -> None:
    """Look whether the first rank sees all files of a sharded checkpoint; for all ranks to call when they are written.

    Raises:
        UserError: one is missing.
    """
    unseen = first_unseen(shards(checkpoint), PATIENCE) if distributed.get_rank() == 0 else None
    missing = of_all_ranks(unseen)[0]
    if missing is not None:
        raise UserError(
            f"{missing} was written and is not there, so the checkpoint could not be read: choose a --run on storage "
            "that all nodes share"
        )


@contextmanager
def _token(folder: Path) -> Iterator[str]:
    """The name of a hidden file in a run's folder, by which others see that it is the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder / "token")
    with tempfile.NamedTemporaryFile(prefix=".token.", suffix=".tmp", dir=folder) as file:
        yield Path(file.name).name
