"""Stores joined by document into one table of pieces."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from megalit.errors import UserError
from megalit.streams.pieces import Group, Integers, Literals, PieceTable, PieceTables
from megalit.streams.schedule import exact
from megalit.streams.store import TokenStore
from megalit.streams.store_set import StoreSet

Narrow = npt.NDArray[np.int32]

# What the columns of a table of pieces can number: chunks of all stores, and pieces with the literals between them.
_MOST_BUFFERS, _MOST_ROWS = 2**16, 2**30


def group_of_samples(first: int, count: int) -> Group:
    """Samples have no document, so they are one group."""
    return Group(first, np.zeros(1, dtype=np.int64), np.array([count]))


def buffers_of(stores: StoreSet, literals: Literals) -> list[npt.NDArray[Any]]:
    """The literals, then the chunks of all stores."""
    flat = np.array([token for part in literals.parts for token in part], dtype=np.int32)
    return [flat, *(buffer for store in stores.training for buffer in store.buffers)]


def join(stores: StoreSet, literals: Literals, real_fraction: float = 1.0) -> PieceTables:
    """Join a data set's stores by document id and content hash.

    Args:
        stores: real documents, generations, thoughts, samples.
        literals: the tokens of the literal rows.
        real_fraction: share of the real documents to keep, with what was made from them. They are the first
            in the order of their ids' hashes, so each subset lies inside every larger one.

    Raises:
        UserError: a generation or thought of a document that is not there, or of an older text, or a store whose
            files do not belong together.
    """
    for store in stores.training:
        store.check_lengths(store.items(["tokens"])["tokens"].to_numpy())
    real = stores.real.items(["document_id", "content_hash", "tokens"])
    place = subset(real["document_id"], real_fraction)
    build = _TableBuilder(stores, literals)
    kept = np.flatnonzero(place >= 0)
    lengths = real["tokens"].to_numpy()[kept]
    documents = np.arange(len(kept))
    none = np.full(len(kept), -1)
    real_group = build.add(stores.real, kept, None, lengths, documents, none)

    parts = [_joined(store, real, place) for store in stores.generations]
    generations, least = build.add_sorted(list(stores.generations), parts, len(kept))
    thought_parts = [_joined(stores.thoughts, real, place)] if stores.thoughts else []
    thoughts, _ = build.add_sorted([stores.thoughts] if stores.thoughts else [], thought_parts, len(kept))
    segments = _add_segments(build, stores.real, kept, lengths, thought_parts, thoughts)
    first = build.rows
    for store in stores.samples:
        items = np.arange(store.manifest.items)
        tokens = store.items(["tokens"])["tokens"].to_numpy()
        numbers = items + (build.rows - first)
        build.add(store, items, None, tokens, len(kept) + numbers, numbers)
    samples = group_of_samples(first, build.rows - first)
    return PieceTables(stores, kept, build.finish(), real_group, generations, thoughts, segments, samples, least)


def subset(ids: pa.ChunkedArray, fraction: float) -> Integers:
    """New index of each document, or -1 where it is left out."""
    place = np.arange(len(ids))
    if fraction < 1:
        hashes = [hashlib.sha256(b"subset:" + identifier.encode()).digest()[:8] for identifier in ids.to_pylist()]
        keys = np.frombuffer(b"".join(hashes), dtype=">u8")
        keep = np.zeros(len(ids), dtype=bool)
        keep[np.argsort(keys, kind="stable")[: ceil(exact(fraction) * len(ids))]] = True
        place = np.where(keep, np.cumsum(keep) - 1, -1)
    return place


@dataclass(frozen=True)
class _Joined:
    """Items of one store that belong to documents that are kept."""

    item: Integers
    tokens: Narrow
    document: Narrow
    generation: Narrow
    split_at: Narrow


def _joined(store: TokenStore, real: pa.Table, place: Integers) -> _Joined:
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
    new = place[document].astype(np.int32)
    keep = np.flatnonzero(new >= 0)
    items = store.items(["generation", "tokens", "token_offset"])
    return _Joined(
        item=keep,
        tokens=_numpy(items["tokens"])[keep],
        document=new[keep],
        generation=_numpy(items["generation"])[keep],
        split_at=_numpy(pc.fill_null(items["token_offset"], 0))[keep],
    )


def _positions(store: TokenStore, column: str, real: pa.Table) -> Narrow:
    """Row of ``real`` with the same value, for each item of the store; -1 where there is none."""
    known = real[column].cast(pa.large_string())  # all together they may be more than 2 GiB
    found: list[Narrow] = []
    waiting: list[pa.DictionaryArray] = []
    values = 0
    for part in store.column_as_dictionaries(column):
        waiting.append(part)
        values += len(part.dictionary)
        # A look-up goes through all that is known first: one for few values costs as much as one for as many again.
        if values >= len(known):
            found += _look_up(waiting, known)
            waiting, values = [], 0
    if waiting:
        found += _look_up(waiting, known)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int32)


def _look_up(parts: list[pa.DictionaryArray], known: pa.ChunkedArray) -> Iterator[Narrow]:
    values = pa.chunked_array([part.dictionary for part in parts]).cast(known.type)
    place = pc.index_in(values, value_set=known).combine_chunks()
    first = 0
    for part in parts:
        own = place.slice(first, len(part.dictionary)).take(part.indices)
        yield pc.fill_null(own, -1).to_numpy()
        first += len(part.dictionary)
    # Arrow keeps what it has freed for a while; strings of millions of items outweigh everything else here.
    del values, place
    pa.default_memory_pool().release_unused()


def _numpy(column: Any) -> Narrow:
    return np.asarray(column.to_numpy(), dtype=np.int32)


class _TableBuilder:
    """Collects rows, store by store."""

    def __init__(self, stores: StoreSet, literals: Literals) -> None:
        parts = literals.parts
        lengths = np.array([len(part) for part in parts])
        self._buffers = buffers_of(stores, literals)
        chunks = [1, *(len(store.buffers) for store in stores.training)]
        first = np.cumsum(chunks).tolist()
        self._first_buffer = {store.folder: first[number] for number, store in enumerate(stores.training)}
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
            chunk + self._first_buffer[store.folder],
            begin if starts is None else begin + starts,
            lengths,
            documents,
            generations,
        )
        count = np.bincount(documents, minlength=int(documents.max(initial=-1)) + 1)
        return Group(self.rows - len(items), np.cumsum(count) - count, count)

    def add_sorted(
        self, stores: list[TokenStore], parts: list[_Joined], documents: int
    ) -> tuple[Group, npt.NDArray[np.int64]]:
        """Add the pieces of several stores in the order (document, store, index).

        Returns:
            The pieces, and for each store the least place that one of its pieces has among its document's.
        """
        first = self.rows
        count = np.zeros(documents, dtype=np.int64)
        least = np.full(len(stores), np.iinfo(np.int64).max)
        if parts:
            located = [store.locate(part.item) for store, part in zip(stores, parts, strict=True)]
            buffer = np.concatenate(
                [chunk + self._first_buffer[store.folder] for store, (chunk, _) in zip(stores, located, strict=True)]
            )
            begin = np.concatenate([begin for _, begin in located])
            number = np.repeat(np.arange(len(parts)), [len(part.item) for part in parts])
            document = np.concatenate([part.document for part in parts])
            generation = np.concatenate([part.generation for part in parts])
            tokens = np.concatenate([part.tokens for part in parts])
            order = np.lexsort((generation, number, document))
            self._append(buffer[order], begin[order], tokens[order], document[order], generation[order])
            count = np.bincount(document, minlength=documents)
            place = np.arange(len(order)) - (np.cumsum(count) - count)[document[order]]
            np.minimum.at(least, number[order], place)
        return Group(first, np.cumsum(count) - count, count), least

    def _append(self, *columns: npt.NDArray[Any]) -> None:
        for known, new in zip(self._columns, columns, strict=True):
            known.append(new)
        self.rows += len(columns[0])

    def finish(self) -> PieceTable:
        """The table.

        Raises:
            UserError: more chunks or pieces than its columns can number.
        """
        for count, most, what in ((len(self._buffers), _MOST_BUFFERS, "chunks"), (self.rows, _MOST_ROWS, "pieces")):
            if count > most:
                raise UserError(
                    f"the stores have {count:,} {what}, and one data set can have {most:,}: train on a part of them "
                    "(data.real_fraction, or fewer stores)"
                )
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
