"""The guard finds passages of the validation set, and does what it is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.corpus.contamination import ContaminationGuard, GuardSettings
from megalit.corpus.tables import TRAIN, VALIDATION, Corpus
from megalit.corpus.tokenizers import Tokenizer, train_bpe
from megalit.errors import UserError
from megalit.streams.building import build_stores
from megalit.streams.joining import join
from megalit.streams.pieces import Literals
from megalit.streams.store_set import open_stores

words = st.lists(st.sampled_from(["a", "bb", "Ccc", "dé", "e_1"]), min_size=0, max_size=40)


@given(words, words, st.integers(1, 5), st.sampled_from([" ", ", ", "\n-- "]))
def test_the_share_is_that_of_a_literal_count(train: list[str], held_out: list[str], length: int, between: str) -> None:
    """Case and punctuation do not count."""

    def grams(tokens: list[str]) -> list[tuple[str, ...]]:
        lower = [token.lower() for token in tokens]
        return [tuple(lower[i : i + length]) for i in range(len(lower) - length + 1)]

    known = set(grams(held_out))
    expected = np.mean([gram in known for gram in grams(train)]) if grams(train) else 0.0
    guard = ContaminationGuard(GuardSettings(length), [between.join(held_out)])
    assert guard.share(" ".join(train).upper()) == pytest.approx(expected)


def build(tmp_path: Path, **guard: Any) -> tuple[Corpus, Path]:
    """A corpus with one training document, and one generation of another, copied from a held-out document."""
    random = np.random.default_rng(0)

    def text() -> str:
        return " ".join(f"w{n}" for n in random.integers(10_000, size=60))

    rows = [{"id": str(n), "text": text(), "generations": [{"style": "s", "text": text()}]} for n in range(40)]
    probe = build_corpus(
        CorpusSettings([str(write_jsonl(tmp_path / "p.jsonl", rows))], 0.3, prefix_ids=False), tmp_path / "probe"
    )
    held_out = next(probe.texts(VALIDATION))
    train = [row["id"] for row in probe.rows("documents", TRAIN)]
    by_id = {row["id"]: row for row in rows}
    by_id[train[0]]["text"] = "Quoted: " + held_out
    by_id[train[1]]["generations"] = [{"style": "s", "text": held_out.upper()}]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    corpus = build_corpus(CorpusSettings([str(path)], 0.3), tmp_path / "corpus")
    train_bpe(corpus.texts(TRAIN), 300, tmp_path / "stores" / "tokenizer")
    tokenizer = Tokenizer(str(tmp_path / "stores" / "tokenizer"))
    build_stores(corpus, [], tokenizer, tmp_path / "stores", GuardSettings(**guard))
    return corpus, tmp_path / "stores"


def test_contamination_is_reported_and_kept_by_default(tmp_path: Path) -> None:
    corpus, folder = build(tmp_path)
    train = [row["id"] for row in corpus.rows("documents", TRAIN)]
    found = {
        name: json.loads((folder / name / "manifest.json").read_text())["contamination"]
        for name in ("real", "generations", "validation")
    }
    assert found["validation"] is None
    assert [name for name, _, _ in found["real"]["contaminated"]] == [train[0]]
    assert found["generations"]["contaminated"] == [[train[1], 0, 1.0]]
    assert open_stores(folder).real.manifest.items == len(train)


def test_what_is_dropped_goes_with_all_that_was_made_from_it(tmp_path: Path) -> None:
    corpus, folder = build(tmp_path, action="drop")
    train = [row["id"] for row in corpus.rows("documents", TRAIN)]
    stores = open_stores(folder)
    assert stores.real.items(["document_id"]).column(0).to_pylist() == train[1:]
    assert stores.generations[0].items(["document_id"]).column(0).to_pylist() == train[2:]
    tables = join(stores, Literals(0, 1))
    assert tables.documents == len(train) - 1


def test_a_build_can_stop_at_contamination(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="occur in the validation set"):
        build(tmp_path, action="stop")
    assert not (tmp_path / "stores" / "real").exists()


def test_settings_that_cannot_work() -> None:
    with pytest.raises(UserError, match="choose 0 or more words"):
        ContaminationGuard(GuardSettings(words=-1), [])
    with pytest.raises(UserError, match="threshold"):
        ContaminationGuard(GuardSettings(threshold=2), [])


def test_text_without_spaces_is_compared_by_characters() -> None:
    text = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"
    guard = ContaminationGuard(GuardSettings(13), [text])
    assert guard.share(f"前言。{text}") > 0.7
    assert guard.share(text[::-1]) == 0
    quoted = ContaminationGuard(GuardSettings(3), ["one two three four"])
    assert quoted.share("“one two”—three four") == 1
