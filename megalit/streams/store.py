"""Token stores: tokens on disk, once.

A store is a folder with a LitData data set (chunks and ``index.json``), ``items.parquet`` with
one row per item, and ``manifest.json``, which is written last: a store without it does not exist.
One item is the tokens of one document, generation or thought, without BOS and EOS.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from litdata.streaming.item_loader import BaseItemLoader, Interval

from megalit.errors import UserError, reason
from megalit.files import read_json

FORMAT = 1
# Rows of a part of a column.
_PART_ROWS = 1 << 20
Kind = Literal["real", "validation", "generations", "thoughts", "samples"]

ITEMS = pa.schema(
    [
        ("document_id", pa.string()),
        ("content_hash", pa.string()),
        ("source", pa.string()),
        ("generation", pa.int32()),
        ("recipe", pa.string()),
        ("settings", pa.string()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
        ("character_offset", pa.int64()),
        ("token_offset", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Manifest:
    """What a finished store says of itself.

    Attributes:
        kind: ``real``, ``validation``, ``generations``, ``thoughts`` or ``samples``.
        tokenizer: fingerprint of the tokenizer that made the tokens.
        vocabulary_size: every token id is smaller.
        bos, eos: token ids put around each document by the orderings.
        dtype: of the stored tokens: ``uint16`` where the vocabulary fits, else ``int32``.
        items, tokens, bytes: totals; ``bytes`` counts the UTF-8 text.
        content_hash: over all tokens in order.
        files: hash of each file but this one, by name.
        origin: what the store was built from.
        contamination: what the guard found (:mod:`megalit.corpus.contamination`), or None where it was off.
        places: of thoughts that were made, how many each document was to have
            (:class:`megalit.streams.thoughts.Places`); None where that is not known, as in stores of before.
    """

    kind: Kind
    tokenizer: str
    vocabulary_size: int
    bos: int
    eos: int
    dtype: str
    items: int
    tokens: int
    bytes: int
    content_hash: str
    files: dict[str, str]
    origin: dict[str, Any]
    contamination: dict[str, Any] | None = None
    places: dict[str, Any] | None = None
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def exists(folder: Path) -> bool:
    """Whether a finished store stands there."""
    return (folder / "manifest.json").exists()


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        UserError: no finished store there, or a newer version of megalit wrote it.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise UserError(f"{folder} holds no finished token store: build it with `megalit tokenize`")
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is no manifest of a token store: build the store again")
    if value.get("format", 0) > FORMAT:
        raise UserError(f"{folder} was written by a newer megalit: upgrade megalit or build the store again")
    try:
        return Manifest(**value)
    except TypeError as error:
        raise UserError(f"{path} is no manifest of a token store ({error}): build the store again") from error


def damaged(path: Path, error: Exception) -> UserError:
    """The error for a file of a store that cannot be read."""
    return UserError(f"{path} is missing or damaged ({reason(error)}): build the store again")


class DocumentLoader(BaseItemLoader):
    """LitData item loader for stores: item *i* is the tokens of document *i*, whatever its length.

    ``StreamingDataset(folder, item_loader=DocumentLoader())`` reads a store with LitData alone.
    """

    def generate_intervals(self) -> list[Interval]:
        intervals, begin = [], 0
        for chunk in self._chunks:
            end = begin + chunk["chunk_size"]
            intervals.append(Interval(begin, begin, end, end))
            begin = end
        return intervals

    def pre_load_chunk(self, chunk_index: int, chunk_filepath: str) -> None:
        """Nothing to do: chunks are mapped when they are read."""

    def load_item_from_chunk(
        self, index: int, chunk_index: int, chunk_filepath: str, begin: int, filesize_bytes: int
    ) -> npt.NDArray[Any]:
        """The tokens of one item, as a copy of shape ``(tokens,)``."""
        self._wait_until_chunk_ready(chunk_index, chunk_filepath, filesize_bytes)
        item: bytes = ChunkFile(Path(chunk_filepath), np.dtype(np.uint8)).item(index - begin).tobytes()
        return np.asarray(self._serializers_list[0].deserialize(item))

    def delete(self, chunk_index: int, chunk_filepath: str) -> None:
        Path(chunk_filepath).unlink(missing_ok=True)

    def encode_data(self, data: list[bytes], sizes: list[int], flattened: list[Any]) -> tuple[bytes, int]:
        """An item on disk is the bytes of its tokens and nothing else."""
        return data[0], len(flattened[0])


class ChunkFile:
    """One mapped LitData chunk: ``uint32`` item count, ``uint32`` byte offsets, then the tokens.

    Raises:
        UserError: the file is missing or shorter than its header says.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        try:
            raw: npt.NDArray[Any] = np.memmap(path, mode="r", dtype=np.uint8)
            count = int(raw[:4].view(np.uint32)[0])
            header = 4 * (count + 2)
            self.offsets = (np.array(raw[4:header].view(np.uint32), dtype=np.int64) - header) // dtype.itemsize
            # A plain view of the mapping: slices of np.memmap itself are several times slower.
            self.tokens: npt.NDArray[Any] = np.asarray(raw[header:].view(dtype))
        except (OSError, ValueError, IndexError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): build the store again") from error
        if len(self.offsets) != count + 1 or self.offsets[-1] != len(self.tokens):
            raise UserError(f"{path} is cut off: build the store again")

    def item(self, index: int) -> npt.NDArray[Any]:
        """A view of the tokens of item ``index`` of this chunk."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


class TokenStore:
    """Reads any token range of any item as a slice of the mapped chunk.

    Raises:
        UserError: no finished store, or its chunks and its manifest disagree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        dtype = np.dtype(self.manifest.dtype)
        index = read_json(folder / "index.json")
        self._chunks = [ChunkFile(folder / chunk["filename"], dtype) for chunk in index["chunks"]]
        sizes = np.array([len(chunk.offsets) - 1 for chunk in self._chunks], dtype=np.int64)
        if sizes.sum() != self.manifest.items:
            raise UserError(f"{folder} holds {sizes.sum()} items, not {self.manifest.items}: build the store again")
        tokens = sum(len(chunk.tokens) for chunk in self._chunks)
        if tokens != self.manifest.tokens:
            raise UserError(
                f"{folder} holds {tokens:,} tokens, not {self.manifest.tokens:,}: copy or build the store again"
            )
        self._first = np.concatenate([[0], np.cumsum(sizes)])

    def read(self, item: int, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens ``[start, stop)`` of an item: a view into the mapped file, of shape ``(stop - start,)``."""
        index = int(np.searchsorted(self._first, item, side="right")) - 1
        chunk = self._chunks[index]
        begin = chunk.offsets[item - self._first[index]]
        return chunk.tokens[begin + start : begin + stop]

    @property
    def buffers(self) -> list[npt.NDArray[Any]]:
        """The mapped tokens of each chunk."""
        return [chunk.tokens for chunk in self._chunks]

    def check_lengths(self, counts: npt.NDArray[np.int64]) -> None:
        """Compare the tokens of each item with what the table of items says, ``(items,)``.

        Raises:
            UserError: they differ: chunks and table are of two builds, and ids would stand beside others' texts.
        """
        parts = zip(self._chunks, np.split(counts, self._first[1:-1]), strict=True)
        if not all(np.array_equal(np.diff(chunk.offsets), part) for chunk, part in parts):
            raise UserError(
                f"{self.folder} holds chunks that do not belong to its items.parquet: copy or build the store again"
            )

    def locate(self, items: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Chunk of each item, and its first token there."""
        begins = np.concatenate([chunk.offsets[:-1] for chunk in self._chunks])
        return np.searchsorted(self._first, items, side="right") - 1, begins[items]

    def item_at(self, chunk: int, begin: int) -> int:
        """The item whose tokens begin there: the inverse of :meth:`locate` for items that have tokens."""
        place = int(np.searchsorted(self._chunks[chunk].offsets, begin, side="right")) - 1
        return int(self._first[chunk]) + place

    def items(self, columns: list[str] | None = None) -> pa.Table:
        """The table of items, in the order of the store."""
        try:
            return pq.read_table(self.folder / "items.parquet", columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise damaged(self.folder / "items.parquet", error) from error

    def column_as_dictionaries(self, column: str) -> Iterator[pa.DictionaryArray]:
        """One column of strings in parts: at millions of generations it outweighs everything else in memory."""
        path = self.folder / "items.parquet"
        try:
            with pq.ParquetFile(path, read_dictionary=[column]) as file:
                pending: list[pa.Array] = []
                rows = 0
                # Batches end with the file's groups, which are small; what is done for each part is not.
                for batch in file.iter_batches(_PART_ROWS, columns=[column]):
                    pending.append(batch.column(0))
                    rows += len(batch)
                    if rows >= _PART_ROWS:
                        yield pa.chunked_array(pending).unify_dictionaries().combine_chunks()
                        pending, rows = [], 0
                if pending:
                    yield pa.chunked_array(pending).unify_dictionaries().combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise damaged(path, error) from error
