"""The corpus: unique, split by id, whole or not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from data_sets import make_rows, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from megalit.cli.prepare import ensure_corpus
from megalit.corpus.build import CorpusSettings, build_corpus, input_now, input_state, validation_split
from megalit.corpus.tables import TRAIN, VALIDATION, Corpus
from megalit.errors import UserError


def build(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> Corpus:
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    return build_corpus(CorpusSettings([str(path)], **{"validation_fraction": 0.3, **settings}), tmp_path / "corpus")


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_only_adds_to_the_validation_set(name: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    if validation_split(name, small) == VALIDATION:
        assert validation_split(name, large) == VALIDATION


def test_the_split_has_the_share_that_was_asked_for() -> None:
    held_out = sum(validation_split(f"document {n}", 0.05) == VALIDATION for n in range(20_000))
    assert 0.045 < held_out / 20_000 < 0.055


def test_what_is_made_from_a_held_out_document_is_held_out(tmp_path: Path) -> None:
    corpus = build(tmp_path, make_rows(40))
    split = {row["id"]: s for s in (TRAIN, VALIDATION) for row in corpus.rows("documents", s)}
    assert set(split.values()) == {TRAIN, VALIDATION}
    for table in ("generations", "thoughts"):
        for side in (TRAIN, VALIDATION):
            rows = list(corpus.rows(table, side))
            assert rows
            assert all(split[row["document_id"]] == side for row in rows)


def test_a_group_is_held_out_together(tmp_path: Path) -> None:
    rows = [{"id": f"{book}:{n}", "text": f"{book} {n}"} for book in "abcdefghijklmnopqrst" for n in range(5)]
    corpus = build(tmp_path, rows, validation_group="^(.*):")
    books = {side: {row["id"].split(":")[0] for row in corpus.rows("documents", side)} for side in (TRAIN, VALIDATION)}
    assert all(books.values())
    assert not books[TRAIN] & books[VALIDATION]


def test_exact_duplicates_go_with_all_that_belongs_to_them(tmp_path: Path) -> None:
    rows = make_rows(30)
    copy = {**rows[3], "id": "copy"}
    corpus = build(tmp_path, [*rows, copy])
    assert corpus.manifest["duplicates_removed"] == 1
    for table, column in (("documents", "id"), ("generations", "document_id"), ("thoughts", "document_id")):
        names = {row[column] for side in (TRAIN, VALIDATION) for row in corpus.rows(table, side)}
        assert "copy" not in names
        assert names


def test_what_goes_with_exact_duplicates_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row for each generation, as many data sets have it, keeps one generation of each document."""
    rows = [
        {"id": f"{n}-{g}", "text": f"text {n}", "generations": [{"style": "s", "text": f"version {g} of {n}"}]}
        for n in range(40)
        for g in range(4)
    ]
    settings = CorpusSettings([str(write_jsonl(tmp_path / "d.jsonl", rows))], 0.3)
    manifest = ensure_corpus(settings, tmp_path / "corpus").manifest
    assert (manifest["duplicates_removed"], manifest["generations"]) == (120, 40)
    assert (manifest["generations_removed"], manifest["thoughts_removed"]) == (120, 0)
    said = capsys.readouterr().err
    assert "120 exact duplicates removed with 120 generations and 0 thoughts (to keep them, put all" in said


def test_duplicates_that_nothing_belongs_to_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": str(n), "text": f"text {n % 40}"} for n in range(60)]
    ensure_corpus(CorpusSettings([str(write_jsonl(tmp_path / "d.jsonl", rows))], 0.3), tmp_path / "corpus")
    assert capsys.readouterr().err.endswith("20 exact duplicates removed\n")


def test_inputs_that_share_ids_are_refused_or_prefixed(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", make_rows(10, seed=1))
    second = write_jsonl(tmp_path / "b.jsonl", make_rows(10, seed=2))
    settings = CorpusSettings([str(first), str(second)], validation_fraction=0.3)
    with pytest.raises(UserError, match=r"b.jsonl line 1 repeats the id 'document-0' of .*a.jsonl line 1"):
        build_corpus(settings, tmp_path / "c")
    assert not list(tmp_path.glob("*c*/")), "nothing half-written"
    prefixed = build_corpus(CorpusSettings([str(first), str(second)], 0.3, prefix_ids=True), tmp_path / "c")
    rows = [row for side in (TRAIN, VALIDATION) for row in prefixed.rows("documents", side)]
    assert {row["id"] for row in rows} == {f"{source}/document-{n}" for source in "ab" for n in range(10)}
    assert {row["source"] for row in rows} == {"a", "b"}


@pytest.mark.parametrize(
    ("prefix_ids", "remedy"), [(True, "rename a file$"), (False, "rename a file and set prefix_ids$")]
)
def test_a_prefix_does_not_tell_inputs_of_one_name_apart(prefix_ids: bool, remedy: str, tmp_path: Path) -> None:
    for seed, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "docs.jsonl", make_rows(10, seed=seed))
    inputs = [str(tmp_path / folder / "docs.jsonl") for folder in "ab"]
    with pytest.raises(UserError, match=f"a/docs.jsonl and .*b/docs.jsonl have one name, {remedy}"):
        build_corpus(CorpusSettings(inputs, 0.3, prefix_ids=prefix_ids), tmp_path / "c")


def test_a_prefix_is_not_advised_where_it_is_set(tmp_path: Path) -> None:
    row = {"id": "a", "text": "x"}
    with pytest.raises(UserError, match="make ids unique$"):
        build(tmp_path, [row, row], prefix_ids=True)


@pytest.mark.parametrize(
    ("documents", "settings", "message"),
    [
        (0, {}, "the corpus is empty"),
        (3, {"validation_fraction": 0.999999}, "all 3 documents are held out"),
        (3, {"validation_fraction": 0.000001}, "no document of 3 is held out"),
        (3, {"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        (3, {"validation_group": "("}, "no regular expression"),
    ],
)
def test_what_cannot_work_leaves_nothing(
    documents: int, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path, make_rows(documents), **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_killed_build_leaves_no_corpus_and_the_next_one_clears_up(tmp_path: Path) -> None:
    """The input is a pipe that stays open, so the build is killed while it reads."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    code = "import sys; from megalit.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "corpus", "--inputs", "[pipe.jsonl]", "--output", "corpus"]
    victim = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with (tmp_path / "pipe.jsonl").open("w") as pipe:
        pipe.write('{"id": "a", "text": "x"}\n')
        pipe.flush()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".corpus.building-*")):
            assert time.monotonic() < deadline
            assert victim.poll() is None
            time.sleep(0.01)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not (tmp_path / "corpus").exists()
    corpus = build(tmp_path, make_rows(10))
    assert corpus.manifest["documents"]
    assert not list(tmp_path.glob(".corpus.building-*"))


def test_a_folder_of_texts_that_has_changed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one")
    before = input_state(str(tmp_path / "texts"))
    assert input_state(str(tmp_path / "texts")) == before
    (tmp_path / "texts" / "b.txt").write_text("two")
    assert input_state(str(tmp_path / "texts")) != before


def test_an_input_is_told_apart_by_what_it_says_not_by_its_times(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", make_rows(20))
    corpus = build_corpus(CorpusSettings([str(tmp_path / "rows.jsonl")], 0.2), tmp_path / "corpus")
    [recorded] = corpus.manifest["inputs"]
    # A copy has the same text at another time.
    os.utime(tmp_path / "rows.jsonl", (1, 1))
    assert input_now(recorded) == {**recorded, **input_state(recorded["name"])} != recorded
    # Another text of the same length is another input, and so it is for a manifest that cannot tell.
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text.swapcase())
    assert input_now(recorded) is None
    assert input_now({key: value for key, value in recorded.items() if key != "content"}) is None
    # What is gone has not changed: the corpus has it all.
    (tmp_path / "rows.jsonl").unlink()
    assert input_now(recorded) == recorded


def test_memory_is_bounded_by_the_text_of_a_group(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"{n} " + "x" * 1_000_000} for n in range(40)]
    corpus = build(tmp_path, rows, validation_fraction=0.1)
    sizes = [
        sum(len(row["text"]) for row in batch) for batch in Corpus.batches(corpus.folder / "documents.parquet", "train")
    ]
    assert len(sizes) >= 4
    assert max(sizes) < 10_000_000


def test_a_group_that_takes_no_part_in_the_match_groups_by_the_match(tmp_path: Path) -> None:
    assert build(tmp_path, make_rows(30), validation_group=r"^(x)?document-\d").manifest["documents"]
