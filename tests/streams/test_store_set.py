"""Which stores of a folder make a data set, in which order, and what is refused because a part of it is missing."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import GENERATIONS, DataSet

from megalit.corpus.tables import TRAIN
from megalit.corpus.tokenizers import Tokenizer, train_bpe
from megalit.errors import UserError
from megalit.streams import RealStream, SimpleStream
from megalit.streams.building import build_store
from megalit.streams.sources import real_rows
from megalit.streams.store_set import open_stores, set_of

SMALL: dict[str, Any] = {"context_length": 32, "global_batch": 4, "total_tokens": 32 * 4 * 10}


@pytest.fixture
def folder(data_set: DataSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_set.folder, tmp_path / "stores"))


def also_named(folder: Path, *names: str) -> None:
    """The generations under further names."""
    for name in names:
        shutil.copytree(folder / "generations", folder / name)


def names(folder: Path) -> list[str]:
    return [store.folder.name for store in open_stores(folder).generations]


@pytest.mark.parametrize("left", ["chunk-0-0.bin", "index.json", "items.parquet", ".chunk-0-0.bin.x7Kd2a"])
def test_a_store_that_was_copied_in_part_is_refused(folder: Path, left: str) -> None:
    store = folder / "validation"
    for path in store.iterdir():
        path.unlink()
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.txt").touch()
    assert open_stores(folder).validation is None
    (store / left).touch()
    with pytest.raises(UserError, match=f"^{store} is a token store that is there in part: copy it again, or move it"):
        open_stores(folder)
    store.rename(folder / ".validation.building-x")
    assert open_stores(folder).validation is None, "a build that is under way has a hidden name"


@pytest.mark.parametrize(
    ("there", "missing"),
    [(["generations.002"], "generations"), (["generations", "generations.003"], "generations.002")],
)
def test_a_set_that_was_copied_in_part_is_refused(folder: Path, there: list[str], missing: str) -> None:
    also_named(folder, *there[1:])
    (folder / "generations").rename(folder / there[0])
    with pytest.raises(UserError, match=rf"holds {there[-1]} and not {missing}, which it continues: copy that there"):
        open_stores(folder)


def test_segments_follow_their_sets_others(folder: Path) -> None:
    also_named(folder, "generations.003", "generations-b", "generations.002", "a")
    assert names(folder) == ["a", "generations", "generations.002", "generations.003", "generations-b"]
    assert set_of("generations.999") < set_of("generations.1000")


def test_a_set_may_be_named_by_a_model_with_dots_in_its_name(folder: Path) -> None:
    also_named(folder, "rephrase-qwen2.5-7b", "rephrase-qwen2.5-7b.002", "rephrase-qwen2.5-72b")
    stores = open_stores(folder)
    assert stores.sets == ("generations", "rephrase-qwen2.5-72b", "rephrase-qwen2.5-7b")
    chosen = stores.only(["rephrase-qwen2.5-7b"]).generations
    assert [store.folder.name for store in chosen] == ["rephrase-qwen2.5-7b", "rephrase-qwen2.5-7b.002"]


def test_a_plan_tells_where_other_sets_once_stood_between_segments(folder: Path) -> None:
    also_named(folder, "generations.002")
    settings = {"stores": str(folder), **SMALL}
    beside = SimpleStream(generations=2 * GENERATIONS, **settings).plan
    assert "segments" not in beside.settings
    also_named(folder, "generations-b")
    assert SimpleStream(generations=2 * GENERATIONS, **settings).plan.fingerprint == beside.fingerprint
    between = SimpleStream(generations=3 * GENERATIONS, **settings).plan
    assert between.settings["segments"] == "set by set"
    chosen = SimpleStream(generations=3 * GENERATIONS, sets=["generations", "generations-b"], **settings).plan
    assert "segments" not in chosen.settings


def test_chunks_of_another_tokenizer_are_not_read_as_text(data_set: DataSet, folder: Path, tmp_path: Path) -> None:
    """As where a copy of stores that were tokenized again was interrupted."""
    train_bpe(data_set.corpus.texts(TRAIN), 280, tmp_path / "other")
    rows = real_rows(data_set.corpus, TRAIN)
    build_store(tmp_path / "real", "real", rows, Tokenizer(str(tmp_path / "other")), {})
    for path in (tmp_path / "real").glob("*.bin"):
        shutil.copy(path, folder / "real")
    with pytest.raises(UserError, match=r"real holds [\d,]+ tokens, not [\d,]+: copy or build the store again"):
        open_stores(folder)


@pytest.mark.parametrize("name", ["real", "generations", "validation"])
def test_chunks_that_do_not_belong_to_their_items_are_not_read_as_text(folder: Path, name: str) -> None:
    """The ids would stand beside the texts of others."""
    path = folder / name / "items.parquet"
    table = pq.read_table(path)
    counts = table["tokens"].to_numpy().copy()
    other = int(np.flatnonzero(counts != counts[0])[0])
    counts[[0, other]] = counts[[other, 0]]
    pq.write_table(table.set_column(table.column_names.index("tokens"), "tokens", pa.array(counts)), path)
    with pytest.raises(UserError, match=rf"{name} holds chunks that do not belong to its items.parquet: copy or"):
        _ = RealStream(stores=str(folder), **SMALL).plan
