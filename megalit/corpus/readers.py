"""Readers: JSON lines (plain, gz, zst), Parquet, folders of text.

Each takes a path and yields :class:`Document` one by one, so memory does not grow with the
corpus. Every malformed row ends in a :class:`UserError` that names the file and the line.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from megalit.corpus import python_docs
from megalit.corpus.documents import Document, Generation, Thought
from megalit.errors import UserError, missing_extra, reason

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
TEXT_FILES = (".txt", ".md", ".rst")
READABLE = f"{', '.join(JSON_LINES)}, .parquet, a folder of {'/'.join(TEXT_FILES)} files"


def read(source: str) -> Iterator[Document]:
    """Yield the documents of one input.

    Args:
        source: a path, or ``python-docs`` for the documentation in this Python installation.

    Raises:
        UserError: nothing there, not what its ending says, or a malformed row.
    """
    if source == python_docs.NAME:
        yield from python_docs.read()
        return
    path = Path(source).expanduser()
    name = path.name.lower()
    if not path.exists():
        raise UserError(f"input {source} does not exist: check the path")
    if path.is_dir():
        yield from _text_folder(path)
    elif name.endswith(JSON_LINES):
        yield from _json_lines(path)
    elif name.endswith(".parquet"):
        yield from _parquet(path)
    else:
        raise UserError(f"input {source} has an ending that is not known: use {READABLE}")


def source_name(source: str) -> str:
    """The name an input gets in the corpus' ``source`` column: its file name without the ending."""
    name = Path(source).name
    endings = sorted((*JSON_LINES, ".parquet"), key=len, reverse=True)
    return next((name[: -len(ending)] for ending in endings if name.lower().endswith(ending)), name)


def _open(path: Path) -> IO[str]:
    # Some programs begin a UTF-8 file with a byte order mark, which is no part of the text.
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    if name.endswith(".zst"):
        return io.TextIOWrapper(io.BufferedReader(_ZstdFile(path)), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


# The largest window that zstd has: files of `zstd --long=31` need it, and memory of that size.
_LARGEST_WINDOW = 1 << 31


class _ZstdFile(io.RawIOBase):
    """The bytes of a zstandard file, of one or more frames; a frame that is cut off is an error, not an end.

    zstandard's own reader takes the end of an incomplete frame for the end of the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise missing_extra("zstandard", "data", f"reading {path}") from error
        self._file = path.open("rb")
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._error: type[Exception] = zstandard.ZstdError
        self._frame: Any = None
        self._pending = b""
        self._compressed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            self._compressed = self._compressed or self._file.read(1 << 17)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._pending = self._frame.decompress(self._compressed)
            except self._error as error:
                raise OSError(str(error)) from error  # as gzip says it
            self._compressed = b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._pending))
        buffer[:size], self._pending = self._pending[:size], self._pending[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _json_lines(path: Path) -> Iterator[Document]:
    number = 0
    file = _open(path)
    try:
        with file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _document(_parse(line), path, f"{path} line {number}")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} after line {number} is not UTF-8 ({error.reason}): convert the file to UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} line {number} is not JSON ({error.msg} at column {error.colno}): mend or remove the line"
        ) from error
    except _UnreadableError as error:
        raise UserError(f"{path} line {number} is not JSON that can be read ({error}): mend or remove it") from error
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path} is not what its ending says, or is cut off ({error}): compress or copy the file again"
        ) from error


class _UnreadableError(Exception):
    """JSON beyond what Python reads: nested too deep, or with too long a number."""


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise _UnreadableError(str(error)) from error


def _parquet(path: Path) -> Iterator[Document]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield _document(row, path, f"{path} row {number}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} holds text that is not UTF-8 ({error.reason}): write the file again") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path} is not a readable Parquet file ({reason(error)}): write or copy the file again"
        ) from error


def text_files(folder: Path) -> list[Path]:
    """The files of a folder of texts, in the order in which they are read."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix.lower() in TEXT_FILES)


def _text_folder(path: Path) -> Iterator[Document]:
    files = text_files(path)
    if not files:
        raise UserError(f"folder {path} holds no text files: put {'/'.join(TEXT_FILES)} files there")
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 ({error.reason}): convert the file to UTF-8") from error
        identifier = file.relative_to(path).as_posix()
        yield _document({"id": identifier, "text": text}, path, str(file))


def _document(row: Any, path: Path, place: str) -> Document:
    if not isinstance(row, Mapping):
        raise UserError(f"{place} is not an object with 'id' and 'text': mend or remove it")
    identifier = row.get("id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier:
        raise UserError(f"{place} has no 'id': give every document a unique id")
    _check_unicode(identifier, f"{place}: 'id'")
    text = _text(row, place)
    return Document(
        id=identifier,
        text=text,
        source=source_name(str(path)),
        place=place,
        generations=tuple(_generations(row.get("generations"), place)),
        thoughts=tuple(_thoughts(row.get("thoughts"), text, place)),
    )


def _text(row: Mapping[str, Any], place: str) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place} has no 'text': remove the row or give it text")
    _check_unicode(text, place)
    return text


def _check_unicode(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, written as \ud800 in JSON
        raise UserError(f"{place} holds text that is not Unicode ({error.reason}): mend or remove it") from error


def _generations(value: Any, place: str) -> Iterator[Generation]:
    for number, item in enumerate(_objects(value, "generations", place), start=1):
        here = f"{place}, generation {number},"
        style = str(item.get("style") or "generation")
        _check_unicode(style, f"{here} 'style'")
        yield Generation(style, _text(item, here))


def _thoughts(value: Any, text: str, place: str) -> Iterator[Thought]:
    previous = 0
    for number, item in enumerate(_objects(value, "thoughts", place), start=1):
        here = f"{place}, thought {number},"
        offset = item.get("offset")
        if not isinstance(offset, int) or isinstance(offset, bool) or not previous <= offset <= len(text):
            raise UserError(
                f"{here} has offset {offset!r}: give the character offset where it belongs, "
                f"in ascending order and at most {len(text)}"
            )
        previous = offset
        yield Thought(offset, _text(item, here))


def _objects(value: Any, key: str, place: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise UserError(f"{place}: '{key}' is not a list of objects: see `megalit corpus --help` for the format")
    return value
