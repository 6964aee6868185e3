"""No model is measured, unsaid, on what it was trained on: runs of one corpus may hold out different documents."""

import json
from pathlib import Path

import pytest
from data_sets import make_rows, write_jsonl
from running import Run

from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.corpus.tables import TRAIN, VALIDATION, Corpus
from megalit.corpus.tokenizers import Tokenizer, train_bpe
from megalit.streams.building import build_stores


@pytest.fixture
def splits(run: Run, small: Path, tmp_path: Path) -> tuple[Corpus, Corpus]:
    """Runs ``few`` and ``many`` of one corpus, tokenizer and model, of which one holds out more than the other."""
    path = write_jsonl(tmp_path / "documents.jsonl", make_rows(60))
    corpora = []
    for name, fraction in (("few", 0.1), ("many", 0.4)):
        corpus = build_corpus(CorpusSettings([str(path)], validation_fraction=fraction), tmp_path / f"corpus-{name}")
        if not corpora:
            train_bpe(corpus.texts(TRAIN), 300, tmp_path / "tokenizer")
        build_stores(corpus, [], Tokenizer(str(tmp_path / "tokenizer")), tmp_path / f"stores-{name}")
        assert run("fit", "--config", small, "--run", name, "--data.stores", f"stores-{name}") == 0
        corpora.append(corpus)
    return corpora[0], corpora[1]


def ids(corpus: Corpus, split: str) -> set[str]:
    return {row["id"] for row in corpus.rows("documents", split, ["id"])}


def test_runs_that_hold_out_different_documents_are_measured_on_none_that_one_was_trained_on(
    splits: tuple[Corpus, Corpus], run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, many = splits
    seen = len(ids(few, TRAIN) & ids(many, VALIDATION))
    refusal = f"few was trained on {seen} of the documents of stores-many/validation"
    together = ["--ensemble", "probabilities", "--output", "both.json"]
    for refused in (
        ["ensemble", "--runs", "many", "few", "--output", "average.json"],
        ["evaluate", "--run", "many", "few", *together],
        ["evaluate", "--run", "few", "--suites", "{same: stores-many}"],
    ):
        capsys.readouterr()
        assert run(*refused) == 2
        assert refusal in capsys.readouterr().err.strip().splitlines()[-1]
    # Nor does a callback read one in training.
    checkpoint = str(max(Path("few/checkpoints").glob("*.ckpt")))
    for kind, models in (("Ensemble", {"members": ["many", "few"]}), ("SelfDistillation", {"teachers": [checkpoint]})):
        callbacks = json.dumps([{"class_path": kind, "init_args": models}])
        fit = ["fit", "--config", small, "--run", "new", "--trainer.callbacks", callbacks]
        assert run(*fit, "--data.stores", "stores-many") == 2
        assert f"was trained on {seen} of the documents of stores-many/validation" in capsys.readouterr().err
        assert not Path("new").exists()
    # What the one holds out the other holds out, too: splits by id nest.
    assert ids(few, VALIDATION) < ids(many, VALIDATION)
    assert run("ensemble", "--runs", "few", "many", "--output", "average.json") == 0
    assert run("evaluate", "--run", "few", "many", *together) == 0
    assert run("evaluate", "--run", "many", "--suites", "{same: stores-few}") == 0
    assert "was trained on" not in capsys.readouterr().err

    # A training store is measured when it is named, and said to be one.
    assert run("evaluate", "--run", "few", "--suites", "{train: stores-few/real}", "--context_lengths", "[]") == 0
    said = f"few was trained on {len(ids(few, TRAIN))} of the documents of stores-few/real, so its loss"
    assert said in capsys.readouterr().err
    # Of stores that are there in part, that are others by now, or that are gone, nothing is known.
    next(Path("stores-few/real").glob("*.bin")).unlink()
    assert run("ensemble", "--runs", "many", "few", "--output", "average.json") == 0
    Path("stores-few").rename("elsewhere")
    Path("stores-many").rename("stores-few")
    for name in ("few", "many"):
        assert run("evaluate", "--run", name, "--suites", "{same: stores-few/real}", "--context_lengths", "[]") == 0
    assert "was trained on" not in capsys.readouterr().err


def test_the_documents_of_all_streams_count_as_far_as_they_took_part(
    splits: tuple[Corpus, Corpus], run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, many = splits
    capsys.readouterr()
    parts = [{"order": "real", "share": 0.5}, {"order": "real", "share": 0.5, "name": "old", "stores": "stores-many"}]
    mixed = ["--data", "MixtureStream", "--data.streams", json.dumps(parts), "--data.stores", "stores-few"]
    lengths = ["--data.context_length", 32, "--data.global_batch", 4, "--data.total_tokens", 2000]
    model = ["--model.shape", "nano", "--trainer.accelerator", "cpu"]
    assert run("fit", *mixed, *lengths, *model, "--run", "mixed") == 0
    settings = ["--suites", "{train: stores-many/real}", "--context_lengths", "[]"]
    assert run("evaluate", "--run", "mixed", *settings) == 0
    assert f"mixed was trained on {len(ids(many, TRAIN))} of the documents" in capsys.readouterr().err
    assert run("evaluate", "--run", "mixed", "--suites", "{same: stores-many}") == 2
    seen = len(ids(few, TRAIN) & ids(many, VALIDATION))
    assert f"mixed was trained on {seen} of the documents of stores-many/validation" in capsys.readouterr().err

    subset = ["--data.real_fraction", 0.5, "--data.stores", "stores-many"]
    assert run("fit", "--config", small, *subset, "--run", "half") == 0
    assert run("evaluate", "--run", "half", *settings) == 0
    assert f"half was trained on {-(-len(ids(many, TRAIN)) // 2)} of the documents" in capsys.readouterr().err
