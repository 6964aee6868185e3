"""``megalit generate`` on a finished folder with another corpus, and with other settings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_sets import make_rows, write_jsonl
from running import Run

from megalit.synthesis import compaction

CONFIG = """
corpus: first
output: out
generations: 2
recipe: Rephrase
engine: {class_path: Scripted}
cleaning: {copy_threshold: null}
"""
GENERATE = ("generate", "--config", "generate.yaml")
DOCUMENTS = [{key: row[key] for key in ("id", "text")} for row in make_rows(20)]

MakeCorpus = Callable[..., None]


@pytest.fixture
def make_corpus(run: Run) -> MakeCorpus:
    def make(name: str, documents: Sequence[dict[str, Any]], held_out: float = 0.0) -> None:
        inputs = write_jsonl(Path(f"{name}.jsonl"), list(documents))
        arguments = ["--inputs", f"[{inputs}]", "--output", name, "--validation_fraction", str(held_out)]
        assert run("corpus", *arguments) == 0

    return make


@pytest.fixture
def finished(make_corpus: MakeCorpus, run: Run, capsys: pytest.CaptureFixture[str]) -> bytes:
    """The table of two generations of each of ten documents."""
    Path("generate.yaml").write_text(CONFIG)
    make_corpus("first", DOCUMENTS[:10])
    assert run(*GENERATE) == 0
    capsys.readouterr()
    return Path("out/generations.parquet").read_bytes()


def made_of() -> list[str]:
    ids: list[str] = pq.read_table("out/generations.parquet", columns=["document_id"]).column(0).to_pylist()
    return sorted(set(ids))


def ids(documents: Sequence[dict[str, Any]]) -> list[str]:
    return sorted(row["id"] for row in documents)


def completions() -> int:
    return sum(path.read_text().count('"kind":"completed"') for path in Path("out/journal").glob("*.jsonl"))


CHANGED = {
    "another": (DOCUMENTS[10:], "20 generations of 10 documents"),
    "smaller": (DOCUMENTS[2:15], "4 generations of 2 documents"),
    "edited": ([{**DOCUMENTS[0], "text": "Another text."}, *DOCUMENTS[1:10]], "2 generations of 1 documents"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_corpus_without_the_tables_documents_is_refused(
    finished: bytes, make_corpus: MakeCorpus, run: Run, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    documents, what = CHANGED[name]
    make_corpus(name, documents)
    capsys.readouterr()
    before = completions()
    assert run(*GENERATE, "--corpus", name) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert f"out holds {what} that {name} does not have, or has with another text ('document-" in said
    assert "name the corpus that they were made of, or another output; --drop_absent takes them out" in said
    assert Path("out/generations.parquet").read_bytes() == finished
    assert completions() == before


def test_documents_that_are_gone_on_purpose_may_go(
    finished: bytes, make_corpus: MakeCorpus, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus("smaller", DOCUMENTS[2:10])
    capsys.readouterr()
    before = completions()
    assert run(*GENERATE, "--corpus", "smaller", "--drop_absent") == 0
    assert "the journal keeps them: 4 of documents that smaller does not have" in capsys.readouterr().err
    assert made_of() == ids(DOCUMENTS[2:10])
    assert run(*GENERATE, "--corpus", "smaller") == 0
    # They come back without being made again.
    assert run(*GENERATE) == 0
    assert Path("out/generations.parquet").read_bytes() == finished
    assert completions() == before


def test_a_table_that_was_being_written_still_counts(
    finished: bytes, make_corpus: MakeCorpus, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A larger table takes minutes; a process that is killed then leaves what was there, without its manifest."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "write_atomic", killed)
        assert run(*GENERATE, "--generations", "3") == 130
    assert not Path("out/manifest.json").exists()
    make_corpus("another", DOCUMENTS[10:])
    capsys.readouterr()
    assert run(*GENERATE, "--corpus", "another") == 2
    assert "out holds 20 generations of 10 documents that another does not have" in capsys.readouterr().err
    assert run(*GENERATE, "--generations", "1") == 2
    assert "holds 2 generations of each document, and 1 are asked for" in capsys.readouterr().err
    assert run(*GENERATE, "--generations", "3") == 0
    assert Path("out/manifest.json").exists()
    assert not list(Path("out").glob("*former*"))


def test_a_corpus_that_has_grown_goes_on(
    finished: bytes, make_corpus: MakeCorpus, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus("larger", DOCUMENTS)
    capsys.readouterr()
    before = completions()
    assert run(*GENERATE, "--corpus", "larger") == 0
    assert "leave the table" not in capsys.readouterr().err
    assert made_of() == ids(DOCUMENTS)
    assert completions() == 2 * before


def test_documents_that_are_held_out_now_leave_and_are_said(
    finished: bytes, make_corpus: MakeCorpus, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus("divided", DOCUMENTS[:10], 0.5)
    rows = pq.read_table("divided/documents.parquet").to_pylist()
    training = sorted(row["id"] for row in rows if row["split"] == "train")
    out = 2 * (10 - len(training))
    assert out > 0
    capsys.readouterr()
    assert run(*GENERATE, "--corpus", "divided") == 0
    said = f"leave the table, and the journal keeps them: {out} of documents that divided holds out\n"
    assert said in capsys.readouterr().err
    assert made_of() == training


def test_other_settings_are_told_before_anything_is_made(
    finished: bytes, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    cooler = [*GENERATE, "--sampling.temperature", "0.3", "--cleaning.min_words", "4"]
    told = (
        "20 of 20 generations were made with other settings (sampling.temperature 1.0, now 0.3; cleaning.min_words 5, "
        "now 4): they stay; --redo makes them again\n"
    )
    assert run(*GENERATE) == 0
    assert "other settings" not in capsys.readouterr().err
    assert run(*cooler) == 0
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert "is finished" in said
    assert Path("out/generations.parquet").read_bytes() == finished
    # Before the time of a GPU is spent on it.
    assert run(*cooler, "--generations", "3") == 0
    assert capsys.readouterr().err.startswith(told + "loading scripted")
    assert run(*cooler, "--generations", "3") == 0
    assert capsys.readouterr().err.startswith(told.replace("20 of 20", "20 of 30"))
    assert run(*cooler, "--generations", "3", "--redo") == 0
    assert "other settings" not in capsys.readouterr().err
    # What was made again is there twice, and that of the settings of now stands.
    assert run(*cooler, "--generations", "3") == 0
    assert "other settings" not in capsys.readouterr().err
