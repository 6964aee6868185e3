"""Stores that are added to a folder change no run that does not read them."""

import shutil
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
import torch
from data_sets import GENERATIONS, DataSet

from megalit.corpus.tables import GENERATIONS as GENERATIONS_TABLE
from megalit.corpus.tables import TRAIN, TableWriter
from megalit.errors import UserError
from megalit.streams import LatentThoughtStream, MixtureStream, RealStream, SimpleStream, StitchedStream
from megalit.streams.building import build_stores
from megalit.streams.datamodule import StreamDataModule
from megalit.streams.loading import split
from megalit.streams.named import MixedStream
from megalit.streams.sources import GenerationSet, _new_rows
from megalit.streams.store import ITEMS
from megalit.synthesis.compaction import ORIGIN
from megalit.synthesis.recipes.token_noise import TokenNoise, generate_token_noise

SMALL: dict[str, Any] = {"context_length": 32, "global_batch": 4, "total_tokens": 32 * 4 * 10}


@pytest.fixture
def folder(data_set: DataSet, tmp_path: Path) -> Path:
    """Stores with one set of generations, and thoughts."""
    return Path(shutil.copytree(data_set.folder, tmp_path / "stores"))


def add_generations(
    data_set: DataSet,
    folder: Path,
    name: str = "noise",
    kind: Literal["generations", "samples"] = "generations",
    seed: int = 0,
) -> None:
    made = folder.parent / name
    generate_token_noise(TokenNoise(count=2, seed=seed), data_set.corpus, made)
    source = replace(GenerationSet.read(made), kind=kind)
    (added,) = build_stores(data_set.corpus, [source], data_set.tokenizer, folder)
    assert added.kind == kind


def windows(data: StreamDataModule) -> torch.Tensor:
    data.setup("validate")
    return split(data.train_dataloader().dataset[range(40)])["tokens"]


def state_of(data: StreamDataModule) -> dict[str, Any]:
    return {"consumed_samples": 8, "steps": 2, "plan": data.plan.to_json(), "fingerprint": data.plan.fingerprint}


@pytest.mark.parametrize(
    ("stream", "settings"),
    [
        (RealStream, {}),
        (LatentThoughtStream, {}),
        (SimpleStream, {"generations": GENERATIONS}),
        (StitchedStream, {"generations": 2}),
    ],
)
def test_more_generations_change_no_run_that_does_not_read_them(
    stream: Any, settings: dict[str, Any], data_set: DataSet, folder: Path
) -> None:
    before = stream(stores=str(folder), **SMALL, **settings)
    read, state = windows(before), state_of(before)
    add_generations(data_set, folder)
    after = stream(stores=str(folder), **SMALL, **settings)
    assert after.plan.fingerprint == before.plan.fingerprint
    assert torch.equal(windows(after), read)
    after.load_state_dict(state)


@pytest.mark.parametrize("settings", [{"draw": "drawn"}, {"generations": GENERATIONS + 1, "incomplete": "accept"}])
def test_a_run_that_would_read_them_is_refused(settings: dict[str, Any], data_set: DataSet, folder: Path) -> None:
    settings = {"generations": 2, **SMALL, **settings}
    state = state_of(StitchedStream(stores=str(folder), **settings))
    add_generations(data_set, folder)
    with pytest.raises(UserError, match=r"another data plan \(streams"):
        StitchedStream(stores=str(folder), **settings).load_state_dict(state)


def test_plans_that_name_all_stores_go_on(data_set: DataSet, folder: Path) -> None:
    """As those of earlier versions do; what they name has to be there as it was."""
    data = RealStream(stores=str(folder), **SMALL)
    state = state_of(data)
    state["plan"]["settings"]["stores"] = [dict(data.mixture.stores.contents)]
    state["fingerprint"] = "of an earlier version"
    assert len(data.plan.settings["stores"][0]) < len(data.mixture.stores.contents)
    data.load_state_dict(state)
    shutil.rmtree(folder / "thoughts")
    with pytest.raises(UserError, match=r"settings.stores\[0\].thoughts was .* and is None"):
        RealStream(stores=str(folder), **SMALL).load_state_dict(state)


def test_sets_that_take_part_are_named(data_set: DataSet, folder: Path) -> None:
    """Two sets in one folder do not mix unsaid, and a name says which is meant."""
    before = StitchedStream(stores=str(folder), generations=2, **SMALL)
    alone = windows(before)
    add_generations(data_set, folder)
    settings = {"stores": f"{folder}/", **SMALL}
    unsaid = StitchedStream(generations=2, **settings)
    with pytest.warns(UserWarning, match="reads the set generations of .* and not noise: data.sets names those"):
        assert torch.equal(windows(unsaid), alone)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(windows(StitchedStream(generations=2, sets=["generations"], **settings)), alone)
        _ = RealStream(**settings).plan
    noise = StitchedStream(generations=2, sets=["noise"], **settings)
    assert set(noise.plan.settings["stores"][0]) == {"real", "validation", "noise"}
    both = StitchedStream(generations=GENERATIONS + 2, **settings)
    with pytest.warns(UserWarning, match="reads the sets generations, noise of .*, in this order: data.sets names"):
        in_order = both.mixture
    turned = StitchedStream(generations=GENERATIONS + 2, sets=["noise", "generations"], **settings)
    first, other = in_order.streams[1].tables, turned.mixture.streams[1].tables
    assert first.generations.count.tolist() == other.generations.count.tolist()
    recipes = [tables.recipe(tables.generations.first) for tables in (first, other, noise.mixture.streams[1].tables)]
    assert recipes == ["easy", "token_noise", "token_noise"]
    begun = StitchedStream(generations=2, stores=str(folder), sets=["generations"], **SMALL)
    assert begun.plan.fingerprint == before.plan.fingerprint, "a run that has begun may be told"
    assert turned.plan.fingerprint != both.plan.fingerprint
    with pytest.raises(UserError, match="data.sets names 'nose' and .* holds generations, noise: mend the name"):
        _ = StitchedStream(sets=["nose"], **settings).plan


def test_a_set_that_is_named_and_gives_nothing_is_told(data_set: DataSet, folder: Path) -> None:
    """As where those before it have grown since."""
    add_generations(data_set, folder)
    settings = {"stores": str(folder), "sets": ["generations", "noise"], **SMALL}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _ = StitchedStream(generations=GENERATIONS + 1, **settings).plan
    with pytest.warns(UserWarning, match="data.sets names noise, of which no stream reads anything: raise data.gen"):
        _ = StitchedStream(generations=GENERATIONS, **settings).plan


def test_sets_of_a_folder_that_is_replayed_are_named(data_set: DataSet, folder: Path) -> None:
    """data.sets does not choose among them."""
    add_generations(data_set, folder)
    streams = [MixedStream("real", 0.5), MixedStream("simple", 0.5, generations=2, stores=str(folder))]
    data = MixtureStream(streams, stores=str(data_set.folder), sets=["generations"], **SMALL)
    with pytest.warns(UserWarning, match="generations of .* and not noise: its folder should hold only those that"):
        _ = data.plan


def test_the_order_of_sets_is_part_of_a_plan_where_it_is_not_that_of_their_names(
    data_set: DataSet, folder: Path
) -> None:
    """Generations and samples are read apart, so that no order between the two changes anything."""
    add_generations(data_set, folder, "a_sample", "samples", seed=1)
    add_generations(data_set, folder, "b_sample", "samples", seed=2)
    streams = [MixedStream("simple", 0.5, generations=2), MixedStream("samples", 0.5)]

    def fingerprint(*sets: str) -> str:
        data = MixtureStream(streams, stores=str(folder), sets=list(sets) or None, **SMALL)
        return data.plan.fingerprint

    with pytest.warns(UserWarning, match="reads the sets a_sample, b_sample"):
        unsaid = fingerprint()
    assert fingerprint("a_sample", "b_sample", "generations") == unsaid
    assert fingerprint("generations", "a_sample", "b_sample") == unsaid
    assert fingerprint("generations", "b_sample", "a_sample") != unsaid


def test_a_folder_is_the_same_however_it_is_spelled(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_set.folder.parent)
    settings: dict[str, Any] = {"context_length": 32, "global_batch": 4, "real_epochs": 1}
    (tmp_path / "link").symlink_to(data_set.folder)
    streams = [
        MixedStream("real", 0.5, stores=f"{tmp_path}/link"),
        MixedStream("simple", 0.5, generations=2, stores=f"{data_set.folder.name}/"),
    ]
    mixture = MixtureStream(streams, stores=str(data_set.folder), **settings).mixture
    assert len(mixture.plan.settings["stores"]) == 1


def test_generations_that_are_known_take_little_room(data_set: DataSet, tmp_path: Path) -> None:
    """Of a set that has grown there may be hundreds of millions."""
    count = 30_000
    with TableWriter(tmp_path / "items.parquet", ITEMS) as items:
        for number in range(count):
            items.write({"document_id": f"document-{number // 4}", "generation": number % 4, "settings": "a"})
    with TableWriter(tmp_path / "generations.parquet", pa.schema([*GENERATIONS_TABLE, *ORIGIN])) as table:
        for document in ("document-7", "new"):
            table.write({"document_id": document, "generation": 0, "settings": "a", "split": TRAIN, "text": "b"})
    made = GenerationSet("set", "generations", tmp_path / "generations.parquet", {})
    tracemalloc.start()
    rows = _new_rows(made, [tmp_path])
    (new,) = next(rows)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert new["document_id"] == "new"
    assert taken < 40 * count
