"""What does not go together is refused or told: a replayed corpus and held-out documents, stores and a tokenizer."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_sets import DataSet, write_jsonl

from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.corpus.tokenizers import train_bpe
from megalit.errors import UserError
from megalit.streams import LatentThoughtStream, MixtureStream
from megalit.streams.building import build_stores
from megalit.streams.named import MixedStream
from megalit.streams.sizes import sizes_of_mixture

SMALL: dict[str, Any] = {"context_length": 16, "global_batch": 4, "total_tokens": 640}


@pytest.fixture
def without_tokenizer(data_set: DataSet, tmp_path: Path) -> Path:
    for store in data_set.folder.iterdir():
        if store.name != "tokenizer":
            (tmp_path / store.name).symlink_to(store)
    return tmp_path


def test_a_replayed_corpus_may_not_train_on_what_is_held_out(data_set: DataSet, tmp_path: Path) -> None:
    """The same documents under other names, by another share: of .1 some are in the .2 that are held out here."""
    for name, fraction in (("fewer", 0.1), ("more", 0.3)):
        path = write_jsonl(tmp_path / f"{name}.jsonl", list(data_set.rows.values()))
        corpus = build_corpus(CorpusSettings([str(path)], validation_fraction=fraction), tmp_path / name)
        build_stores(corpus, [], data_set.tokenizer, tmp_path / name / "stores")
    parts = [
        MixedStream("real", 0.5, stores=str(tmp_path / "more" / "stores"), name="replay"),
        MixedStream("real", 0.5),
    ]
    assert MixtureStream(parts, stores=str(data_set.folder), **SMALL).plan
    parts[0] = replace(parts[0], stores=str(tmp_path / "fewer" / "stores"))
    with pytest.raises(UserError, match=r"fewer/stores has \d documents that .* holds out: build both with the"):
        _ = MixtureStream(parts, stores=str(data_set.folder), **SMALL).plan


def test_other_versions_of_documents_that_are_held_out_are_told(data_set: DataSet, tmp_path: Path) -> None:
    rows = [{**row, "text": row["text"] + " more"} for row in data_set.rows.values()]
    path = write_jsonl(tmp_path / "later.jsonl", rows)
    for name in ("same", "prefixed"):
        settings = CorpusSettings([str(path)], validation_fraction=0, prefix_ids=name == "prefixed")
        build_stores(build_corpus(settings, tmp_path / name), [], data_set.tokenizer, tmp_path / name / "stores")

    def plan(name: str) -> None:
        parts = [MixedStream("real", 0.5), MixedStream("real", 0.5, stores=str(tmp_path / name / "stores"), name="old")]
        _ = MixtureStream(parts, stores=str(data_set.folder), **SMALL).plan

    assert data_set.stores.validation is not None
    held_out = data_set.stores.validation.manifest.items
    with pytest.warns(UserWarning, match=f"has {held_out} documents with the ids of others that"):
        plan("same")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan("prefixed")


def test_what_is_replayed_takes_room_too(data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGALIT_PLANS", str(tmp_path / "plans"))
    old = Path(shutil.copytree(data_set.folder, tmp_path / "old"))
    shutil.rmtree(old / "thoughts")
    parts = [MixedStream("real", 0.5, stores=str(old), name="old"), MixedStream("simple", 0.5, generations=2)]
    mixture = MixtureStream(parts, stores=str(data_set.folder), **SMALL).mixture
    sizes = sizes_of_mixture(mixture)
    files = [
        path for folder in (old, data_set.folder) for path in folder.glob("*/*") if path.parent.name != "tokenizer"
    ]
    assert (sizes.stores, sizes.store_files) == (sum(path.stat().st_size for path in files), len(files))
    arrays = sum(path.stat().st_size for path in (tmp_path / "plans").rglob("*.npy"))
    assert sizes.tables + sizes.epoch == arrays


def test_markers_are_encoded_with_the_tokenizer_of_the_stores(data_set: DataSet, without_tokenizer: Path) -> None:
    def plan(vocabulary_size: int) -> None:
        shutil.rmtree(without_tokenizer / "tokenizer", ignore_errors=True)
        train_bpe([" ".join(map(str, range(1000)))], vocabulary_size, without_tokenizer / "tokenizer")
        _ = LatentThoughtStream(stores=str(without_tokenizer), **SMALL).plan

    size = data_set.tokenizer.vocabulary_size
    with pytest.raises(UserError, match="is not the tokenizer that made the stores beside it: put that one back"):
        plan(size - 5)
    with pytest.warns(UserWarning, match="'<think>' may be other tokens"):
        plan(size)


def test_latent_thoughts_need_a_tokenizer_for_their_markers(without_tokenizer: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer to encode '<think>'"):
        _ = LatentThoughtStream(stores=str(without_tokenizer), **SMALL).plan
