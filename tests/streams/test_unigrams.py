"""Unigram analysis against plain counting."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from data_sets import DataSet
from scipy.stats import entropy

from megalit.errors import UserError
from megalit.streams import LatentThoughtStream, StitchedStream
from megalit.streams.store import TokenStore
from megalit.streams.unigrams import (
    compare,
    comparison_lines,
    unigrams_of_run,
    unigrams_of_stores,
    unigrams_of_stream,
)


def items(store: TokenStore) -> list[list[int]]:
    lengths = store.items(["tokens"]).column(0).to_pylist()
    return [store.read(item, 0, length).tolist() for item, length in enumerate(lengths)]


def test_counts_lengths_and_ngrams_of_stores(data_set: DataSet) -> None:
    stores = [data_set.stores.real, *data_set.stores.generations]
    found = unigrams_of_stores("all", stores)
    texts = [text for store in stores for text in items(store)]
    counted = Counter(token for text in texts for token in text)
    assert {token: int(count) for token, count in enumerate(found.counts) if count} == counted
    assert found.lengths.tolist() == [len(text) for text in texts]
    for n in (2, 3):
        grams = [tuple(text[at : at + n]) for text in texts for at in range(len(text) - n + 1)]
        assert found.distinct[n] == pytest.approx(len(set(grams)) / len(grams), abs=1e-12)


def test_the_sample_for_ngrams_is_no_larger_than_its_limit(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many stores and chunks there are: what is joined to one array is the first tokens."""
    stores = [data_set.stores.real, *data_set.stores.generations]
    limit = stores[0].manifest.tokens + 100
    assert limit < sum(store.manifest.tokens for store in stores)
    whole = unigrams_of_stores("all", stores)
    monkeypatch.setattr("megalit.streams.unigrams._NGRAM_TOKENS", limit)
    joined: list[int] = []
    concatenate = np.concatenate

    def watched(arrays: Any, *others: Any) -> Any:
        joined.append(sum(map(len, arrays)))
        return concatenate(arrays, *others)

    monkeypatch.setattr(np, "concatenate", watched)
    found = unigrams_of_stores("all", stores)
    assert max(joined) == found.sampled == limit
    assert np.array_equal(found.counts, whole.counts)
    tokens = np.array([token for store in stores for text in items(store) for token in text][:limit])
    assert found.distinct[2] == pytest.approx(plain_distinct(tokens, whole.lengths, 2), abs=1e-12)


def plain_distinct(tokens: Any, lengths: Any, n: int) -> float:
    """Distinct n-grams over all, one by one; the last item is cut where the tokens end."""
    texts = [text.tolist() for text in np.split(tokens, np.cumsum(lengths)[np.cumsum(lengths) < len(tokens)])]
    grams = [tuple(text[at : at + n]) for text in texts for at in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams)


def test_a_stream_is_counted_in_chunks_without_its_markers(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that end within pieces and within markers, for a stream with all kinds of markers."""
    data = LatentThoughtStream(
        stores=str(data_set.folder), context_length=32, global_batch=4, total_tokens=5000, seed=0
    )
    data.setup("fit")
    for stream in data.mixture.streams:
        table, rows = stream.tables.table, stream.packed(0).rows.tolist()
        expected = Counter(token for row in rows if table.document[row] >= 0 for token in table.read(row).tolist())
        monkeypatch.setattr("megalit.streams.unigrams._CHUNK", 97)
        told: list[int] = []
        found = unigrams_of_stream(
            stream, data.mixture.plan.vocabulary_size, progress=lambda count, unit, told=told: told.append(count)
        )
        assert {token: int(count) for token, count in enumerate(found.counts) if count} == expected
        assert told == [*range(97, stream.tokens, 97), stream.tokens]
    data.mixture.forget_plans()


def test_a_stitched_stream_has_the_tokens_of_its_documents_and_generations(data_set: DataSet) -> None:
    data = StitchedStream(
        stores=str(data_set.folder), generations=5, context_length=32, global_batch=4, total_tokens=5000, seed=0
    )
    data.setup("fit")
    mixture = data.mixture
    real, stitched = (unigrams_of_stream(stream, mixture.plan.vocabulary_size) for stream in mixture.streams)
    stores = [data_set.stores.real, *data_set.stores.generations]
    assert np.array_equal(real.counts, unigrams_of_stores("real", stores[:1]).counts)
    assert np.array_equal(stitched.counts, unigrams_of_stores("all", stores).counts)
    run = unigrams_of_run([(real, 0.5), (stitched, 2.0)])
    assert run.tokens == pytest.approx(0.5 * real.tokens + 2 * stitched.tokens, abs=1)
    mixture.forget_plans()


def test_divergences_are_scipys_with_the_stated_smoothing() -> None:
    training, held_out = np.array([50, 30, 20, 0, 0]), np.array([5, 1, 0, 2, 0])
    found = compare(training, held_out, smoothing=0.5, rare_count=2)
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (held_out, training))
    assert found.forward == pytest.approx(entropy(p, q))
    assert found.backward == pytest.approx(entropy(q, p))
    assert found.coverage == pytest.approx(6 / 8)
    assert found.covered_types == pytest.approx(2 / 3)
    assert (found.rare, found.rare_unseen) == (2, 0.5)


def test_equal_distributions_do_not_diverge() -> None:
    counts = np.array([5, 0, 7])
    found = compare(counts, counts)
    assert (found.forward, found.backward, found.coverage, found.rare_unseen) == (0, 0, 1, 0)
    assert not math.isnan(found.rare_unseen)


@pytest.mark.parametrize(
    ("training", "held_out", "smoothing", "message"),
    [
        ([1, 2], [1, 2, 3], 0.5, "vocabularies of 2 and 3"),
        ([1, 2], [1, 2], 0.0, "choose a positive count"),
        ([0, 0], [1, 2], 0.5, "no tokens"),
    ],
)
def test_what_cannot_be_compared(training: list[int], held_out: list[int], smoothing: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare(np.array(training), np.array(held_out), smoothing=smoothing)


def test_the_analysis_in_words(data_set: DataSet) -> None:
    assert data_set.stores.validation is not None
    held_out = unigrams_of_stores("validation", [data_set.stores.validation])
    lines = "\n".join(comparison_lines([unigrams_of_stores("real", [data_set.stores.real])], held_out))
    for words in ("KL(held out || training)", "KL(training || held out)", "coverage:", "rare ids", "of 2-grams", "0.5"):
        assert words in lines
