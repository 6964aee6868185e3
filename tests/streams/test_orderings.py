"""Each stream's order of tokens, against literal constructions from the text of the paper."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import GENERATIONS, DataSet

from megalit.errors import UserError
from megalit.streams import mapped_tables
from megalit.streams.joining import join
from megalit.streams.mapped_tables import MappedTables
from megalit.streams.orderings import LatentThoughts, Ordering, Real, RealDocument, Simple, Stitched
from megalit.streams.pieces import Literals, PieceTables
from megalit.streams.store_set import open_stores
from megalit.streams.stream import Stream

Document = tuple[int, ...]


@pytest.fixture(scope="session")
def literals(data_set: DataSet) -> Literals:
    tokenizer = data_set.tokenizer
    start, end = (tuple(tokenizer.encode_marker(m).tolist()) for m in ("<think>", "</think>"))
    return Literals(tokenizer.bos, tokenizer.eos, start, end)


@pytest.fixture(scope="session")
def tables(data_set: DataSet, literals: Literals) -> PieceTables:
    return join(data_set.stores, literals)


def tokens_of(ordering: Ordering, tables: PieceTables, seed: int = 0, fixed: int = 0) -> list[int]:
    rows = ordering.rows(tables, np.random.default_rng(fixed), np.random.default_rng(seed))
    assert rows.dtype == np.int32
    return [int(token) for row in rows for token in tables.table.read(row)]


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


def test_real_holds_every_document_once(data_set: DataSet, tables: PieceTables, literals: Literals) -> None:
    found = documents_of(tokens_of(Real(), tables), literals)
    assert Counter(found) == Counter(encoded(data_set, row["text"]) for row in training_rows(data_set))


@pytest.mark.parametrize("count", [1, 3, GENERATIONS])
def test_simple_holds_each_document_and_its_first_generations(
    data_set: DataSet, tables: PieceTables, literals: Literals, count: int
) -> None:
    found = documents_of(tokens_of(Simple(count), tables), literals)
    expected = Counter(
        encoded(data_set, text)
        for row in training_rows(data_set)
        for text in [row["text"], *(g["text"] for g in row["generations"][:count])]
    )
    assert Counter(found) == expected


def test_simple_without_real_documents_holds_their_generations(
    data_set: DataSet, tables: PieceTables, literals: Literals
) -> None:
    found = documents_of(tokens_of(Simple(2, real_document="absent"), tables), literals)
    texts = [g["text"] for row in training_rows(data_set) for g in row["generations"][:2]]
    assert Counter(found) == Counter(encoded(data_set, text) for text in texts)


@pytest.mark.parametrize("real_document", ["last", "first", "absent"])
@pytest.mark.parametrize("count", [1, 4])
def test_stitched_keeps_each_documents_pieces_together_in_order(
    data_set: DataSet,
    tables: PieceTables,
    literals: Literals,
    count: int,
    real_document: RealDocument,
) -> None:
    found = documents_of(tokens_of(Stitched(count, real_document), tables), literals)
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


def test_simple_and_stitched_hold_identical_tokens(tables: PieceTables, literals: Literals) -> None:
    """The streams differ only in order, so a comparison of them compares nothing else."""
    simple = tokens_of(Simple(4), tables)
    stitched = tokens_of(Stitched(4), tables)
    assert simple != stitched
    assert Counter(simple) == Counter(stitched)
    assert Counter(documents_of(simple, literals)) == Counter(documents_of(stitched, literals))


def test_latent_thoughts_stand_where_they_belong(data_set: DataSet, tables: PieceTables, literals: Literals) -> None:
    """Against a literal construction: piece, marker, thought, marker, piece, ..."""
    found = documents_of(tokens_of(LatentThoughts(), tables), literals)
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
    data_set: DataSet, tables: PieceTables, literals: Literals
) -> None:
    found = documents_of(tokens_of(LatentThoughts(), tables), literals)
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


@pytest.mark.parametrize("ordering", [Real(), Simple(2), Stitched(2), LatentThoughts()])
def test_the_order_is_a_function_of_the_random_generator(ordering: Ordering, tables: PieceTables) -> None:
    first = tokens_of(ordering, tables, seed=1)
    assert first == tokens_of(ordering, tables, seed=1)
    assert first != tokens_of(ordering, tables, seed=2)
    assert Counter(first) == Counter(tokens_of(ordering, tables, seed=2))


def test_more_generations_than_exist_names_document_and_remedy(tables: PieceTables) -> None:
    with pytest.raises(UserError, match=rf"document-\d+.* has {GENERATIONS}: lower data.generations to {GENERATIONS}"):
        tokens_of(Simple(GENERATIONS + 1), tables)


def megadocs_of(ordering: Stitched, tables: PieceTables, seed: int = 0, fixed: int = 0) -> dict[int, list[int]]:
    """Generation numbers of each document's megadoc, -1 for the real document."""
    found: dict[int, list[int]] = {}
    for row in ordering.rows(tables, np.random.default_rng(fixed), np.random.default_rng(seed)):
        document = int(tables.table.document[row])
        if document >= 0:
            found.setdefault(document, []).append(int(tables.table.generation[row]))
    return found


def test_drawn_generations_differ_between_documents_and_not_between_epochs(tables: PieceTables) -> None:
    drawn = Stitched(2, "absent", draw="drawn")
    one = megadocs_of(drawn, tables, seed=1, fixed=7)
    assert len({tuple(sorted(chosen)) for chosen in one.values()}) > 3
    assert all(len(set(chosen)) == 2 for chosen in one.values())
    assert one == megadocs_of(drawn, tables, seed=2, fixed=7)
    assert one != megadocs_of(drawn, tables, seed=1, fixed=8)


def test_drawn_generations_are_nested(tables: PieceTables) -> None:
    fewer, more = (megadocs_of(Stitched(count, "absent", draw="drawn"), tables, fixed=3) for count in (2, 4))
    assert all(more[document][:2] == chosen for document, chosen in fewer.items())


def test_streams_of_one_seed_draw_the_same_generations_whatever_their_names(tables: PieceTables) -> None:
    def rows(ordering: Ordering, seed: int) -> Counter[int]:
        return Counter(Stream(ordering, tables, 32, "documents", seed, "test").packed(0).rows.tolist())

    generations = set(range(tables.generations.first, tables.generations.first + tables.generations.size))
    drawn = [
        {row: count for row, count in rows(ordering, seed).items() if row in generations}
        for ordering, seed in (
            (Simple(2, draw="drawn"), 5),
            (Stitched(2, draw="drawn"), 5),
            (Stitched(2, draw="drawn", name="more"), 5),
            (Stitched(2, draw="drawn"), 6),
        )
    ]
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]


def test_the_order_inside_a_megadoc_is_drawn_anew_each_epoch(tables: PieceTables) -> None:
    drawn = Stitched(4, "last", order="drawn")
    first, second = megadocs_of(drawn, tables, seed=1), megadocs_of(drawn, tables, seed=2)
    assert first != second
    assert {d: sorted(m) for d, m in first.items()} == {d: sorted(m) for d, m in second.items()}
    assert all(megadoc[-1] == -1 for megadoc in first.values())


def test_a_separator_takes_the_place_of_eos_and_bos(data_set: DataSet, literals: Literals) -> None:
    separated = replace(literals, separator=(7, 8))
    tables = join(data_set.stores, separated)
    for document in documents_of(tokens_of(Stitched(3, separated=True), tables), literals):
        assert sum(document[i : i + 2] == (7, 8) for i in range(len(document))) >= 3


def test_real_fractions_are_nested_and_keep_what_belongs_to_them(data_set: DataSet, literals: Literals) -> None:
    parts = {f: join(data_set.stores, literals, f) for f in (0.1, 0.25, 0.5, 1.0)}
    ids = {f: set(tables.ids.to_pylist()) for f, tables in parts.items()}
    assert ids[0.1] < ids[0.25] < ids[0.5] < ids[1.0]
    total = len(ids[1.0])
    assert [len(ids[f]) for f in ids] == [-(-total // 10), -(-total // 4), -(-total // 2), total]
    for tables in parts.values():
        expected = [
            encoded(data_set, text)
            for name in tables.ids.to_pylist()
            for text in [data_set.rows[name]["text"], *(g["text"] for g in data_set.rows[name]["generations"][:2])]
        ]
        assert Counter(documents_of(tokens_of(Simple(2), tables), literals)) == Counter(expected)
        assert tables.thoughts.size == sum(len(data_set.rows[name]["thoughts"]) for name in tables.ids.to_pylist())


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("document_id", "is not among the real ones"),
        ("content_hash", "made from another text of the document 'document-"),
    ],
)
def test_generations_without_their_document_are_refused(
    column: str, message: str, data_set: DataSet, literals: Literals, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data_set.folder, tmp_path / "stores"))
    path = folder / "generations" / "items.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[7] = "another"
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), path)
    with pytest.raises(UserError, match=message):
        join(open_stores(folder), literals)


def test_tables_are_joined_once_and_mapped_by_others(
    data_set: DataSet, literals: Literals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEGALIT_PLANS", str(tmp_path))
    first = MappedTables(data_set.stores, literals, 0.5)
    monkeypatch.delattr(mapped_tables, "join")
    mapped = MappedTables(data_set.stores, literals, 0.5).tables
    computed = join(data_set.stores, literals, 0.5)
    assert mapped.ids.equals(computed.ids)
    for ordering in (Real(), Simple(3), Stitched(2), LatentThoughts()):
        assert tokens_of(ordering, mapped) == tokens_of(ordering, computed)
    assert not mapped.table.begin.flags.owndata
    first.forget()
    with pytest.raises(NameError):
        MappedTables(data_set.stores, literals, 0.5)


def test_the_key_of_joined_tables_knows_whose_tokens_they_are(data_set: DataSet, tmp_path: Path) -> None:
    # Renamed documents leave every token as it was.
    shutil.copytree(data_set.folder, tmp_path / "stores")
    path = tmp_path / "stores" / "real" / "items.parquet"
    literals = Literals(0, 1)
    before = MappedTables(open_stores(tmp_path / "stores"), literals, 1.0)
    table = pq.read_table(path)
    pq.write_table(
        table.set_column(0, "document_id", table["document_id"].take(pa.array(range(len(table))[::-1]))), path
    )
    with pytest.raises(UserError, match="another text of the document"):
        MappedTables(open_stores(tmp_path / "stores"), literals, 1.0)
    before.forget()
