"""Token stores hold what was tokenized, and say so when they do not."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import DataSet
from litdata import StreamingDataset

from megalit.corpus.tables import TRAIN, VALIDATION, TableWriter
from megalit.errors import UserError
from megalit.streams import building
from megalit.streams.building import build_store
from megalit.streams.sources import real_rows
from megalit.streams.store import ITEMS, DocumentLoader, TokenStore
from megalit.streams.store_set import open_stores


@pytest.fixture
def store(data_set: DataSet, tmp_path: Path) -> Path:
    """A copy of the store of real documents that a test may damage."""
    return Path(shutil.copytree(data_set.stores.real.folder, tmp_path / "real"))


def test_items_are_the_documents_tokens_without_bos_and_eos(data_set: DataSet) -> None:
    store = data_set.stores.real
    table = store.items().to_pylist()
    assert len(table) == store.manifest.items > 20
    for item, row in enumerate(table):
        tokens = store.read(item, 0, row["tokens"])
        assert data_set.tokenizer.decode(tokens) == data_set.rows[row["document_id"]]["text"]
        assert not {data_set.tokenizer.bos, data_set.tokenizer.eos} & set(tokens.tolist())
    assert sum(row["tokens"] for row in table) == store.manifest.tokens


def test_any_range_of_an_item_is_a_slice_of_it(data_set: DataSet) -> None:
    store = data_set.stores.real
    whole = store.read(3, 0, 10)
    assert store.read(3, 4, 9).tolist() == whole[4:9].tolist()


def test_no_item_of_a_training_store_belongs_to_a_held_out_document(data_set: DataSet) -> None:
    held_out = {row["id"] for row in data_set.corpus.rows("documents", VALIDATION)}
    assert held_out
    stores = [data_set.stores.real, *data_set.stores.generations, data_set.stores.thoughts]
    for store in stores:
        assert store is not None
        assert not held_out & set(store.items(["document_id"]).column(0).to_pylist())
    assert data_set.stores.validation is not None
    assert set(data_set.stores.validation.items(["document_id"]).column(0).to_pylist()) == held_out


def test_litdata_reads_a_store(data_set: DataSet, tmp_path: Path) -> None:
    """The format is LitData's own: its StreamingDataset gives the same items."""
    store = data_set.stores.real
    streaming = StreamingDataset(str(store.folder), item_loader=DocumentLoader(), shuffle=False)
    counts = store.items(["tokens"]).column(0).to_pylist()
    assert len(streaming) == len(counts)
    for item in (0, 7, len(counts) - 1):
        np.testing.assert_array_equal(streaming[item], store.read(item, 0, counts[item]))


def test_thoughts_know_the_token_before_which_they_belong(data_set: DataSet) -> None:
    """The tokens before the split spell the characters before it, but for white space that a token begins with."""
    store, real = data_set.stores.thoughts, data_set.stores.real
    assert store is not None
    items = {row["document_id"]: (item, row["tokens"]) for item, row in enumerate(real.items().to_pylist())}
    for row in store.items().to_pylist():
        item, tokens = items[row["document_id"]]
        text = data_set.rows[row["document_id"]]["text"]
        before = data_set.tokenizer.decode(real.read(item, 0, row["token_offset"]))
        shorter = data_set.tokenizer.decode(real.read(item, 0, max(0, row["token_offset"] - 1)))
        assert text.startswith(before)
        assert not text[len(before) : row["character_offset"]].strip()
        assert len(shorter) < row["character_offset"] or row["token_offset"] == 0
        assert row["token_offset"] <= tokens


def test_several_chunks_read_as_one_store(data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "CHUNK_BYTES", 500)
    build_store(tmp_path / "s", "real", real_rows(data_set.corpus, TRAIN), data_set.tokenizer, {})
    small, large = TokenStore(tmp_path / "s"), data_set.stores.real
    assert len(list((tmp_path / "s").glob("*.bin"))) > 3
    for item, tokens in enumerate(large.items(["tokens"]).column(0).to_pylist()):
        np.testing.assert_array_equal(small.read(item, 0, tokens), large.read(item, 0, tokens))
    assert small.manifest.content_hash == large.manifest.content_hash


def test_a_rank_in_the_environment_does_not_change_the_store(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    manifest = build_store(tmp_path / "s", "real", real_rows(data_set.corpus, TRAIN), data_set.tokenizer, {})
    assert manifest.content_hash == data_set.stores.real.manifest.content_hash
    assert TokenStore(tmp_path / "s").manifest.items == data_set.stores.real.manifest.items


def test_a_store_without_manifest_does_not_exist(store: Path) -> None:
    (store / "manifest.json").unlink()
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore(store)


def test_a_store_of_a_newer_version_is_refused(store: Path) -> None:
    path = store / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(UserError, match="newer megalit"):
        TokenStore(store)


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_chunk_is_named(store: Path, keep: int) -> None:
    chunk = next(store.glob("*.bin"))
    os.truncate(chunk, keep if keep >= 0 else chunk.stat().st_size - 1)
    with pytest.raises(UserError, match=chunk.name):
        TokenStore(store)


def test_a_missing_chunk_is_named(store: Path) -> None:
    chunk = next(store.glob("*.bin"))
    chunk.unlink()
    with pytest.raises(UserError, match=chunk.name):
        TokenStore(store)


def test_verification_finds_a_flipped_bit(store: Path) -> None:
    building.verify(store)
    chunk = next(store.glob("*.bin"))
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(UserError, match=rf"{chunk.name} does not hold what was written"):
        building.verify(store)


def test_a_column_is_read_in_few_parts_however_many_groups_its_file_has(store: Path) -> None:
    """What is looked up for each part costs as much as all real documents."""
    ids = [f"document-{number % 700}" for number in range(5000)]
    with TableWriter(store / "items.parquet", ITEMS) as table:
        for one in ids:
            table.write({"document_id": one})
    assert pq.ParquetFile(store / "items.parquet").num_row_groups == 5
    (part,) = TokenStore(store).column_as_dictionaries("document_id")
    assert part.to_pylist() == ids
    assert len(part.dictionary) == 700


def test_a_build_that_fails_leaves_nothing(data_set: DataSet, tmp_path: Path) -> None:
    def rows():  # type: ignore[no-untyped-def]
        yield next(real_rows(data_set.corpus, TRAIN))
        raise RuntimeError("out of rows")

    with pytest.raises(RuntimeError, match="out of rows"):
        build_store(tmp_path / "s", "real", rows(), data_set.tokenizer, {})
    assert list(tmp_path.iterdir()) == []


def test_stores_of_two_tokenizers_do_not_go_together(data_set: DataSet, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data_set.folder, tmp_path / "stores"))
    path = folder / "generations" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer": "0" * 16}))
    with pytest.raises(UserError, match="different tokenizers"):
        open_stores(folder)


def test_a_folder_without_stores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no token store of real documents"):
        open_stores(tmp_path)


def test_a_build_is_read_back_before_it_appears(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = building._finish_chunks

    def damage(writer: object, folder: Path) -> None:
        finish(writer, folder)  # type: ignore[arg-type]
        chunk = next(folder.glob("*.bin"))
        chunk.write_bytes(chunk.read_bytes()[:-2] + b"\x05\x00")

    monkeypatch.setattr(building, "_finish_chunks", damage)
    with pytest.raises(UserError, match="does not hold what its manifest says"):
        build_store(tmp_path / "s", "real", real_rows(data_set.corpus, TRAIN), data_set.tokenizer, {})
    assert list(tmp_path.iterdir()) == []


def test_verification_finds_documents_that_have_changed_places(store: Path) -> None:
    path = store / "items.parquet"
    table = pq.read_table(path)
    swapped = table["document_id"].take(pa.array([1, 0, *range(2, len(table))]))
    pq.write_table(table.set_column(0, "document_id", swapped), path)
    with pytest.raises(UserError, match=r"items.parquet does not hold what was written"):
        building.verify(store)


@pytest.mark.parametrize("name", ["items.parquet", "index.json", "manifest.json"])
def test_files_that_cannot_be_read_are_named(store: Path, name: str) -> None:
    (store / name).write_bytes((store / name).read_bytes()[:50] if name != "manifest.json" else b"[]")
    with pytest.raises(UserError, match=name):
        TokenStore(store).items()


def test_a_folder_without_manifest_is_not_built_over(data_set: DataSet, tmp_path: Path) -> None:
    (tmp_path / "validation").mkdir()
    with pytest.raises(UserError, match="validation is there and is no finished store: move it away"):
        building.build_stores(data_set.corpus, [], data_set.tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["validation"]
