"""What a store or a mixture holds: trees, percentiles, single windows with their provenance."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from megalit.errors import UserError
from megalit.streams.mixture import Mixture
from megalit.streams.orderings import LatentThoughts
from megalit.streams.packing import PackedTokens
from megalit.streams.pieces import BOS, EOS, EOS_BOS, SEPARATOR, THOUGHT_END, THOUGHT_START
from megalit.streams.store import TokenStore
from megalit.streams.stream import Stream
from megalit.streams.thoughts import mean_thoughts

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_LITERALS = {
    BOS: "BOS",
    EOS: "EOS",
    EOS_BOS: "EOS BOS",
    THOUGHT_START: "thought start",
    THOUGHT_END: "thought end",
    SEPARATOR: "separator",
}


def megadoc_lengths(stream: Stream) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens from one document's first piece to its last, for each stretch of pieces of the same document in one epoch.

    In a simple stream that is a document or a generation, in a stitched one a megadoc. Delimiters do not count.
    """
    rows = np.asarray(stream.packed(0).rows)
    document = stream.tables.table.document[rows]
    length = stream.tables.table.length[rows].astype(np.int64)
    # Literals belong to no document and end no stretch.
    inside = document >= 0
    document, length = document[inside], length[inside]
    if not len(document):
        return length
    starts = np.flatnonzero(np.concatenate([[True], document[1:] != document[:-1]]))
    return np.add.reduceat(length, starts)


def percentiles(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    """Lengths by percentile, in words."""
    values = zip(PERCENTILES, np.percentile(lengths, PERCENTILES), strict=True)
    return ", ".join(f"{value:,.0f} ({percent}%)" for percent, value in values)


def store_lines(store: TokenStore) -> list[str]:
    """A store in words."""
    manifest = store.manifest
    recipes = store.items(["recipe"]).column(0).unique().drop_null().to_pylist()
    made_by = f", by {', '.join(recipes)}" if recipes else ""
    return [
        f"{store.folder}: {manifest.kind}, {manifest.items:,} items, {manifest.tokens:,} tokens{made_by}",
        f"  tokenizer {manifest.tokenizer}, vocabulary {manifest.vocabulary_size:,}, {manifest.dtype}, "
        f"content {manifest.content_hash}",
        f"  tokens an item: {percentiles(store.items(['tokens']).column(0).to_numpy())}",
    ]


def mixture_lines(mixture: Mixture) -> list[str]:
    """A mixture as a tree: stores, orderings, schedule."""
    plan = mixture.plan
    lines = [f"run of {plan.steps:,} steps, plan {plan.fingerprint}"]
    for stream, part in zip(mixture.streams, plan.streams, strict=True):
        lines += [
            f"├─ {part.name}: {part.share:.1%} of windows, {part.windows:,} windows, {part.epochs:.2f} epochs",
            f"│  ├─ ordering {stream.ordering}",
            f"│  ├─ {stream.tables.documents:,} documents, {part.unique_tokens:,} tokens an epoch, "
            f"{part.synthetic_fraction:.1%} synthetic, {part.windows_per_epoch:,} windows of {stream.context_length:,}",
            *_incomplete(stream),
        ]
        if isinstance(stream.ordering, LatentThoughts):
            most = int(stream.tables.thoughts.count.max(initial=0))
            lines.append(f"│  ├─ {mean_thoughts(stream.tables):.2f} thoughts a document on average, {most} at most")
        lengths = percentiles(megadoc_lengths(stream))
        lines.append(f"│  └─ tokens from a document's first piece to its last: {lengths}")
    for name, suite in mixture.suites.items():
        lines.append(f"└─ validation {name}: {suite.windows:,} windows, {suite.targets:,} targets")
    return lines


def _incomplete(stream: Stream) -> list[str]:
    """How many documents have fewer generations than the stream asks for, which ``incomplete: accept`` lets pass."""
    asked = getattr(stream.ordering, "generations", 0)
    count = stream.tables.generations.count
    few, none = int((count < asked).sum()), int((count == 0).sum())
    return [f"│  ├─ {few:,} documents have fewer than {asked} generations, {none:,} of them none"] if few else []


@dataclass(frozen=True)
class PieceInWindow:
    """A part of a window and where it is from.

    Attributes:
        name: document id, or the name of a literal.
        generation: index among the document's generations or thoughts; None for real text and literals.
        row: of the table of pieces.
        start, stop: token range inside the piece.
        tokens: the token ids.
        literal: whether it stands in no document.
    """

    name: str
    generation: int | None
    row: int
    start: int
    stop: int
    tokens: list[int]
    literal: bool


def _bounds(packed: PackedTokens, window: int, context_length: int) -> tuple[int, int]:
    begins, ends = packed.bounds(np.array([window]), context_length)
    return int(begins[0]), int(ends[0])


def window_of_sample(mixture: Mixture, sample: int) -> tuple[str, int, int, list[PieceInWindow]]:
    """Stream name, epoch, window and pieces of one sample of the run.

    Raises:
        UserError: the run has no such sample.
    """
    samples = mixture.schedule.samples
    if not 0 <= sample < samples:
        raise UserError(f"window {sample} is not in the run: choose one from 0 to {samples - 1}")
    number, ordinal = (int(value[0]) for value in mixture.schedule.locate(np.array([sample])))
    stream = mixture.streams[number]
    epoch, position = divmod(ordinal, stream.windows)
    window = int(stream.window_at(epoch, np.array([position]))[0])
    packed, table = stream.packed(epoch), stream.tables.table
    found = []
    for row, start, stop in packed.pieces(*_bounds(packed, window, stream.context_length)):
        document, generation = int(table.document[row]), int(table.generation[row])
        name = _LITERALS[row] if document < 0 else stream.tables.name(document)
        tokens = table.read(row)[start:stop].tolist()
        found.append(
            PieceInWindow(name, generation if generation >= 0 else None, row, start, stop, tokens, document < 0)
        )
    return stream.name, epoch, window, found
