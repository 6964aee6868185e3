"""The named streams: one LightningDataModule each."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from megalit.corpus.tokenizers import Tokenizer
from megalit.errors import UserError
from megalit.streams.datamodule import StreamDataModule
from megalit.streams.orderings import (
    Draw,
    Incomplete,
    LatentThoughts,
    MegadocOrder,
    Ordering,
    Real,
    RealDocument,
    RealDocuments,
    Samples,
    Simple,
    Stitched,
)
from megalit.streams.remote import one_spelling
from megalit.streams.run_length import Component
from megalit.streams.schedule import exact
from megalit.streams.store_set import StoreSet
from megalit.streams.synthetic import SyntheticDataModule


class SimpleStream(SyntheticDataModule):
    """Generations and real documents, each a document of its own, all permuted together.

    Args:
        generations: how many of each document's generations take part.
        draw: which: the ``first`` ones, or some ``drawn`` for each document by seed.
        incomplete: ``refuse`` documents with fewer generations, or ``accept`` them with those that they have.
        real_document: real documents stand ``among`` their generations, or are ``absent``.
    """

    def __init__(
        self,
        generations: int = 4,
        draw: Draw = "first",
        incomplete: Incomplete = "refuse",
        real_document: RealDocuments = "among",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.generations = _positive(generations)
        self.draw: Draw = draw
        self.incomplete: Incomplete = incomplete
        self.real_document: RealDocuments = real_document

    def synthetic_ordering(self) -> Ordering:
        return Simple(self.generations, self.draw, self.incomplete, self.real_document)


class StitchedStream(SyntheticDataModule):
    """Megadocs: each document's generations and the document itself, side by side.

    Args:
        generations: how many of each document's generations take part.
        real_document: where the real document stands in its megadoc.
        draw: which generations: the ``first`` ones, or some ``drawn`` for each document by seed.
        megadoc_order: order of the generations in a megadoc: ``fixed``, or ``drawn`` anew each epoch.
        separator: text between the pieces of a megadoc (default: each piece keeps its BOS and EOS).
        incomplete: ``refuse`` documents with fewer generations, or ``accept`` them with those that they have.
    """

    def __init__(
        self,
        generations: int = 4,
        real_document: RealDocument = "last",
        draw: Draw = "first",
        megadoc_order: MegadocOrder = "fixed",
        separator: str | None = None,
        incomplete: Incomplete = "refuse",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.generations = _positive(generations)
        self.real_document: RealDocument = real_document
        self.draw: Draw = draw
        self.megadoc_order: MegadocOrder = megadoc_order
        self.separator = separator
        self.incomplete: Incomplete = incomplete

    def synthetic_ordering(self) -> Ordering:
        separated = self.separator is not None
        order = self.megadoc_order
        return Stitched(self.generations, self.real_document, self.draw, order, separated, self.incomplete)

    def markers(self, stores: StoreSet) -> tuple[list[int], list[int], list[int]]:
        return [], [], _encode(stores, self.separator)[0] if self.separator is not None else []


class LatentThoughtStream(SyntheticDataModule):
    """Megadocs: each document stretched by the thoughts that stand in the corpus.

    Args:
        thought_start: marker before each thought.
        thought_end: marker behind each thought.
        incomplete: ``refuse`` documents that lack some of their thoughts, or ``accept`` them with those that they have.
    """

    def __init__(
        self,
        thought_start: str = "<think>",
        thought_end: str = "</think>",
        incomplete: Incomplete = "refuse",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.thought_start = thought_start
        self.thought_end = thought_end
        self.incomplete: Incomplete = incomplete

    def synthetic_ordering(self) -> Ordering:
        return LatentThoughts(self.incomplete)

    def markers(self, stores: StoreSet) -> tuple[list[int], list[int], list[int]]:
        start, end = _encode(stores, self.thought_start, self.thought_end)
        return start, end, []


class SampleStream(SyntheticDataModule):
    """A teacher's own samples beside the real documents: hard-label self-distillation (arXiv 2509.14786)."""

    def synthetic_ordering(self) -> Ordering:
        return Samples()


@dataclass(frozen=True)
class MixedStream:
    """One stream of a mixture.

    Attributes:
        order: ``real``, ``simple``, ``stitched``, ``latent_thoughts`` or ``samples``.
        share: of the run's windows, or one share for each phase of the mixture.
        generations: of each document, for simple and stitched streams.
        real_document: where the real document stands in a stitched stream's megadocs; ``absent`` leaves it out of
            a simple stream too.
        draw: which generations take part.
        incomplete: ``refuse`` documents with fewer generations, or that lack some of their thoughts, or ``accept`` them
            with those that they have.
        stores: folder of its stores, if they are not the mixture's own: an old corpus, for example.
        name: of this stream (default: its order); names are unique.
    """

    order: Literal["real", "simple", "stitched", "latent_thoughts", "samples"]
    share: float | list[float]
    generations: int = 4
    real_document: RealDocument = "last"
    draw: Draw = "first"
    incomplete: Incomplete = "refuse"
    stores: str | None = None
    name: str | None = None

    def component(self) -> Component:
        name = self.name or self.order
        ordering: Ordering
        if self.order == "real":
            ordering = Real(name)
        elif self.order == "simple":
            among: RealDocuments = "absent" if self.real_document == "absent" else "among"
            ordering = Simple(_positive(self.generations), self.draw, self.incomplete, among, name)
        elif self.order == "samples":
            ordering = Samples(name)
        elif self.order == "stitched":
            ordering = Stitched(
                _positive(self.generations), self.real_document, self.draw, incomplete=self.incomplete, name=name
            )
        else:
            ordering = LatentThoughts(self.incomplete, name)
        return Component(ordering, self.shares, one_spelling(self.stores) if self.stores else None)

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Exact share in each phase."""
        return tuple(exact(share) for share in (self.share if isinstance(self.share, list) else [self.share]))


class MixtureStream(StreamDataModule):
    """Any number of streams of any kind, each with its share of windows.

    Args:
        streams: the streams; in each phase their shares sum to 1.
        phases: share of the run's steps in each phase; they sum to 1.
        thought_start: marker before each thought of latent-thought streams.
        thought_end: marker behind each thought.
    """

    def __init__(
        self,
        streams: Sequence[MixedStream],
        phases: Sequence[float] = (1.0,),
        thought_start: str = "<think>",
        thought_end: str = "</think>",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.streams = tuple(streams)
        self.thought_start = thought_start
        self.thought_end = thought_end
        names = [stream.name or stream.order for stream in self.streams]
        if len(set(names)) < len(names):
            raise UserError(f"data.streams: the names {', '.join(names)} are not unique: give each stream a name")
        self.phases = [exact(share) for share in phases]
        if any(share <= 0 for share in self.phases) or sum(self.phases) != 1:
            raise UserError("data.phases: their shares are not positive with a sum of 1: mend them")
        for stream in self.streams:
            if len(stream.shares) != len(self.phases):
                raise UserError(
                    f"data.streams: '{stream.name or stream.order}' has {len(stream.shares)} shares for "
                    f"{len(self.phases)} phases: give it one for each"
                )
            if min(stream.shares) < 0 or not any(stream.shares):
                raise UserError(f"data.streams: the share of '{stream.name or stream.order}' is not positive: mend it")
        if any(sum(shares) != 1 for shares in zip(*(stream.shares for stream in self.streams), strict=True)):
            raise UserError("data.streams: their shares do not sum to 1 in each phase: mend them")

    def components(self) -> tuple[list[Component], list[Fraction]]:
        return [stream.component() for stream in self.streams], self.phases

    def markers(self, stores: StoreSet) -> tuple[list[int], list[int], list[int]]:
        if all(stream.order != "latent_thoughts" for stream in self.streams):
            return [], [], []
        start, end = _encode(stores, self.thought_start, self.thought_end)
        return start, end, []


def _encode(stores: StoreSet, *texts: str) -> list[list[int]]:
    if stores.tokenizer is None:
        raise UserError(f"{stores.folder} holds no tokenizer to encode {texts[0]!r}: tokenize the corpus again")
    tokenizer, manifest = Tokenizer(str(stores.tokenizer)), stores.real.manifest
    theirs = f"{stores.tokenizer} is not the tokenizer that made the stores beside it"
    sizes = tokenizer.bos, tokenizer.eos, tokenizer.vocabulary_size
    if sizes != (manifest.bos, manifest.eos, manifest.vocabulary_size):
        raise UserError(f"{theirs}: put that one back, which {texts[0]!r} is encoded with")
    if tokenizer.fingerprint != manifest.tokenizer:
        # Not refused: another version of its library may only write the same one differently.
        warnings.warn(f"{theirs}, or is written differently: {texts[0]!r} may be other tokens", stacklevel=2)
    return [tokenizer.encode_marker(text).tolist() for text in texts]


def _positive(generations: int) -> int:
    if generations < 1:
        raise UserError(f"data.generations is {generations}: ask for at least 1, or train on RealStream")
    return generations
