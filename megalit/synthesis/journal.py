"""The journal of a generation run: what was made, on disk before anyone is told of it.

A journal is a folder of segments. A process that generates writes one segment of its own and appends to it; nothing
that is written changes any more, and no two processes write to one file, so it works on a shared file system. A
line is a checksum and a JSON object. What a dying process wrote by half has no line end or a wrong checksum and
counts as not written; the work is done again.
"""

import asyncio
import json
import os
import secrets
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from megalit.synthesis.requests import Completion, Finish

# Why a generation is given up whose request the model does not take.
REFUSED = "too long for the model"

_OPEN_FILES = 64
# How a completion's line goes on behind its checksum and a space.
_COMPLETED, _CHECKSUM = b'{"kind":"completed"', 9


@dataclass(frozen=True)
class Completed:
    """A completion; ``of`` is the identity of the generation that it is for, ``key`` that of its request."""

    of: str
    key: str
    text: str
    finish: Finish
    prompt_tokens: int
    tokens: int

    @property
    def completion(self) -> Completion:
        return Completion(self.text, self.finish, self.prompt_tokens, self.tokens)


@dataclass(frozen=True)
class Accepted:
    """A finished generation.

    Attributes:
        of: its identity (:meth:`megalit.synthesis.items.Item.identity`).
        document, content_hash: of its source, or None.
        index: its number among the document's generations.
        text: of the generation.
        offset: character offset in the document, of a thought.
        attempt: which one succeeded, from 0; of several requests', the highest.
        seed: of the run.
        settings: fingerprint of sampling and cleaning settings; a :class:`Settings` record holds them.
        prompt_tokens, tokens: read and written for the completions that it consists of, thoughts, drafts and reviews
            among them.
        cut: whether the limit cut the text, or a part of it; None of a journal that does not say so.
    """

    of: str
    document: str | None
    content_hash: str | None
    index: int
    text: str
    offset: int | None
    attempt: int
    seed: int
    settings: str
    prompt_tokens: int
    tokens: int
    cut: bool | None = None


@dataclass(frozen=True)
class Declined:
    """An attempt that gave nothing, at one request or more; ``final`` says that another one would not either."""

    of: str
    index: int
    attempt: int
    reason: str
    final: bool
    settings: str
    prompt_tokens: int
    tokens: int

    @property
    def refused(self) -> bool:
        """Whether the model took no such request, for its length or by a filter: served otherwise, it might."""
        return self.final and self.reason == REFUSED


@dataclass(frozen=True)
class Settings:
    """What a fingerprint of settings stands for."""

    fingerprint: str
    value: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A shard has made its part of the samples, as far as could be told then, of so many tokens with these settings."""

    shard: str
    total_tokens: int
    settings: str


Record = Completed | Accepted | Declined | Settings | Ended
_KINDS: dict[str, type[Any]] = {
    kind.__name__.lower(): kind for kind in (Completed, Accepted, Declined, Settings, Ended)
}


@dataclass(frozen=True)
class Place:
    """Where a record stands: segment and byte offset. Places have an order, which no process changes."""

    segment: str
    offset: int


class Journal:
    """A journal's folder, read by this process and written to its own segment.

    Args:
        folder: of the journal; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._read: dict[str, int] = {}
        # Names sort by time, then by writer.
        writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._own = f"{time.time_ns():020d}-{writer}.jsonl"
        self._descriptor: int | None = None
        self._open: dict[str, IO[bytes]] = {}
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None

    # Reading ---------------------------------------------------------------------------------------

    def new_records(self, completions: bool = True) -> Iterator[tuple[Place, Record]]:
        """Records that other processes wrote since the last call, or ever, at the first.

        Most of a journal is completions: who needs none reads it faster.
        """
        for path in sorted(self.folder.glob("*.jsonl")):
            if path.name == self._own:
                continue
            begin = self._read.get(path.name, 0)
            if path.stat().st_size > begin:
                for offset, end, record in _records(path, begin, completions):
                    self._read[path.name] = end
                    if record is not None:
                        yield Place(path.name, offset), record

    def read(self, place: Place) -> Record:
        """The record at a place."""
        file = self._open.pop(place.segment, None) or (self.folder / place.segment).open("rb")
        self._open[place.segment] = file  # the last one used comes last
        if len(self._open) > _OPEN_FILES:
            self._open.pop(next(iter(self._open))).close()
        file.seek(place.offset)
        record = _parse(file.readline())
        assert record is not None, f"{self.folder / place.segment} has changed at byte {place.offset}"
        return record

    # Writing ---------------------------------------------------------------------------------------

    async def append(self, record: Record) -> None:
        """Write a record; when this returns, it is on the disk.

        Records that are written at the same time reach the disk together.

        Raises:
            OSError: the disk is full, or fails.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((_line(record), written))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush())
        await written

    def write(self, record: Record) -> None:
        """The same at once, for when nothing else is being written."""
        self._write(_line(record))

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._write, b"".join(line for line, _ in batch))
            except OSError as error:
                for _, written in [*batch, *self._waiting]:
                    if not written.done():
                        written.set_exception(error)
                self._waiting = []
                return
            for _, written in batch:
                if not written.done():
                    written.set_result(None)

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(
                self.folder / self._own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666
            )
            folder = os.open(self.folder, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.fsync(self._descriptor)

    async def close(self) -> None:
        """Write what waits to be written."""
        if self._flushing is not None:
            await self._flushing
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _line(record: Record) -> bytes:
    value = {"kind": type(record).__name__.lower(), **asdict(record)}
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _records(path: Path, begin: int, completions: bool) -> Iterator[tuple[int, int, Record | None]]:
    """Begin, end and record of each finished line from ``begin`` on; None for a line that is damaged."""
    with path.open("rb") as file:
        file.seek(begin)
        offset = begin
        for line in file:
            if not line.endswith(b"\n"):
                return  # a torn tail, or a line that is being written
            wanted = completions or not line.startswith(_COMPLETED, _CHECKSUM)
            yield offset, offset + len(line), _parse(line) if wanted else None
            offset += len(line)


def _parse(line: bytes) -> Record | None:
    checksum, _, data = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(data):
        return None
    value = json.loads(data)
    kind = _KINDS.get(value.pop("kind"))
    # A kind that is not known was written by a newer version; what it says is not needed to go on.
    return kind(**value) if kind is not None else None
