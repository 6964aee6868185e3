"""Stores joined by document into one table of pieces."""

import hashlib
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from megalit.errors import UserError
from megalit.streams.pieces import Group, Integers, Literals, PieceTable, PieceTables
from megalit.streams.store import StoreSet, TokenStore


def join(stores: StoreSet, literals: Literals, real_fraction: float = 1.0) -> PieceTables:
    """Join a data set's stores by document id and content hash.

    Args:
        stores: real documents, generations, thoughts.
        literals: the tokens of the literal rows.
        real_fraction: share of the real documents to keep, with what was made from them. They are the first
            in the order of their ids' hashes, so each subset lies inside every larger one.

    Raises:
        UserError: a generation or thought of a document that is not there, or of an older text.
    """
    real = stores.real.items(["document_id", "content_hash", "tokens"])
    place = _subset(real["document_id"], real_fraction)
    ids = real["document_id"].combine_chunks().filter(pa.array(place >= 0))
    build = _TableBuilder(literals)
    kept = np.flatnonzero(place >= 0)
    lengths = real["tokens"].to_numpy()[kept]
    documents = np.arange(len(kept))
    none = np.full(len(kept), -1)
    real_group = build.add(stores.real, kept, None, lengths, documents, none)

    parts = [_joined(store, real, place) for store in stores.generations]
    generations = build.add_sorted(list(stores.generations), parts, len(kept))
    thought_parts = [_joined(stores.thoughts, real, place)] if stores.thoughts else []
    thoughts = build.add_sorted([stores.thoughts] if stores.thoughts else [], thought_parts, len(kept))
    segments = _add_segments(build, stores.real, kept, lengths, thought_parts, thoughts)
    return PieceTables(ids, build.finish(), real_group, generations, thoughts, segments)


def _subset(ids: pa.ChunkedArray, fraction: float) -> Integers:
    """New index of each document, or -1 where it is left out."""
    place = np.arange(len(ids))
    if fraction < 1:
        hashes = [hashlib.sha256(b"subset:" + identifier.encode()).digest()[:8] for identifier in ids.to_pylist()]
        keys = np.frombuffer(b"".join(hashes), dtype=">u8")
        keep = np.zeros(len(ids), dtype=bool)
        keep[np.argsort(keys, kind="stable")[: ceil(fraction * len(ids))]] = True
        place = np.where(keep, np.cumsum(keep) - 1, -1)
    return place


@dataclass(frozen=True)
class _Joined:
    """Items of one store that belong to documents that are kept."""

    item: Integers
    tokens: Integers
    document: Integers
    generation: Integers
    split_at: Integers


def _joined(store: TokenStore, real: pa.Table, place: Integers) -> _Joined:
    # One column of strings at a time: at millions of generations they outweigh everything else.
    document = _positions(store, "document_id", real)
    if (document < 0).any():
        orphan = store.items(["document_id"]).column(0)[int(np.argmin(document))].as_py()
        raise UserError(
            f"{store.folder} holds data for the document '{orphan}', which is not among the real ones: "
            "build both from the same corpus"
        )
    # A corpus has no two documents of one content, so the hash leads to the same document, or its text has changed.
    other = _positions(store, "content_hash", real) != document
    if other.any():
        changed = store.items(["document_id"]).column(0)[int(np.argmax(other))].as_py()
        raise UserError(
            f"{store.folder} holds data made from another text of the document '{changed}': generate it again"
        )
    new = place[document]
    keep = np.flatnonzero(new >= 0)
    items = store.items(["generation", "tokens", "token_offset"])
    return _Joined(
        item=keep,
        tokens=_numpy(items["tokens"])[keep],
        document=new[keep],
        generation=_numpy(items["generation"])[keep],
        split_at=_numpy(pc.fill_null(items["token_offset"], 0))[keep],
    )


def _positions(store: TokenStore, column: str, real: pa.Table) -> npt.NDArray[np.int32]:
    """Row of ``real`` with the same value, for each item of the store; -1 where there is none."""
    values = store.items([column]).column(0)
    found = pc.index_in(values, value_set=real[column].combine_chunks())
    return np.asarray(pc.fill_null(found, -1).to_numpy(), dtype=np.int32)


def _numpy(column: Any) -> Integers:
    return np.asarray(column.to_numpy(), dtype=np.int64)


class _TableBuilder:
    """Collects rows, store by store."""

    def __init__(self, literals: Literals) -> None:
        parts = literals.parts
        lengths = np.array([len(part) for part in parts])
        flat = [token for part in parts for token in part]
        self._buffers: list[npt.NDArray[Any]] = [np.array(flat, dtype=np.int32)]
        self._buffer_of: dict[int, int] = {}
        outside = np.full(len(parts), -1)
        zero = np.zeros(len(parts))
        self._columns = [[zero], [np.cumsum(lengths) - lengths], [lengths], [outside], [outside]]
        self.rows = len(parts)

    def add(
        self,
        store: TokenStore,
        items: Integers,
        starts: Integers | None,
        lengths: Integers,
        documents: Integers,
        generations: Integers,
    ) -> Group:
        """Add pieces that are sorted by document; ``starts`` are token offsets in their items."""
        chunk, begin = store.locate(items)
        self._append(
            chunk + self._first_buffer(store),
            begin if starts is None else begin + starts,
            lengths,
            documents,
            generations,
        )
        count = np.bincount(documents, minlength=int(documents.max(initial=-1)) + 1)
        return Group(self.rows - len(items), np.cumsum(count) - count, count)

    def add_sorted(self, stores: list[TokenStore], parts: list[_Joined], documents: int) -> Group:
        """Add the pieces of several stores in the order (document, store, index)."""
        first = self.rows
        count = np.zeros(documents, dtype=np.int64)
        if parts:
            located = [store.locate(part.item) for store, part in zip(stores, parts, strict=True)]
            buffer = np.concatenate(
                [chunk + self._first_buffer(store) for store, (chunk, _) in zip(stores, located, strict=True)]
            )
            begin = np.concatenate([begin for _, begin in located])
            number = np.repeat(np.arange(len(parts)), [len(part.item) for part in parts])
            document = np.concatenate([part.document for part in parts])
            generation = np.concatenate([part.generation for part in parts])
            tokens = np.concatenate([part.tokens for part in parts])
            order = np.lexsort((generation, number, document))
            self._append(buffer[order], begin[order], tokens[order], document[order], generation[order])
            count = np.bincount(document, minlength=documents)
        return Group(first, np.cumsum(count) - count, count)

    def _append(self, *columns: npt.NDArray[Any]) -> None:
        for known, new in zip(self._columns, columns, strict=True):
            known.append(new)
        self.rows += len(columns[0])

    def _first_buffer(self, store: TokenStore) -> int:
        if id(store) not in self._buffer_of:
            self._buffer_of[id(store)] = len(self._buffers)
            self._buffers.extend(store.buffers)
        return self._buffer_of[id(store)]

    def finish(self) -> PieceTable:
        types = (np.uint16, np.uint32, np.int32, np.int32, np.int32)
        columns: list[Any] = [
            np.concatenate([part.astype(kind) for part in parts])
            for parts, kind in zip(self._columns, types, strict=True)
        ]
        return PieceTable(self._buffers, *columns)


def _add_segments(
    build: _TableBuilder,
    store: TokenStore,
    items: Integers,
    lengths: Integers,
    parts: list[_Joined],
    thoughts: Group,
) -> Group:
    """Cut each document at its thoughts: document *d* has ``thoughts.count[d] + 1`` segments."""
    if not parts:
        none = np.zeros(len(items), dtype=np.int64)
        return Group(build.rows, none, none)
    (part,) = parts
    split = part.split_at[np.lexsort((part.generation, part.document))]
    count = thoughts.count + 1
    start = np.cumsum(count) - count
    document = np.repeat(np.arange(len(items)), count)
    begin = np.zeros(int(count.sum()), dtype=np.int64)
    is_later = np.ones(len(begin), dtype=bool)
    is_later[start] = False
    begin[is_later] = split
    end = np.empty_like(begin)
    end[:-1] = begin[1:]
    end[start + count - 1] = lengths
    return build.add(store, items[document], begin, end - begin, document, np.full(len(begin), -1))
