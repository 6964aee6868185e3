"""Orderings: in which order the tokens of a data set stand before they are cut into windows.

An ordering is a pure function (tables, random generator) -> spans. The streams of the megadocs
paper (arXiv 2603.18534, section 3) differ in nothing else. A new stream is one class here.

Spans are an ``int32`` array of shape ``(spans, 4)``; its columns are

- 0, ``STORE``: number of the source; 0 is the literals (BOS, EOS, thought markers)
- 1, ``ITEM``: item in that source
- 2, ``START`` and 3, ``STOP``: token range in that item

Every document and every generation keeps its own BOS and EOS, also inside a megadoc, so simple
and stitched streams hold identical tokens. (The paper does not say; this is our choice.)
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from megalit.errors import UserError
from megalit.streams.pieces import Integers, Pieces, PieceTables

STORE, ITEM, START, STOP = range(4)
Spans = npt.NDArray[np.int32]
RealDocument = Literal["last", "first", "absent"]


@dataclass(frozen=True)
class Literals:
    """Tokens that stand in no document: BOS, EOS and the markers around a thought.

    They form source 0, a single item of all of them in a row.
    """

    bos: int
    eos: int
    thought_start: tuple[int, ...] = ()
    thought_end: tuple[int, ...] = ()

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        return np.array([self.bos, self.eos, *self.thought_start, *self.thought_end], dtype=np.int32)

    def read(self, item: int, start: int, stop: int) -> npt.NDArray[np.int32]:
        return self.tokens[start:stop]

    @property
    def thought_start_span(self) -> tuple[int, int]:
        return 2, 2 + len(self.thought_start)

    @property
    def thought_end_span(self) -> tuple[int, int]:
        stop = self.thought_start_span[1]
        return stop, stop + len(self.thought_end)


BOS_SPAN = (0, 0, 0, 1)
EOS_SPAN = (0, 0, 1, 2)


class Ordering(Protocol):
    """What a stream needs to know of its order."""

    @property
    def name(self) -> str: ...

    def spans(self, tables: PieceTables, random: np.random.Generator) -> Spans:
        """The stream's tokens for one epoch, as spans of shape ``(spans, 4)``."""
        ...


@dataclass(frozen=True)
class Real:
    """The real documents alone, permuted."""

    name: str = "real"

    def spans(self, tables: PieceTables, random: np.random.Generator) -> Spans:
        return _delimited(_whole(tables.real)[random.permutation(len(tables.real))])


@dataclass(frozen=True)
class Simple:
    """Real documents and their generations, each a document of its own, all permuted together.

    Attributes:
        generations: how many of each document's generations take part.
    """

    generations: int
    name: str = "simple"

    def spans(self, tables: PieceTables, random: np.random.Generator) -> Spans:
        chosen = tables.first_generations(self.generations).ravel()
        pieces = np.concatenate([_whole(tables.real), _whole(tables.generations)[chosen]])
        return _delimited(pieces[random.permutation(len(pieces))])


@dataclass(frozen=True)
class Stitched:
    """Megadocs: each document's generations side by side, with the real document or without.

    Attributes:
        generations: how many of each document's generations take part.
        real_document: where the real document stands in its megadoc: ``last`` (the paper's best),
            ``first`` or ``absent``.
    """

    generations: int
    real_document: RealDocument = "last"
    name: str = "stitched"

    def spans(self, tables: PieceTables, random: np.random.Generator) -> Spans:
        megadocs = _whole(tables.generations)[tables.first_generations(self.generations)]
        real = _whole(tables.real)[:, None]
        if self.real_document == "last":
            megadocs = np.concatenate([megadocs, real], axis=1)
        elif self.real_document == "first":
            megadocs = np.concatenate([real, megadocs], axis=1)
        return _delimited(megadocs[random.permutation(len(megadocs))].reshape(-1, 4))


@dataclass(frozen=True)
class LatentThoughts:
    """Megadocs: each document stretched by its thoughts, each before the text that it prepares.

    The thoughts and the places where they belong come with the corpus. Without them the document's
    tokens stand as they were, in one piece: removing the thoughts gives the document back.

    Attributes:
        literals: the markers around each thought.
    """

    literals: Literals
    name: str = "latent_thoughts"

    def spans(self, tables: PieceTables, random: np.random.Generator) -> Spans:
        if not len(tables.thoughts):
            raise UserError("the corpus has no thoughts: give its rows 'thoughts' with 'offset' and 'text'")
        thoughts, documents = tables.thoughts, len(tables.real)
        counts = np.bincount(thoughts.document, minlength=documents)
        # A document of n thoughts is BOS, then n times (text, marker, thought, marker), text, EOS.
        lengths = 4 * counts + 3
        first = np.cumsum(lengths) - lengths
        spans: Spans = np.empty((int(lengths.sum()), 4), dtype=np.int32)
        spans[first] = BOS_SPAN
        spans[first + lengths - 1] = EOS_SPAN
        rank = np.arange(len(thoughts)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = first[thoughts.document] + 1 + 4 * rank
        is_first = rank == 0
        begin = np.where(is_first, 0, np.concatenate([[0], thoughts.split_at[:-1]]))
        spans[at] = _ranges(tables.real, thoughts.document, begin, thoughts.split_at)
        spans[at + 1] = (0, 0, *self.literals.thought_start_span)
        spans[at + 2] = _whole(thoughts)
        spans[at + 3] = (0, 0, *self.literals.thought_end_span)
        last_split = np.zeros(documents, dtype=np.int64)
        np.maximum.at(last_split, thoughts.document, thoughts.split_at)
        everything = np.arange(documents)
        spans[first + lengths - 2] = _ranges(tables.real, everything, last_split, tables.real.tokens)
        return _permuted_groups(spans, first, lengths, random.permutation(documents))


def _whole(pieces: Pieces) -> Spans:
    zero = np.zeros(len(pieces), dtype=np.int64)
    return np.stack([pieces.store, pieces.item, zero, pieces.tokens], axis=1).astype(np.int32)


def _ranges(pieces: Pieces, index: Integers, start: Integers, stop: Integers) -> Spans:
    return np.stack([pieces.store[index], pieces.item[index], start, stop], axis=1).astype(np.int32)


def _delimited(pieces: Spans) -> Spans:
    """Put BOS before and EOS behind each piece."""
    spans = np.empty((len(pieces), 3, 4), dtype=np.int32)
    spans[:, 0] = BOS_SPAN
    spans[:, 1] = pieces
    spans[:, 2] = EOS_SPAN
    return spans.reshape(-1, 4)


def _permuted_groups(spans: Spans, first: Integers, lengths: Integers, order: Integers) -> Spans:
    """Reorder consecutive groups of spans: group ``order[i]`` comes at place ``i``."""
    moved = lengths[order]
    offset = np.repeat(first[order] - (np.cumsum(moved) - moved), moved)
    return spans[np.arange(len(spans)) + offset]
