"""Arrays of a plan, computed once per node and mapped by every rank and worker.

They lie in a folder of the node's own temporary space, named by the fingerprint of what they are computed
from, so a second run over the same data finds them too. Whoever needs an epoch first computes it, under a
lock, and removes those that are :data:`KEPT_EPOCHS` or more behind it; a mapped file stays readable after that.
Each user holds a lease, which ends with its process: only the last one removes the folder.
"""

import fcntl
import getpass
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megalit.files import lock, new_folder, write_json

# The epoch being read and its neighbours: loader workers run ahead of the training step.
KEPT_EPOCHS = 3

# Names an epoch's arrays, and is written last: what cleans temporary spaces removes old files one by one.
_NAMES = "arrays.json"

Arrays = dict[str, npt.NDArray[Any]]


def plans_folder() -> Path:
    """Where plans lie on this node: ``$MEGALIT_PLANS``, or a folder of the user's in the temporary space."""
    named = os.environ.get("MEGALIT_PLANS")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"megalit-plans-{_user()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


class PlanArrays:
    """Arrays by epoch, kept on disk.

    Args:
        key: fingerprint of everything they depend on but the epoch.
        compute: gives the arrays of an epoch; what does not depend on one is epoch 0.
    """

    def __init__(self, key: str, compute: Callable[[int], Arrays]) -> None:
        self._folder = plans_folder() / key
        self._compute = compute
        self._mapped: dict[int, Arrays] = {}
        self._lease: _Lease | None = None

    def __getitem__(self, epoch: int) -> Arrays:
        if epoch not in self._mapped:
            self._lease = self._lease or _Lease(self._folder)
            folder = self._folder / f"epoch-{epoch}"
            arrays = _map_whole(folder)
            # Another user that is epochs ahead may remove what was just written: then it is written again.
            while arrays is None:
                with lock(folder):
                    arrays = _map_whole(folder)
                    if arrays is None:
                        _remove(folder)  # what is left of it
                        with new_folder(folder) as temporary:
                            made = self._compute(epoch)
                            for name, array in made.items():
                                np.save(temporary / f"{name}.npy", array)
                            write_json(temporary / _NAMES, list(made))
                        with suppress(FileNotFoundError):
                            arrays = _map(folder)
            self._mapped[epoch] = arrays
            for old in [known for known in self._mapped if known <= epoch - KEPT_EPOCHS]:
                del self._mapped[old]
                _remove(self._folder / f"epoch-{old}")
        return self._mapped[epoch]

    def forget(self) -> None:
        """Remove the files, unless another process uses them too.

        What is mapped stays readable, and who needs an epoch again computes it again.
        """
        if self._lease is not None and self._lease.is_the_last():
            _remove(self._folder)
        self._lease = None

    def __getstate__(self) -> dict[str, object]:
        # A loader process maps the files itself.
        return {**self.__dict__, "_mapped": {}, "_lease": None}


class _Lease:
    """A shared lock on a file beside a folder, for as long as this object or its process lives."""

    def __init__(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder.with_name(f".{folder.name}.lease"), os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._file, fcntl.LOCK_SH)
        weakref.finalize(self, os.close, self._file)

    def is_the_last(self) -> bool:
        """Whether nobody else holds one; if so, nobody gets one before this one ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _remove(folder: Path) -> None:
    # Renamed first: who looks for the folder meanwhile finds it whole or not at all.
    doomed = folder.with_name(f".{folder.name}.removed-{os.getpid()}")
    try:
        folder.rename(doomed)
    except OSError:  # another process was faster
        return
    shutil.rmtree(doomed, ignore_errors=True)


def _map(folder: Path) -> Arrays:
    names: list[str] = json.loads((folder / _NAMES).read_bytes())
    # Plain views of the mappings: indexing np.memmap itself is several times slower.
    return {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in names}


def _map_whole(folder: Path) -> Arrays | None:
    """The arrays of an epoch, or None where some are missing or short."""
    try:
        return _map(folder)
    except (FileNotFoundError, ValueError, EOFError):
        return None
