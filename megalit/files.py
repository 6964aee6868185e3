"""Files and folders that exist either whole or not at all.

Everything the program writes goes to a temporary name beside its target, is flushed to the
disk and is then renamed, so a reader never meets half a file and a killed process leaves
nothing but a temporary name. Where a lock keeps other writers out, who holds it next removes
those: :func:`new_folder` does by itself, and :func:`remove_leftovers` does it for files.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from megalit.errors import UserError

# Where a folder of results keeps the scripts and logs of its SLURM jobs.
JOBS = "slurm"


def fingerprint(value: Any) -> str:
    """A short stable hash of any JSON value (16 hex digits of SHA-256)."""
    return digest(json.dumps(value, sort_keys=True, default=str).encode())


def digest(data: bytes) -> str:
    """The first 16 hex digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The first 16 hex digits of SHA-256 of a file, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file, flush it to the disk and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        # mkstemp makes the file private; what a run writes is as readable as any other file.
        os.fchmod(descriptor, 0o666 & ~_umask())
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        _fsync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove_leftovers(path: Path) -> None:
    """Remove what killed calls of :func:`write_atomic` left behind for ``path``.

    To be called under a lock that everyone who writes ``path`` holds: what another process is writing looks the same.
    """
    # Exactly the names that mkstemp gives: a user may keep a hidden file of a similar one.
    ours = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if ours.fullmatch(left.name):
            left.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def write_png(path: Path, figure: Any) -> None:
    """Write a figure of matplotlib as PNG, atomically."""
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not readable as JSON ({error}): it is damaged, make it again") from error


@contextmanager
def lock(
    path: Path, waiting: Callable[[], None] | None = None, busy: str | None = None, patience: float = 0
) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` across processes; it is freed when its holder dies.

    Args:
        path: what is being built; the lock file is a hidden sibling.
        waiting: called once if another process holds the lock.
        busy: what to say then instead of waiting.
        patience: seconds to wait before that.

    Raises:
        UserError: another process holds the lock, and ``busy`` is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    guard = FileLock(path.parent / f".{path.name}.lock")
    try:
        guard.acquire(timeout=patience)
    except Timeout as error:
        if busy is not None:
            raise UserError(busy) from error
        if waiting is not None:
            waiting()
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


def first_unseen(paths: Iterable[Path], patience: float) -> Path | None:
    """The first of ``paths`` that does not show up within ``patience`` seconds, or None.

    A shared file system may show late what another machine has written.
    """
    deadline = time.monotonic() + patience
    waited_for = list(paths)
    while True:
        unseen = next((path for path in waited_for if not path.exists()), None)
        if unseen is None or time.monotonic() > deadline:
            return unseen
        time.sleep(0.1)


def visible(folder: Path) -> list[str]:
    """What a user sees in a folder, but for what SLURM's jobs leave in :data:`JOBS`; of no folder, nothing."""
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if not name.startswith(".") and name != JOBS)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty private folder that becomes ``target``, whole, when the block ends.

    To be called under :func:`lock`: what an earlier, killed build left behind is removed, and
    so is what this block wrote if it fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in target.parent.glob(f".{glob.escape(target.name)}.building-*"):
        shutil.rmtree(abandoned)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-", dir=target.parent))
    try:
        folder.chmod(0o777 & ~_umask())
        yield folder
        publish(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(folder: Path, target: Path) -> None:
    """Flush a folder with all that is in it to the disk and rename it."""
    for path in sorted(folder.rglob("*")):
        _fsync(path)
    _fsync(folder)
    folder.rename(target)
    _fsync(target.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
