"""Stores at the edges of what a corpus can hold, and builds that are killed or run at the same time."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from data_sets import DataSet, make_rows, write_jsonl
from forks import Fork
from running import start

from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.errors import UserError
from megalit.files import read_json, write_json
from megalit.streams import RealStream, joining
from megalit.streams.building import build_store, verify
from megalit.streams.joining import join
from megalit.streams.pieces import Literals
from megalit.streams.store import TokenStore
from megalit.streams.store_set import open_stores


def rows(*texts: str) -> Iterator[list[dict[str, Any]]]:
    yield [{"document_id": str(n), "content_hash": str(n), "text": text} for n, text in enumerate(texts)]


def test_documents_without_tokens_take_no_room(data_set: DataSet, tmp_path: Path) -> None:
    texts = ["", "abc", "", "", "def", ""]
    build_store(tmp_path / "s", "real", rows(*texts), data_set.tokenizer, {})
    store = TokenStore(tmp_path / "s")
    counts = store.items(["tokens"]).column(0).to_pylist()
    assert [data_set.tokenizer.decode(store.read(item, 0, count)) for item, count in enumerate(counts)] == texts
    data = RealStream(stores=str(tmp_path), context_length=4, global_batch=1, real_epochs=1)
    (batch, *_) = data.train_dataloader()
    assert batch["tokens"].shape == (1, 4)
    # BOS and EOS of each document, and the tokens of two.
    assert data.plan.unique_real_tokens == 2 * len(texts) + sum(counts)


def test_a_document_of_ten_million_tokens(data_set: DataSet, tmp_path: Path) -> None:
    """It is larger than a chunk; its windows are those of any other document."""
    # The vocabulary has no token for two of these characters, so each is one.
    text = "\x01\x02" * 5_000_000
    build_store(tmp_path / "s", "real", rows("abc", text, "def"), data_set.tokenizer, {})
    verify(tmp_path / "s")
    store = TokenStore(tmp_path / "s")
    counts = store.items(["tokens"]).column(0).to_pylist()
    assert counts[1] == 10_000_000
    assert data_set.tokenizer.decode(store.read(1, 9_999_998, 10_000_000)) == "\x01\x02"
    settings: dict[str, Any] = {"context_length": 4096, "global_batch": 64, "epoch_order": "sequential"}
    data = RealStream(stores=str(tmp_path), real_epochs=1, **settings)
    assert data.plan.streams[0].windows_per_epoch == -(-(sum(counts) + 5) // 4096)
    seen = np.concatenate([batch["tokens"].ravel() for batch in data.train_dataloader()])
    ids, count = np.unique(seen[: sum(counts) + 6], return_counts=True)
    pair = data_set.tokenizer.encode_batch(["\x01\x02"])[0].tolist()
    assert [dict(zip(ids.tolist(), count.tolist(), strict=True))[token] for token in pair] == [5_000_000] * 2


def test_token_ids_beyond_the_vocabulary_are_found(data_set: DataSet, tmp_path: Path) -> None:
    build_store(tmp_path / "s", "real", rows("abc def", "ghi"), data_set.tokenizer, {})
    manifest = read_json(tmp_path / "s" / "manifest.json")
    write_json(tmp_path / "s" / "manifest.json", {**manifest, "vocabulary_size": 60})
    with pytest.raises(UserError, match=r"holds the token \d+, and its vocabulary has 60: build the store again"):
        verify(tmp_path / "s")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = write_jsonl(tmp_path / "d.jsonl", make_rows(4000))
    build_corpus(CorpusSettings([str(path)], 0.1), tmp_path / "corpus")
    return tmp_path


def tokenize(folder: Path, output: str) -> Fork:
    arguments = ["tokenize", "--corpus", "corpus", "--output", output, "--tokenizer.vocabulary_size", "300"]
    return start(*arguments, folder=folder)


def test_builds_that_are_killed_or_run_at_once_end_with_one_whole_store(corpus: Path) -> None:
    victim = tokenize(corpus, "stores")
    stores = corpus / "stores"
    deadline = time.monotonic() + 120
    # It is killed while the second store is written: the first is whole, of the second there is nothing.
    while not list(stores.glob(".validation.building-*")) + list(stores.glob(".generations.building-*")):
        assert victim.poll() is None, victim.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    finished = open_stores(stores)
    verify(finished.real.folder)
    assert not finished.generations
    before = (finished.real.folder / "manifest.json").stat().st_ino

    processes = [tokenize(corpus, "stores") for _ in range(2)]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert not list(stores.glob(".*.building-*"))
    assert (finished.real.folder / "manifest.json").stat().st_ino == before
    built = open_stores(stores)
    for store in built.all:
        verify(store.folder)
    table = pq.read_table(corpus / "corpus" / "generations.parquet", columns=["split"])
    assert built.generations[0].manifest.items == table["split"].to_pylist().count("train")


@pytest.mark.parametrize(("limit", "what"), [("_MOST_BUFFERS", "chunks"), ("_MOST_ROWS", "pieces")])
def test_more_than_a_table_can_number_is_refused(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch, limit: str, what: str
) -> None:
    """Without a refusal the numbers would wrap, and windows hold other texts than they say."""
    literals = Literals(data_set.stores.real.manifest.bos, data_set.stores.real.manifest.eos)
    table = join(data_set.stores, literals).table
    enough = len(table.buffers) if what == "chunks" else len(table)
    monkeypatch.setattr(joining, limit, enough)
    join(data_set.stores, literals)
    monkeypatch.setattr(joining, limit, enough - 1)
    with pytest.raises(UserError, match=f"{enough} {what}"):
        join(data_set.stores, literals)


def test_ids_are_looked_up_once_for_as_many_as_there_are_documents(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look-up goes through all documents first. Their ids may be more than the 2 GiB that Arrow's strings hold."""
    literals = Literals(data_set.stores.real.manifest.bos, data_set.stores.real.manifest.eos)
    whole = join(data_set.stores, literals)
    known: list[pa.DataType] = []
    index_in = pc.index_in

    def counting(values: Any, value_set: Any) -> Any:
        known.append(value_set.type)
        return index_in(values, value_set=value_set)

    monkeypatch.setattr(pc, "index_in", counting)
    monkeypatch.setattr("megalit.streams.store._PART_ROWS", 7)
    folder = Path(shutil.copytree(data_set.folder, tmp_path / "stores"))
    for path in folder.glob("*/items.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=7)
    parts = join(open_stores(folder), literals)
    np.testing.assert_array_equal(parts.table.document, whole.table.document)
    assert known == [pa.large_string()] * len(known)
    # Ids and hashes of generations and of thoughts; parts begin inside documents, which they then name twice.
    assert 4 <= len(known) <= 2 * 4
    assert parts.ids.type == pa.large_string()
