"""Stores joined by document, as arrays that orderings work on.

A piece is a whole item of a store: a real document, one of its generations, or a thought.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from megalit.errors import UserError
from megalit.streams.store import StoreSet, TokenStore

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Pieces as parallel arrays of shape ``(pieces,)``, sorted by document, then generation.

    Attributes:
        store: index of the piece's store among the data set's sources (0 is the literals).
        item: index in that store.
        tokens: token count.
        document: index of the real document it belongs to.
        split_at: for thoughts, the number of the document's tokens before it; else 0.
    """

    store: Integers
    item: Integers
    tokens: Integers
    document: Integers
    split_at: Integers

    def __len__(self) -> int:
        return len(self.item)


@dataclass(frozen=True)
class PieceTables:
    """All pieces of a data set.

    Attributes:
        ids: ids of the real documents, in the order of their store.
        real: one piece for each document, in that order.
        generations, thoughts: pieces joined to the documents.
    """

    ids: pa.ChunkedArray
    real: Pieces
    generations: Pieces
    thoughts: Pieces

    def first_generations(self, count: int) -> Integers:
        """Indices into ``generations``: the first ``count`` of each document, ``(documents, count)``.

        Raises:
            UserError: a document has fewer; the message names it.
        """
        documents = len(self.real)
        available = np.bincount(self.generations.document, minlength=documents)
        fewest = int(available.min())
        if fewest < count:
            name = self.ids[int(available.argmin())].as_py()
            remedy = f"lower data.generations to {fewest}" if fewest else "give it generations, or train on RealStream"
            raise UserError(f"{count} generations were asked for and document '{name}' has {fewest}: {remedy}")
        starts = np.cumsum(available) - available
        return starts[:, None] + np.arange(count)


def join(stores: StoreSet, sources: list[TokenStore]) -> PieceTables:
    """Join the stores by document id and content hash.

    Args:
        stores: the data set.
        sources: the stores that spans refer to; their index + 1 is the span's store number.

    Raises:
        UserError: a generation or thought of a document that is not there, or of an older text.
    """
    table = stores.real.items(["document_id", "content_hash", "tokens"])
    ids = table["document_id"]
    count = stores.real.manifest.items
    real = Pieces(
        store=np.full(count, sources.index(stores.real) + 1),
        item=np.arange(count),
        tokens=table["tokens"].to_numpy(),
        document=np.arange(count),
        split_at=np.zeros(count, dtype=np.int64),
    )
    generations = [_joined(store, sources.index(store) + 1, table) for store in stores.generations]
    thoughts = [_joined(stores.thoughts, sources.index(stores.thoughts) + 1, table)] if stores.thoughts else []
    return PieceTables(ids, real, _sorted(generations), _sorted(thoughts))


def _joined(store: TokenStore, number: int, real: pa.Table) -> tuple[Pieces, Integers]:
    items = store.items(["document_id", "content_hash", "generation", "tokens", "token_offset"])
    document = pc.index_in(items["document_id"], value_set=real["document_id"])
    if document.null_count:
        orphan = items["document_id"].filter(pc.is_null(document))[0].as_py()
        raise UserError(
            f"{store.folder} holds data for the document '{orphan}', which is not among the real ones: "
            "build both from the same corpus"
        )
    same = pc.equal(real["content_hash"].take(document), items["content_hash"])
    if not pc.all(same).as_py():
        changed = items["document_id"].filter(pc.invert(same))[0].as_py()
        raise UserError(
            f"{store.folder} holds data made from another text of the document '{changed}': generate it again"
        )
    pieces = Pieces(
        store=np.full(len(items), number),
        item=np.arange(len(items)),
        tokens=items["tokens"].to_numpy(),
        document=_numpy(document),
        split_at=_numpy(pc.fill_null(items["token_offset"], 0)),
    )
    return pieces, _numpy(items["generation"])


def _numpy(column: Any) -> Integers:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _sorted(parts: list[tuple[Pieces, Integers]]) -> Pieces:
    if not parts:
        return Pieces(*(np.empty(0, dtype=np.int64) for _ in range(5)))
    names = ("store", "item", "tokens", "document", "split_at")
    columns = {name: np.concatenate([getattr(pieces, name) for pieces, _ in parts]) for name in names}
    generation = np.concatenate([number for _, number in parts])
    # lexsort is stable and its last key leads: document, then segment, then generation.
    order = np.lexsort((generation, columns["store"], columns["document"]))
    return Pieces(**{name: column[order] for name, column in columns.items()})
