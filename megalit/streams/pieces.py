"""Pieces of documents, as arrays that orderings work on (:mod:`megalit.streams.joining` makes them of stores).

A piece is something that an ordering puts somewhere: a real document, one of its generations, a
thought, the text between two thoughts, or a literal (BOS, EOS, markers). All pieces of a data set
are rows of one table, computed once; an ordering is then an array of row numbers.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from megalit.errors import UserError
from megalit.streams.store_set import StoreSet

Integers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]

# Rows of the literals, which come first in every table.
BOS, EOS, EOS_BOS, THOUGHT_START, THOUGHT_END, SEPARATOR = range(6)
LITERALS = 6


@dataclass(frozen=True)
class Literals:
    """Tokens that stand in no document.

    Attributes:
        bos, eos: around each document.
        thought_start, thought_end: around each thought.
        separator: between the pieces of a megadoc, where EOS and BOS are not.
    """

    bos: int
    eos: int
    thought_start: tuple[int, ...] = ()
    thought_end: tuple[int, ...] = ()
    separator: tuple[int, ...] = ()

    @property
    def parts(self) -> list[tuple[int, ...]]:
        """The tokens of each literal row, in the order of the row numbers above."""
        pair = (self.eos, self.bos)
        return [(self.bos,), (self.eos,), pair, self.thought_start, self.thought_end, self.separator]


@dataclass(frozen=True)
class PieceTable:
    """Where the tokens of each piece are, and what they belong to: parallel arrays, ``(pieces,)``.

    Attributes:
        buffers: arrays of tokens: the literals, then the mapped chunks of all stores.
        buffer: index of the piece's buffer.
        begin: its first token there.
        length: its tokens.
        document: index of its document; -1 for literals.
        generation: its index among the document's generations or thoughts; -1 for real text.
    """

    buffers: list[npt.NDArray[Any]]
    buffer: npt.NDArray[np.uint16]
    begin: npt.NDArray[np.uint32]
    length: npt.NDArray[np.int32]
    document: npt.NDArray[np.int32]
    generation: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.length)

    def read(self, row: int) -> npt.NDArray[Any]:
        """The tokens of one piece: a view, ``(length,)``."""
        begin = int(self.begin[row])
        return self.buffers[self.buffer[row]][begin : begin + int(self.length[row])]


@dataclass(frozen=True)
class Group:
    """Rows of one kind, sorted by document: ``count[d]`` rows from ``first + start[d]`` on are document *d*'s."""

    first: int
    start: Integers
    count: Integers

    @property
    def size(self) -> int:
        return int(self.count.sum())

    def rows(self) -> Rows:
        """All of them."""
        return np.arange(self.first, self.first + self.size, dtype=np.int32)


@dataclass(frozen=True)
class PieceTables:
    """All pieces of a data set, by kind.

    Attributes:
        stores: where the pieces lie.
        kept: the documents that take part, as items of the store.
        table: the rows.
        real: one row for each document.
        generations, thoughts: rows of each document, in the order of their index.
        segments: the text before, between and behind a document's thoughts, one more than thoughts.
        samples: one row for each; their document numbers follow those of the real documents.
        least_places: for each store of generations the least place that one of them has among its document's.
        path: an order that puts related documents side by side, or None.
    """

    stores: StoreSet
    kept: Integers
    table: PieceTable
    real: Group
    generations: Group
    thoughts: Group
    segments: Group
    samples: Group
    least_places: Integers
    path: Integers | None = None

    def document_order(self, random: np.random.Generator) -> Integers:
        """Documents in the order in which a stream takes them: along the path, or permuted."""
        return random.permutation(self.documents) if self.path is None else self.path

    @property
    def documents(self) -> int:
        return len(self.kept)

    @cached_property
    def ids(self) -> pa.Array:
        """Ids of the documents; read when they are asked for, because training never needs them."""
        ids = self.stores.real.items(["document_id"]).column(0).cast(pa.large_string())  # they may be more than 2 GiB
        return ids.combine_chunks().take(pa.array(self.kept))

    def name(self, document: int) -> str:
        """Id of a document, or the number of a sample."""
        if document >= self.documents:
            return f"sample {document - self.documents}"
        return str(self.ids[document].as_py())

    def recipe(self, row: int) -> str | None:
        """What made a generation or thought; None for real text and literals. Reads the store's table."""
        chunk = int(self.table.buffer[row]) - 1  # behind the literals
        for store in self.stores.training:
            if 0 <= chunk < len(store.buffers):
                item = store.item_at(chunk, int(self.table.begin[row]))
                recipe: str | None = store.items(["recipe"]).column(0)[item].as_py()
                return recipe
            chunk -= len(store.buffers)
        return None

    def require_generations(self, count: int) -> None:
        """Check that every document has ``count`` generations.

        Raises:
            UserError: one has fewer; the message names it.
        """
        available = self.generations.count
        fewest = int(available.min())
        if fewest < count:
            name = self.ids[int(available.argmin())].as_py()
            few = int((available < count).sum())
            remedy = f"lower data.generations to {fewest}" if fewest else "give it generations, or train on RealStream"
            raise UserError(
                f"{count} generations were asked for and document '{name}' has {fewest}: {remedy}, or set "
                f"data.incomplete to accept ({few} of {self.documents} documents have fewer)"
            )
