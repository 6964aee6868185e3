"""Orderings: in which order the pieces of a data set stand before they are cut into windows.

An ordering is a pure function (tables, random generators) -> row numbers of the piece table. The
streams of the megadocs paper (arXiv 2603.18534, section 3) differ in nothing else. A new stream is
one class here.

Documents and megadocs stand permuted, or along a path that puts related ones side by side
(:mod:`megalit.streams.related`); a simple stream's pieces are always permuted.

By default every document and every generation keeps its own BOS and EOS, also inside a megadoc, so
that simple and stitched streams hold identical tokens. (The paper does not say what separates the
pieces; this is our choice, and ``separator`` another.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from megalit.errors import UserError
from megalit.streams.pieces import BOS, EOS, EOS_BOS, SEPARATOR, THOUGHT_END, THOUGHT_START, Integers, PieceTables, Rows
from megalit.streams.plan import GENERATIONS, MOST_GENERATIONS
from megalit.streams.store import TokenStore

RealDocument = Literal["last", "first", "absent"]
RealDocuments = Literal["among", "absent"]
Draw = Literal["first", "drawn"]
MegadocOrder = Literal["fixed", "drawn"]
Incomplete = Literal["refuse", "accept"]


# In the place of a generation that is not there.
_NONE = -1


class Ordering(Protocol):
    """What a stream needs to know of its order.

    ``rows`` gets two random generators: ``fixed`` starts the same in every epoch of a run, ``epoch`` in a
    way of its own in each.
    """

    @property
    def name(self) -> str: ...

    def rows(self, tables: PieceTables, fixed: np.random.Generator, epoch: np.random.Generator) -> Rows:
        """The stream's pieces for one epoch, as rows of ``tables.table``: ``int32``, ``(pieces,)``."""
        ...

    def sources(self, tables: PieceTables) -> Sequence[TokenStore]:
        """The stores beside the real documents' that it depends on; what is added to others changes nothing."""
        ...


def describe(ordering: Ordering) -> dict[str, Any]:
    """An ordering's kind and settings, as JSON: two with equal descriptions arrange pieces alike."""
    settings = {"kind": type(ordering).__name__, **vars(ordering)}
    if isinstance(ordering, LatentThoughts):
        # It decides what is refused and not what is arranged, and plans of runs that began before it came lack it.
        del settings["incomplete"]
    return settings


def describe_generations(ordering: Ordering, tables: PieceTables) -> dict[str, Any]:
    """For the plan, where documents have fewer generations than are asked for, which ``incomplete: accept`` lets pass:
    the mean over documents, to three places, and the most of any document, which is G."""
    if not isinstance(ordering, Simple | Stitched):
        return {}
    count = np.minimum(tables.generations.count, ordering.generations)
    if count.min(initial=ordering.generations) == ordering.generations:
        return {}
    return {GENERATIONS: round(float(count.mean()), 3), MOST_GENERATIONS: int(count.max())}


@dataclass(frozen=True)
class Real:
    """The real documents alone."""

    name: str = "real"

    def rows(self, tables: PieceTables, fixed: np.random.Generator, epoch: np.random.Generator) -> Rows:
        return _delimited(tables.real.rows()[tables.document_order(epoch)])

    def sources(self, tables: PieceTables) -> Sequence[TokenStore]:
        return ()


@dataclass(frozen=True)
class Samples:
    """Texts that were made from no document, such as a teacher's own samples, each a document of its own."""

    name: str = "samples"

    def rows(self, tables: PieceTables, fixed: np.random.Generator, epoch: np.random.Generator) -> Rows:
        return _delimited(epoch.permutation(tables.samples.rows()))

    def sources(self, tables: PieceTables) -> Sequence[TokenStore]:
        return tables.stores.samples


@dataclass(frozen=True)
class Simple:
    """Real documents and their generations, each a document of its own, all permuted together.

    Attributes:
        generations: how many of each document's generations take part.
        draw: which: the ``first`` ones, or some ``drawn`` for each document by seed.
        incomplete: documents with fewer generations are refused, or accepted with those that they have.
        real_document: real documents stand ``among`` their generations, or are ``absent``.
    """

    generations: int
    draw: Draw = "first"
    incomplete: Incomplete = "refuse"
    real_document: RealDocuments = "among"
    name: str = "simple"

    def rows(self, tables: PieceTables, fixed: np.random.Generator, epoch: np.random.Generator) -> Rows:
        chosen = _choose(tables, self.generations, self.draw, self.incomplete, fixed).ravel()
        pieces = chosen[chosen != _NONE]
        if self.real_document == "among":
            pieces = np.concatenate([tables.real.rows(), pieces])
        return _delimited(epoch.permutation(pieces))

    def sources(self, tables: PieceTables) -> Sequence[TokenStore]:
        return _sources(tables, self.generations, self.draw)


@dataclass(frozen=True)
class Stitched:
    """Megadocs: each document's generations side by side, with the real document or without.

    Attributes:
        generations: how many of each document's generations take part.
        real_document: where the real document stands in its megadoc: ``last`` (the paper's best),
            ``first`` or ``absent``.
        draw: which generations: the ``first`` ones, or some ``drawn`` for each document by seed.
        order: of the generations in a megadoc: ``fixed``, or ``drawn`` anew each epoch.
        separated: put the separator literal between pieces instead of EOS and BOS.
        incomplete: documents with fewer generations are refused, or accepted with those that they have.
    """

    generations: int
    real_document: RealDocument = "last"
    draw: Draw = "first"
    order: MegadocOrder = "fixed"
    separated: bool = False
    incomplete: Incomplete = "refuse"
    name: str = "stitched"

    def rows(self, tables: PieceTables, fixed: np.random.Generator, epoch: np.random.Generator) -> Rows:
        pieces = _choose(tables, self.generations, self.draw, self.incomplete, fixed)
        if self.order == "drawn":
            pieces = epoch.permuted(pieces, axis=1)
        real = tables.real.rows()[:, None]
        if self.real_document == "last":
            pieces = np.concatenate([pieces, real], axis=1)
        elif self.real_document == "first":
            pieces = np.concatenate([real, pieces], axis=1)
        pieces = pieces[tables.document_order(epoch)]
        there = pieces != _NONE
        if not self.separated:
            return _delimited(pieces[there])
        megadocs: Rows = np.full((len(pieces), 2 * pieces.shape[1] + 1), SEPARATOR, dtype=np.int32)
        megadocs[:, 0] = BOS
        megadocs[:, 1::2] = pieces
        megadocs[:, -1] = EOS
        # What is not there takes the separator before it along, or the one behind it where it would come first.
        kept = np.ones(megadocs.shape, dtype=bool)
        kept[:, 1::2] = there
        kept[:, 2:-1:2] = there[:, 1:] & np.logical_or.accumulate(there, axis=1)[:, :-1]
        return megadocs[kept & there.any(axis=1, keepdims=True)]

    def sources(self, tables: PieceTables) -> Sequence[TokenStore]:
        return _sources(tables, self.generations, self.draw)


@dataclass(frozen=True)
class LatentThoughts:
    """Megadocs: each document stretched by its thoughts, each before the text that it prepares.

    The thoughts and the places where they belong come with the corpus. The text around them is the
    document's own tokens: removing the thoughts gives the document back.

    Attributes:
        incomplete: documents that lack some of their thoughts are refused, or accepted with those that they have
            (:mod:`megalit.streams.thoughts`).
    """

    incomplete: Incomplete = "refuse"
    name: str = "latent_thoughts"

    def rows(self, tables: PieceTables, fixed: np.random.Generator, epoch: np.random.Generator) -> Rows:
        if not tables.thoughts.size:
            raise UserError("the corpus has no thoughts: give its rows 'thoughts' with 'offset' and 'text'")
        # A document of n thoughts is BOS, n times (text, marker, thought, marker), text, EOS.
        order = tables.document_order(epoch)
        thoughts = tables.thoughts.count[order]
        lengths = 4 * thoughts + 3
        first = np.cumsum(lengths) - lengths
        rows: Rows = np.empty(int(lengths.sum()), dtype=np.int32)
        rows[first] = BOS
        rows[first + lengths - 1] = EOS
        rank = _ranks(thoughts + 1)
        at = np.repeat(first, thoughts + 1) + 1 + 4 * rank
        rows[at] = tables.segments.first + np.repeat(tables.segments.start[order], thoughts + 1) + rank
        rank = _ranks(thoughts)
        at = np.repeat(first, thoughts) + 2 + 4 * rank
        rows[at] = THOUGHT_START
        rows[at + 1] = tables.thoughts.first + np.repeat(tables.thoughts.start[order], thoughts) + rank
        rows[at + 2] = THOUGHT_END
        return rows

    def sources(self, tables: PieceTables) -> Sequence[TokenStore]:
        return () if tables.stores.thoughts is None else (tables.stores.thoughts,)


def _ranks(counts: Integers) -> Integers:
    """0 … n-1 for each n of ``counts``, end to end."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _choose(tables: PieceTables, count: int, draw: Draw, incomplete: Incomplete, fixed: np.random.Generator) -> Rows:
    """Rows of ``count`` generations of each document, ``(documents, count)``; ``_NONE`` where it has fewer.

    Drawn ones are nested: with the same seed, fewer are the first of more.
    """
    group = tables.generations
    if incomplete == "refuse" or not group.size:
        tables.require_generations(count)
    places = group.start[:, None] + np.arange(count)
    missing = np.arange(count) >= group.count[:, None] if group.count.min(initial=count) < count else None
    if missing is not None:
        places[missing] = 0
    if draw == "drawn":
        document = np.repeat(np.arange(tables.documents), group.count)
        places = np.lexsort((fixed.random(group.size), document))[places]
    rows = (group.first + places).astype(np.int32)
    if missing is not None:
        rows[missing] = _NONE
    return rows


def _sources(tables: PieceTables, count: int, draw: Draw) -> Sequence[TokenStore]:
    """Stores of the generations: of the first ``count`` of each document those that hold any of them."""
    stores = tables.stores.generations
    if draw == "drawn":
        return stores
    return [store for store, least in zip(stores, tables.least_places, strict=True) if least < count]


def _delimited(pieces: Rows) -> Rows:
    """BOS before and EOS behind each piece; between two pieces both are one literal."""
    rows: Rows = np.full(2 * len(pieces) + 1, EOS_BOS, dtype=np.int32)
    rows[0] = BOS
    rows[1::2] = pieces
    rows[-1] = EOS
    return rows
