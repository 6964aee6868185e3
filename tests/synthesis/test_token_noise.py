"""Token noise: pure, at its rates, made of the document's own words."""

from pathlib import Path

import pytest
from data_sets import make_rows, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.corpus.tables import TRAIN, VALIDATION, Corpus
from megalit.errors import UserError
from megalit.synthesis.recipes.token_noise import TokenNoise, generate_token_noise

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(texts, st.integers(0, 3), st.floats(0, 0.99), st.floats(0, 0.99))
def test_noise_is_a_function_of_its_arguments_and_never_empty(
    text: str, index: int, deletion: float, substitution: float
) -> None:
    recipe = TokenNoise(deletion=deletion, substitution=substitution, seed=1)
    noisy = recipe.generate("id", text, index)
    assert noisy
    assert noisy == recipe.generate("id", text, index)
    assert set(noisy.split()) <= set(text.split())


@given(texts)
def test_without_noise_the_text_is_as_it_was(text: str) -> None:
    assert TokenNoise(deletion=0, substitution=0).generate("id", text, 0) == text


def test_rates_and_white_space() -> None:
    words = [f"w{n}" for n in range(20_000)]
    text = "\n".join(words)
    noisy = TokenNoise(deletion=0.2, substitution=0.1).generate("id", text, 0)
    assert len(noisy.split()) / len(words) == pytest.approx(0.8, abs=0.01)
    kept_in_place = len(set(noisy.split()) & set(words))
    assert kept_in_place < 0.8 * len(words)
    assert " " not in noisy
    substituted = TokenNoise(deletion=0, substitution=0.1).generate("id", text, 0).split("\n")
    assert sum(a != b for a, b in zip(words, substituted, strict=True)) / len(words) == pytest.approx(0.1, abs=0.01)


def test_siblings_documents_and_seeds_differ() -> None:
    text = " ".join(f"w{n}" for n in range(200))
    made = {TokenNoise(seed=seed).generate(name, text, index) for seed in (0, 1) for name in "ab" for index in range(4)}
    assert len(made) == 16


@pytest.mark.parametrize("settings", [{"deletion": 1.0}, {"substitution": -0.1}, {"count": 0}])
def test_settings_that_cannot_work(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        TokenNoise(**settings).check()  # type: ignore[arg-type]


def test_every_training_document_and_no_other_gets_its_generations(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", make_rows(30))
    corpus = build_corpus(CorpusSettings([str(path)], 0.3), tmp_path / "corpus")
    assert generate_token_noise(TokenNoise(count=3), corpus, tmp_path / "noise") > 0
    rows = [row for batch in Corpus.batches(tmp_path / "noise" / "generations.parquet", TRAIN) for row in batch]
    documents = {row["id"]: row["content_hash"] for row in corpus.rows("documents", TRAIN)}
    assert [(row["document_id"], row["generation"]) for row in rows] == [(d, n) for d in documents for n in range(3)]
    assert all(documents[row["document_id"]] == row["content_hash"] for row in rows)
    assert not list(Corpus.batches(tmp_path / "noise" / "generations.parquet", VALIDATION))
