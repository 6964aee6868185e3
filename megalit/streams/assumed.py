"""Streams of data that does not exist yet: what a run would read if the stores held what is assumed.

A run can then be costed before a document is tokenized or a generation made: the length of a run, its schedule and
each stream's part follow from the sizes of the streams alone (:mod:`megalit.streams.run_length`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any

from megalit.errors import UserError
from megalit.streams.orderings import LatentThoughts, Real, Samples, Simple, Stitched
from megalit.streams.packing import windows_of
from megalit.streams.plan import RunPlan
from megalit.streams.run_length import Component, MixtureSettings, schedule_of, steps_of, stream_plans
from megalit.streams.schedule import exact


@dataclass(frozen=True)
class AssumedData:
    """What the stores would hold, where they are not there. Tokens include each text's BOS and EOS, or its markers.

    Attributes:
        documents: real training documents.
        real_tokens: their tokens.
        generation_tokens: tokens of G generations of every document, by G; of any other G by the mean of the nearest.
        thoughts: thoughts of each document.
        thought_tokens: tokens of so many thoughts of every document, by their number, like ``generation_tokens``.
        samples: texts that were made from no document.
        sample_tokens: their tokens.
        vocabulary_size: of the tokenizer.

    Raises:
        UserError: a count below 0.
    """

    documents: int = 0
    real_tokens: int = 0
    generation_tokens: dict[int, int] = field(default_factory=dict)
    thoughts: int = 0
    thought_tokens: dict[int, int] = field(default_factory=dict)
    samples: int = 0
    sample_tokens: int = 0
    vocabulary_size: int = 128_256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            counts = [*value.keys(), *value.values()] if isinstance(value, dict) else [value]
            if min(counts, default=0) < 0:
                raise UserError(f"assume.{name} holds {min(counts)}: choose 0 or more")

    @property
    def is_given(self) -> bool:
        return self.documents > 0 and self.real_tokens > 0


@dataclass(frozen=True)
class AssumedStream:
    """One epoch of a stream that is only assumed.

    Attributes:
        name: the ordering's.
        tokens: in one epoch, BOS, EOS and markers included.
        synthetic_tokens: of them, what a model or a recipe wrote.
        windows: in one epoch.
        rows: pieces and literals, as an ordering would arrange them.
    """

    name: str
    tokens: int
    synthetic_tokens: int
    windows: int
    rows: int


@dataclass(frozen=True)
class AssumedRun:
    """A run on data that is only assumed.

    Attributes:
        plan: as the stores would give it.
        streams: the streams.
        documents: real training documents that take part.
        table_rows: rows of the table of pieces.
        items: of all stores.
        stored_tokens: of all stores: without BOS, EOS and markers.
        dtype_bytes: bytes of a stored token.
    """

    plan: RunPlan
    streams: tuple[AssumedStream, ...]
    documents: int
    table_rows: int
    items: int
    stored_tokens: int
    dtype_bytes: int


def assume_run(
    settings: MixtureSettings, components: Sequence[Component], phases: Sequence[Fraction], data: AssumedData
) -> AssumedRun:
    """The run that a mixture would be if its stores held what is assumed.

    Raises:
        UserError: a stream whose size is not given, or a length that cannot work.
    """
    if any(component.stores is not None for component in components):
        raise UserError("a stream names stores of its own, and assumed sizes describe one data set: build the stores")
    share = exact(settings.real_fraction)
    documents = ceil(share * data.documents)
    real_tokens = round(share * data.real_tokens)
    if real_tokens <= settings.context_length:
        raise UserError(
            f"data.context_length is {settings.context_length} and {real_tokens} real tokens are assumed: "
            "lower it or raise assume.real_tokens"
        )
    streams = tuple(_stream(component, settings, data, documents, real_tokens) for component in components)
    steps = steps_of(settings, components, phases, [stream.windows for stream in streams], real_tokens)
    schedule = schedule_of(settings, components, phases, steps)
    plan = RunPlan(
        streams=stream_plans(streams, schedule),
        context_length=settings.context_length,
        global_batch=settings.global_batch,
        steps=steps,
        vocabulary_size=data.vocabulary_size,
        bos=0,
        unique_real_tokens=real_tokens,
        settings={"assumed": asdict(data), **asdict(settings)},
    )
    return AssumedRun(plan, streams, documents, *_stores(components, data, documents))


def _stream(
    component: Component, settings: MixtureSettings, data: AssumedData, documents: int, real_tokens: int
) -> AssumedStream:
    ordering = component.ordering
    share = exact(settings.real_fraction)
    synthetic = texts = markers = 0
    real, pieces = documents, documents
    if isinstance(ordering, Simple | Stitched):
        texts = documents * ordering.generations
        synthetic = round(share * _tokens(data.generation_tokens, ordering.generations, "generation_tokens"))
        markers = 2 * texts
        if ordering.real_document == "absent":
            real, pieces = 0, 0
    elif isinstance(ordering, LatentThoughts):
        texts = documents * _given(data.thoughts, "thoughts")
        synthetic = round(share * _tokens(data.thought_tokens, data.thoughts, "thought_tokens"))
    elif isinstance(ordering, Samples):
        texts, synthetic = _given(data.samples, "samples"), _given(data.sample_tokens, "sample_tokens")
        markers, real, pieces = 2 * texts, 0, 0
    elif not isinstance(ordering, Real):
        raise UserError(f"sizes of a stream of the kind {type(ordering).__name__} cannot be assumed: build the stores")
    tokens = synthetic + (real_tokens if real else 0)
    # Text and EOS BOS in turn, or for thoughts (text, marker, thought, marker) n times between BOS, text, EOS.
    rows = 4 * texts + 3 * documents if isinstance(ordering, LatentThoughts) else 2 * (texts + pieces) + 1
    windows = windows_of(tokens, settings.context_length, disjoint=settings.epoch_order == "paper")
    return AssumedStream(ordering.name, tokens, max(0, synthetic - markers), windows, rows)


def _given(value: int, name: str) -> int:
    if not value:
        raise UserError(f"the size of a stream is not known: give assume.{name}, or build the stores")
    return value


def _tokens(by_count: dict[int, int], count: int, name: str) -> int:
    """Tokens of ``count`` texts of every document, by the mean of the nearest count that is given."""
    known = {number: tokens for number, tokens in by_count.items() if number > 0}
    if not known:
        raise UserError(f"the size of a stream is not known: give assume.{name}, or build the stores")
    nearest = min(known, key=lambda number: (abs(number - count), number))
    return round(Fraction(known[nearest] * count, nearest))


def _stores(components: Sequence[Component], data: AssumedData, documents: int) -> tuple[int, int, int, int]:
    """Rows of the table of pieces, items and tokens of all stores, bytes of a token."""
    orderings: list[Any] = [component.ordering for component in components]
    generations = max((o.generations for o in orderings if isinstance(o, Simple | Stitched)), default=0)
    thoughts = data.thoughts if any(isinstance(o, LatentThoughts) for o in orderings) else 0
    samples = data.samples if any(isinstance(o, Samples) for o in orderings) else 0
    tokens = data.real_tokens - 2 * data.documents
    if generations:
        made = _tokens(data.generation_tokens, generations, "generation_tokens")
        tokens += made - 2 * generations * data.documents
    if thoughts:
        tokens += _tokens(data.thought_tokens, thoughts, "thought_tokens")
    if samples:
        tokens += data.sample_tokens - 2 * samples
    # Rows of documents that take part; stores hold all of them. Thoughts cut a document into one segment more.
    rows = documents * (1 + generations + thoughts + (thoughts + 1 if thoughts else 0)) + samples
    items = data.documents * (1 + generations + thoughts) + samples
    return rows, items, max(0, tokens), 2 if data.vocabulary_size <= 2**16 else 4
