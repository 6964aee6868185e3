"""Streams of latent thoughts know which thoughts are missing: those of documents that were long enough for them."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_sets import DataSet
from rich.console import Console

from megalit.cli.run_folder import first_difference
from megalit.cli.tables import plan_table
from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.corpus.tables import THOUGHTS, TRAIN, Corpus, TableWriter
from megalit.errors import UserError
from megalit.scaling.report.setting import flatten
from megalit.streams import LatentThoughtStream, MixtureStream
from megalit.streams.building import build_stores
from megalit.streams.inspection import mixture_lines
from megalit.streams.named import MixedStream
from megalit.streams.sources import GenerationSet
from megalit.synthesis.recipes.latent_thoughts import split_places

SPLITS = 8
SMALL: dict[str, Any] = {"context_length": 16, "global_batch": 4, "total_tokens": 640}

Keep = Callable[[str, int], bool]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Of twelve documents the first three are too short for eight thoughts."""
    texts = [" ".join(f"word{word}" for word in range(count)) for count in (1, 4, 6, *range(20, 29))]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n:02}", "text": text}) + "\n" for n, text in enumerate(texts)))
    return build_corpus(CorpusSettings(inputs=[str(path)], validation_fraction=0), tmp_path / "corpus")


@pytest.fixture
def build(corpus: Corpus, data_set: DataSet, tmp_path: Path) -> Callable[[Keep], Path]:
    """Stores with the thoughts of the recipe's places that are kept."""

    def stores(keep: Keep) -> Path:
        table = tmp_path / "generations.parquet"
        with TableWriter(table, THOUGHTS) as writer:
            for row in corpus.rows("documents", TRAIN):
                for index, place in enumerate(split_places(row["text"], SPLITS)):
                    if keep(row["id"], index):
                        own = {"document_id": row["id"], "content_hash": row["content_hash"], "split": TRAIN}
                        made = {"generation": index, "recipe": "thought", "character_offset": place, "text": "so it is"}
                        writer.write({**own, **made})
        made = GenerationSet("thoughts", "thoughts", table, {"recipe": "thought", "version": "v", "model": "m"})
        build_stores(corpus, [made], data_set.tokenizer, tmp_path / "stores")
        data_set.tokenizer.save(tmp_path / "stores" / "tokenizer")
        return tmp_path / "stores"

    return stores


def test_short_documents_lack_no_thought(build: Callable[[Keep], Path]) -> None:
    stores = build(lambda document, index: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = LatentThoughtStream(stores=str(stores), **SMALL).plan
    assert plan.settings["streams"][1]["generations"] == SPLITS
    assert plan.settings["streams"][1]["thoughts_per_document"] == round((0 + 3 + 5 + 9 * SPLITS) / 12, 3)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (lambda document, index: document != "d11", "document 'd11' has 0 of 8 thoughts"),
        (lambda document, index: document != "d02" or index < 4, "document 'd02' has 4 of 5 thoughts"),
        (lambda document, index: document != "d05" or index != 3, "document 'd05' has 7 of 8 thoughts"),
    ],
)
def test_thoughts_that_were_given_up_are_refused(build: Callable[[Keep], Path], keep: Keep, said: str) -> None:
    stores = str(build(keep))
    with pytest.raises(UserError, match=f"{said}, and all documents together .* set data.incomplete to accept"):
        _ = LatentThoughtStream(stores=stores, **SMALL).plan
    with pytest.raises(UserError, match=r"1 of 12 documents lack some"):
        _ = MixtureStream([MixedStream("latent_thoughts", 1.0)], stores=stores, **SMALL).plan


def test_a_mean_that_a_store_of_before_does_not_tell_is_no_other_plan(build: Callable[[Keep], Path]) -> None:
    """The same thoughts were read, whoever built the store."""
    stores = build(lambda document, index: True)
    plan = LatentThoughtStream(stores=str(stores), **SMALL).plan
    manifest = stores / "thoughts" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "places": None}))
    with pytest.warns(UserWarning, match="their store does not say"):
        before = LatentThoughtStream(stores=str(stores), **SMALL).plan
    assert "thoughts_per_document" not in before.settings["streams"][1]
    assert plan.fingerprint == before.fingerprint
    assert plan.first_difference(before.to_json()) is None


def test_accepted_they_are_counted(build: Callable[[Keep], Path]) -> None:
    """The plan says how many thoughts a document has beside how many it was to have."""
    stores = str(build(lambda document, index: index in (0, 7)))
    data = LatentThoughtStream(stores=stores, incomplete="accept", **SMALL)
    mean = (0 + 1 + 1 + 9 * 2) / 12
    assert data.plan.settings["streams"][1]["thoughts_per_document"] == round(mean, 3)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(plan_table(data.plan))
    said = f"{mean:.2f} thoughts a document on average, 2 at most"
    assert f"latent_thoughts: {said}" in shown.get()
    assert any(said in line for line in mixture_lines(data.mixture))
    other = MixtureStream([MixedStream("latent_thoughts", 1.0, incomplete="accept")], stores=stores, **SMALL)
    assert other.plan.streams[0].unique_tokens == data.plan.streams[1].unique_tokens


def test_a_part_of_the_documents_needs_its_own_thoughts_alone(build: Callable[[Keep], Path]) -> None:
    stores = str(build(lambda document, index: document != "d11"))
    fractions = [number / 12 for number in range(3, 13)]
    refused = []
    for fraction in fractions:
        data = LatentThoughtStream(stores=stores, real_fraction=fraction, **SMALL)
        try:
            _ = data.plan
            refused.append(False)
        except UserError:
            refused.append(True)
    assert refused == sorted(refused)
    assert set(refused) == {False, True}


def test_runs_on_stores_of_before_go_on(build: Callable[[Keep], Path]) -> None:
    """Their stores do not say what is missing, and their plans are what they were, to the letter."""
    stores = build(lambda document, index: document != "d05")
    manifest = stores / "thoughts" / "manifest.json"
    value = json.loads(manifest.read_text())
    del value["places"]
    manifest.write_text(json.dumps(value))
    with pytest.warns(UserWarning, match=r"4 of 12 documents have fewer than 8 thoughts, and the mean is 6"):
        plan = LatentThoughtStream(stores=str(stores), **SMALL).plan
    shares = {"shares": ["3/4"]}
    expected = {"kind": "LatentThoughts", "name": "latent_thoughts", "generations": SPLITS, **shares}
    assert plan.settings["streams"][1] == expected
    saved, asked = ({"data": {"init_args": {"a": 1, **more}}} for more in ({}, {"incomplete": "refuse"}))
    assert first_difference(saved, asked) is None
    assert flatten(saved) == flatten(asked)
