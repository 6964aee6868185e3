"""What streams are made of, token by token: how far their unigrams are from those of the held-out text.

Web text has the widest coverage and the lowest divergence and is still not the best mix (arXiv 2510.01631, whose
direction, smoothing and tokenization are not published): the numbers describe a mixture, they do not rank it.

Counts are over the texts in the stores' own tokenizer, without BOS, EOS and markers. A distribution is smoothed by
adding s to the count of every token id of the vocabulary: p(v) = (count(v) + s) / (tokens + s * vocabulary).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megalit.errors import UserError
from megalit.streams.pieces import LITERALS
from megalit.streams.store import TokenStore
from megalit.streams.stream import Stream

Counts = npt.NDArray[Any]
# Told how many tokens are counted, and the word for them.
Progress = Callable[[int, str], None]
_CHUNK = 1 << 22
# Distinct n-grams are counted by 64-bit hashes; beyond this many tokens only the first ones are read.
_NGRAM_TOKENS = 1 << 25
_NGRAMS = (2, 3)
# Added to each token id's count: Jeffreys' prior.
_SMOOTHING = 0.5


@dataclass(frozen=True)
class Unigrams:
    """Tokens of one text.

    Attributes:
        name: of the stream or store.
        counts: of each token id, ``(vocabulary,)``.
        lengths: tokens of each item, ``(items,)``.
        distinct: distinct n-grams over all n-grams, by n; n-grams do not cross items.
        sampled: tokens that the n-grams were counted on.
    """

    name: str
    counts: Counts
    lengths: Counts
    distinct: dict[int, float]
    sampled: int

    @property
    def tokens(self) -> int:
        return round(float(self.counts.sum()))


@dataclass(frozen=True)
class Comparison:
    """A training text against a held-out one.

    Attributes:
        forward: KL(held out || training), in nats: what coding held-out tokens by the training's unigrams costs more.
        backward: KL(training || held out), in nats.
        coverage: share of held-out tokens (occurrences) whose id occurs in training.
        covered_types: share of the held-out text's token ids that occur in training.
        rare: how many different held-out token ids occur at most ``rare_count`` times there.
        rare_unseen: share of them that never occur in training.
    """

    forward: float
    backward: float
    coverage: float
    covered_types: float
    rare: int
    rare_unseen: float


def unigrams_of_stores(
    name: str,
    stores: Iterable[TokenStore],
    progress: Progress = lambda count, unit: None,
) -> Unigrams:
    """Unigrams of all items of some stores.

    Raises:
        UserError: the stores have no tokens, or different vocabularies.
    """
    found = list(stores)
    sizes = {store.manifest.vocabulary_size for store in found}
    if len(sizes) != 1 or not sum(store.manifest.tokens for store in found):
        raise UserError(f"{name} has no tokens, or stores of different vocabularies: name stores of one data set")
    counts = np.zeros(sizes.pop(), dtype=np.int64)
    lengths = [store.items(["tokens"]).column(0).to_numpy() for store in found]
    # Chunks of tokens are copied nowhere but into the sample for n-grams.
    sample: list[Counts] = []
    read = sampled = 0
    for store in found:
        for buffer in store.buffers:
            if sampled < _NGRAM_TOKENS:
                sample.append(buffer[: _NGRAM_TOKENS - sampled])
                sampled += len(sample[-1])
            for begin in range(0, len(buffer), _CHUNK):
                part = buffer[begin : begin + _CHUNK]
                counts += np.bincount(part, minlength=len(counts))
                read += len(part)
                progress(read, "tokens")
    tokens = np.concatenate(sample)
    joined = np.concatenate(lengths)
    distinct = {n: _distinct(tokens, joined, n) for n in _NGRAMS}
    return Unigrams(name, counts, joined, distinct, len(tokens))


def unigrams_of_stream(
    stream: Stream,
    vocabulary: int,
    progress: Progress = lambda count, unit: None,
) -> Unigrams:
    """Unigrams of one epoch of a stream; its items are the texts that its ordering places."""
    table = stream.tables.table
    packed = stream.packed(0)
    rows = np.asarray(packed.rows)
    texts = rows[rows >= LITERALS]
    counts = np.zeros(vocabulary, dtype=np.int64)
    chunk = np.empty((1, min(_CHUNK, packed.tokens)), dtype=np.int32)
    for begin in range(0, packed.tokens, _CHUNK):
        end = min(begin + _CHUNK, packed.tokens)
        packed.fill(chunk, np.array([0]), np.array([begin]), np.array([end]))
        counts += np.bincount(chunk[0, : end - begin], minlength=vocabulary)
        progress(end, "tokens")
    # Markers stand between the texts; the same ids inside a text stay counted.
    for row, times in enumerate(np.bincount(rows[rows < LITERALS]).tolist()):
        counts -= times * np.bincount(table.read(row), minlength=vocabulary)
    lengths = table.length[texts].astype(np.int64)
    few = texts[np.cumsum(lengths) <= _NGRAM_TOKENS]
    tokens = np.concatenate([table.read(row) for row in few.tolist()]) if len(few) else np.zeros(0, dtype=np.int64)
    distinct = {n: _distinct(tokens, lengths, n) for n in _NGRAMS}
    return Unigrams(stream.name, counts, lengths, distinct, len(tokens))


def unigrams_of_run(streams: Iterable[tuple[Unigrams, float]]) -> Unigrams:
    """Unigrams that a run reads: each stream's, times its epochs."""
    counts: Counts = np.sum([epochs * stream.counts for stream, epochs in streams], axis=0)
    return Unigrams("the run", counts, np.zeros(0, dtype=np.int64), {}, 0)


def compare(training: Counts, held_out: Counts, *, smoothing: float = _SMOOTHING, rare_count: int = 2) -> Comparison:
    """Divergences in both directions, coverage, and rare tokens that training never shows.

    Args:
        training, held_out: counts of each token id, ``(vocabulary,)``.
        smoothing: added to each count.
        rare_count: a held-out token is rare if it occurs at most this often.

    Raises:
        UserError: different vocabularies, no tokens, or smoothing that is not positive.
    """
    if training.shape != held_out.shape:
        raise UserError(
            f"vocabularies of {len(training)} and {len(held_out)} tokens cannot be compared: tokenize alike"
        )
    if smoothing <= 0:
        raise UserError(
            f"smoothing is {smoothing}: choose a positive count, or tokens without a count have no logarithm"
        )
    if not training.sum() or not held_out.sum():
        raise UserError("one of the texts has no tokens: name stores that have some")
    p, q = (np.log((c + smoothing) / (c.sum() + smoothing * len(c))) for c in (held_out, training))
    seen = training > 0
    present = held_out > 0
    rare = present & (held_out <= rare_count)
    return Comparison(
        forward=float(np.sum(np.exp(p) * (p - q))),
        backward=float(np.sum(np.exp(q) * (q - p))),
        coverage=float(held_out[seen].sum() / held_out.sum()),
        covered_types=float((present & seen).sum() / present.sum()),
        rare=int(rare.sum()),
        rare_unseen=float((rare & ~seen).sum() / max(int(rare.sum()), 1)),
    )


def _distinct(tokens: npt.NDArray[np.integer], lengths: Counts, n: int) -> float:
    """Distinct n-grams over all, by 64-bit polynomial hashes; those that cross the end of an item do not count."""
    count = len(tokens) - n + 1
    if count < 1:
        return 0.0
    hashed = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + tokens[place : place + count].astype(np.uint64) + np.uint64(1)
        hashed ^= hashed >> np.uint64(29)
    ends = np.cumsum(lengths)
    item = np.searchsorted(ends, np.arange(len(tokens)), side="right")
    whole = hashed[item[:count] == item[n - 1 :]]
    return len(np.unique(whole)) / len(whole) if len(whole) else 0.0


def comparison_lines(texts: Iterable[Unigrams], held_out: Unigrams) -> list[str]:
    """The analysis in words, one block for each text."""
    lines = [f"against {held_out.name} ({held_out.tokens:,} tokens), {_SMOOTHING:g} added to each token's count:"]
    for text in texts:
        found = compare(text.counts, held_out.counts)
        distinct = ", ".join(f"{share:.1%} of {n}-grams" for n, share in text.distinct.items())
        middle = float(np.median(text.lengths)) if len(text.lengths) else 0.0
        lines += [
            f"  {text.name}: {text.tokens:,} tokens"
            + (f" in {len(text.lengths):,} items, {middle:,.0f} in the middle one" if len(text.lengths) else ""),
            f"    KL(held out || training) {found.forward:.4f}, KL(training || held out) {found.backward:.4f} nats",
            f"    coverage: {found.coverage:.2%} of held-out tokens, {found.covered_types:.2%} of their ids; "
            f"of {found.rare:,} rare ids {found.rare_unseen:.1%} are never seen in training",
        ]
        if distinct:
            lines.append(f"    distinct: {distinct} (first {text.sampled:,} tokens)")
    return lines
