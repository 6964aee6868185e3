"""Each stream's order of tokens, against literal constructions from the text of the paper."""

from collections import Counter

import numpy as np
import pytest
from data_sets import GENERATIONS, DataSet

from megalit.errors import UserError
from megalit.streams import pieces
from megalit.streams.orderings import (
    START,
    STOP,
    LatentThoughts,
    Literals,
    Ordering,
    Real,
    RealDocument,
    Simple,
    Stitched,
)
from megalit.streams.pieces import PieceTables
from megalit.streams.store import TokenStore

Document = tuple[int, ...]


@pytest.fixture(scope="session")
def sources(data_set: DataSet) -> list[TokenStore]:
    assert data_set.stores.thoughts is not None
    return [data_set.stores.real, *data_set.stores.generations, data_set.stores.thoughts]


@pytest.fixture(scope="session")
def tables(data_set: DataSet, sources: list[TokenStore]) -> PieceTables:
    return pieces.join(data_set.stores, sources)


@pytest.fixture(scope="session")
def literals(data_set: DataSet) -> Literals:
    tokenizer = data_set.tokenizer
    start, end = (tuple(tokenizer.encode_marker(m).tolist()) for m in ("<think>", "</think>"))
    return Literals(tokenizer.bos, tokenizer.eos, start, end)


def tokens_of(
    ordering: Ordering, tables: PieceTables, literals: Literals, sources: list[TokenStore], seed: int = 0
) -> list[int]:
    spans = ordering.spans(tables, np.random.default_rng(seed))
    assert spans.dtype == np.int32
    readers = [literals, *sources]
    return [int(t) for store, item, start, stop in spans for t in readers[store].read(item, start, stop)]


def documents_of(tokens: list[int], literals: Literals) -> list[Document]:
    """Cut a stream at BOS and EOS, and check that they alternate."""
    documents: list[Document] = []
    current: list[int] | None = None
    for token in tokens:
        if token == literals.bos:
            assert current is None
            current = []
        elif token == literals.eos:
            assert current is not None
            documents.append(tuple(current))
            current = None
        else:
            assert current is not None
            current.append(token)
    assert current is None
    return documents


def encoded(data_set: DataSet, text: str) -> Document:
    return tuple(data_set.tokenizer.encode_batch([text])[0].tolist())


def training_rows(data_set: DataSet) -> list[dict]:  # type: ignore[type-arg]
    return [data_set.rows[row["id"]] for row in data_set.corpus.rows("documents", "train")]


def test_real_holds_every_document_once(
    data_set: DataSet, tables: PieceTables, literals: Literals, sources: list[TokenStore]
) -> None:
    found = documents_of(tokens_of(Real(), tables, literals, sources), literals)
    assert Counter(found) == Counter(encoded(data_set, row["text"]) for row in training_rows(data_set))


@pytest.mark.parametrize("count", [1, 3, GENERATIONS])
def test_simple_holds_each_document_and_its_first_generations(
    data_set: DataSet, tables: PieceTables, literals: Literals, sources: list[TokenStore], count: int
) -> None:
    found = documents_of(tokens_of(Simple(count), tables, literals, sources), literals)
    expected = Counter(
        encoded(data_set, text)
        for row in training_rows(data_set)
        for text in [row["text"], *(g["text"] for g in row["generations"][:count])]
    )
    assert Counter(found) == expected


@pytest.mark.parametrize("real_document", ["last", "first", "absent"])
@pytest.mark.parametrize("count", [1, 4])
def test_stitched_keeps_each_documents_pieces_together_in_order(
    data_set: DataSet,
    tables: PieceTables,
    literals: Literals,
    sources: list[TokenStore],
    count: int,
    real_document: RealDocument,
) -> None:
    found = documents_of(tokens_of(Stitched(count, real_document), tables, literals, sources), literals)
    megadocs = []
    for row in training_rows(data_set):
        generations = [g["text"] for g in row["generations"][:count]]
        texts = {
            "last": [*generations, row["text"]],
            "first": [row["text"], *generations],
            "absent": generations,
        }[real_document]
        megadocs.append(tuple(encoded(data_set, text) for text in texts))
    size = len(megadocs[0])
    assert Counter(zip(*[iter(found)] * size, strict=True)) == Counter(megadocs)


def test_simple_and_stitched_hold_identical_tokens(
    tables: PieceTables, literals: Literals, sources: list[TokenStore]
) -> None:
    """The streams differ only in order, so a comparison of them compares nothing else."""
    simple = tokens_of(Simple(4), tables, literals, sources)
    stitched = tokens_of(Stitched(4), tables, literals, sources)
    assert simple != stitched
    assert Counter(simple) == Counter(stitched)
    assert Counter(documents_of(simple, literals)) == Counter(documents_of(stitched, literals))


def test_latent_thoughts_stand_where_they_belong(
    data_set: DataSet, tables: PieceTables, literals: Literals, sources: list[TokenStore]
) -> None:
    """Against a literal construction: piece, marker, thought, marker, piece, ..."""
    found = documents_of(tokens_of(LatentThoughts(literals), tables, literals, sources), literals)
    expected = []
    for row in training_rows(data_set):
        text = encoded(data_set, row["text"])
        cuts = data_set.tokenizer.token_offsets(row["text"], [t["offset"] for t in row["thoughts"]])
        document: list[int] = []
        for begin, end, thought in zip([0, *cuts], cuts, row["thoughts"], strict=False):
            document += text[begin:end]
            document += [*literals.thought_start, *encoded(data_set, thought["text"]), *literals.thought_end]
        document += text[cuts[-1] if cuts else 0 :]
        expected.append(tuple(document))
    assert any(literals.thought_start[0] in document for document in found)
    assert Counter(found) == Counter(expected)


def test_without_its_thoughts_a_document_is_itself_byte_for_byte(
    data_set: DataSet, tables: PieceTables, literals: Literals, sources: list[TokenStore]
) -> None:
    found = documents_of(tokens_of(LatentThoughts(literals), tables, literals, sources), literals)
    (start,), (end,) = literals.thought_start, literals.thought_end
    texts = []
    for document in found:
        kept, inside = [], False
        for token in document:
            if token == start:
                inside = True
            elif token == end:
                inside = False
            elif not inside:
                kept.append(token)
        texts.append(data_set.tokenizer.decode(kept))
    assert sorted(texts) == sorted(row["text"] for row in training_rows(data_set))


@pytest.mark.parametrize("ordering", [Real(), Simple(2), Stitched(2)])
def test_the_order_is_a_function_of_the_random_generator(
    ordering: Ordering, tables: PieceTables, literals: Literals, sources: list[TokenStore]
) -> None:
    first = tokens_of(ordering, tables, literals, sources, seed=1)
    assert first == tokens_of(ordering, tables, literals, sources, seed=1)
    assert first != tokens_of(ordering, tables, literals, sources, seed=2)


def test_more_generations_than_exist_names_document_and_remedy(tables: PieceTables) -> None:
    with pytest.raises(UserError, match=rf"document-\d+.* has {GENERATIONS}: lower data.generations to {GENERATIONS}"):
        Simple(GENERATIONS + 1).spans(tables, np.random.default_rng(0))


def test_spans_cover_whole_pieces(tables: PieceTables) -> None:
    spans = Stitched(3).spans(tables, np.random.default_rng(0))
    total = int((spans[:, STOP] - spans[:, START]).sum())
    documents = len(tables.real)
    chosen = tables.first_generations(3).ravel()
    assert total == tables.real.tokens.sum() + tables.generations.tokens[chosen].sum() + 2 * 4 * documents
