"""Driving recipes with a scripted engine: exactly once, whatever is asked for again."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from data_sets import DataSet, make_rows, write_jsonl
from driving import Watched, made, run, table, work

from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.corpus.tables import TRAIN, Corpus
from megalit.errors import UserError
from megalit.synthesis import generating
from megalit.synthesis.cleaning import Cleaning
from megalit.synthesis.compaction import TABLE, compact
from megalit.synthesis.engines import EngineError, Scripted
from megalit.synthesis.generating import Generator
from megalit.synthesis.journal import Completed, Journal
from megalit.synthesis.recipes import CritiqueAndRevise, LatentThoughts, TokenNoise, Unconditional
from megalit.synthesis.requests import Completion, Request, Sampling
from megalit.synthesis.work import Shard, document_items, sources


@pytest.fixture
def corpus(data_set: DataSet) -> Corpus:
    return data_set.corpus


def test_every_training_document_has_its_generations_in_order(corpus: Corpus, tmp_path: Path) -> None:
    engine = Watched()
    counts = run(work(engine), corpus, tmp_path)
    documents = {row["id"]: row["content_hash"] for row in corpus.rows("documents", TRAIN)}
    assert counts.total == counts.accepted == 3 * len(documents) == len(engine.asked)
    made(work(), corpus, tmp_path)
    rows = table(tmp_path)
    assert [(row["document_id"], row["generation"]) for row in rows] == [(d, n) for d in documents for n in range(3)]
    assert all(row["content_hash"] == documents[row["document_id"]] for row in rows)
    assert len({row["text"] for row in rows}) == len(rows)
    assert {row["recipe"] for row in rows} == {"rephrase"}


def test_what_is_finished_is_never_asked_for_again(corpus: Corpus, tmp_path: Path) -> None:
    first = Watched(fail_at=50)
    with pytest.raises(EngineError):
        run(work(first), corpus, tmp_path / "a")
    kept = sum(isinstance(record, Completed) for _, record in Journal(tmp_path / "a" / "journal").new_records())
    assert 0 < kept <= 50
    compacted = compact(work(), corpus, tmp_path / "a")
    assert compacted.missing
    assert not (tmp_path / "a" / TABLE).exists()
    second = Watched()
    counts = run(work(second), corpus, tmp_path / "a")
    assert len(second.asked) == counts.total - kept  # type: ignore[operator]
    third = Watched()
    run(work(third), corpus, tmp_path / "a")
    assert not third.asked
    run(work(), corpus, tmp_path / "b")
    assert made(work(), corpus, tmp_path / "a") == made(work(), corpus, tmp_path / "b")


def test_a_recipe_of_several_steps_goes_on_where_it_was(corpus: Corpus, tmp_path: Path) -> None:
    """The drafts that were written are reviewed; they are not written again."""
    recipe = CritiqueAndRevise(chunk_tokens=40)
    undisturbed = Watched()
    run(work(undisturbed, recipe), corpus, tmp_path / "undisturbed")
    asked: Counter[int] = Counter()
    for fail_at in (20, 60, 100, None):
        engine = Watched(fail_at=fail_at)
        try:
            run(work(engine, recipe), corpus, tmp_path / "a")
        except EngineError:
            assert fail_at is not None
        asked.update(engine.asked)
    # Only what was in flight is asked for again.
    assert set(asked) == set(undisturbed.asked)
    assert sum(asked.values()) - len(asked) <= 3 * Watched.in_flight
    assert made(work(recipe=recipe), corpus, tmp_path / "a") == made(
        work(recipe=recipe), corpus, tmp_path / "undisturbed"
    )


def test_more_generations_are_added_to_those_there_are(corpus: Corpus, tmp_path: Path) -> None:
    run(work(count=2), corpus, tmp_path)
    made(work(count=2), corpus, tmp_path)
    before = {(row["document_id"], row["generation"]): row["text"] for row in table(tmp_path)}
    engine = Watched()
    # Another setting of sampling, too, keeps what exists.
    warmer = Sampling(temperature=1.5)
    run(work(engine, count=5, sampling=warmer), corpus, tmp_path)
    assert len(engine.asked) == len(before) // 2 * 3
    made(work(count=5, sampling=warmer), corpus, tmp_path)
    rows = table(tmp_path)
    after = {(row["document_id"], row["generation"]): row["text"] for row in rows}
    assert {key: after[key] for key in before} == before
    settings = {row["generation"]: row["settings"] for row in rows}
    assert settings[0] == settings[1] != settings[2] == settings[4]


def test_redo_makes_again_what_was_made_with_other_settings(corpus: Corpus, tmp_path: Path) -> None:
    run(work(count=2), corpus, tmp_path)
    made(work(count=2), corpus, tmp_path)
    before = [row["text"] for row in table(tmp_path)]
    other = work(count=2, sampling=Sampling(seed=5), redo=True)
    run(other, corpus, tmp_path)
    made(other, corpus, tmp_path)
    rows = table(tmp_path)
    assert len({row["settings"] for row in rows}) == 1
    assert all(row["text"] != text for row, text in zip(rows, before, strict=True))


def test_what_was_made_again_stays_when_more_is_made_with_further_settings(corpus: Corpus, tmp_path: Path) -> None:
    for of in (work(count=2), work(count=2, sampling=Sampling(seed=5), redo=True)):
        run(of, corpus, tmp_path)
        made(of, corpus, tmp_path)
    before = [row for row in table(tmp_path) if row["generation"] < 2]
    more = work(count=3, sampling=Sampling(seed=6))
    run(more, corpus, tmp_path)
    made(more, corpus, tmp_path)
    assert [row for row in table(tmp_path) if row["generation"] < 2] == before


@pytest.mark.parametrize("divisions", [["0/3", "1/3", "2/3"], ["1/2", "0/1"], ["3/4", "0/2", "1/5", "0/1"]])
def test_any_division_into_shards_gives_the_same(corpus: Corpus, divisions: list[str], tmp_path: Path) -> None:
    run(work(), corpus, tmp_path / "whole")
    asked: list[int] = []
    for number, shard in enumerate(divisions):
        engine = Watched()
        run(work(engine), corpus, tmp_path / "shards", shard)
        asked += engine.asked
        left = compact(work(), corpus, tmp_path / "shards").missing
        assert (left == 0) == (number == len(divisions) - 1)
    assert len(asked) == len(set(asked))
    assert made(work(), corpus, tmp_path / "shards") == made(work(), corpus, tmp_path / "whole")


def test_a_generation_that_was_made_twice_stands_once(corpus: Corpus, tmp_path: Path) -> None:
    """As when two shards of different divisions run at the same time."""

    async def both() -> None:
        generators = [Generator(work(), corpus, tmp_path / "journal", Shard.parse(s)) for s in ("0/1", "1/2")]
        await asyncio.gather(*(generator.run() for generator in generators))

    asyncio.run(both())
    run(work(), corpus, tmp_path / "whole")
    assert made(work(), corpus, tmp_path) == made(work(), corpus, tmp_path / "whole")


def test_a_process_that_dies_between_attempts_does_not_start_over(corpus: Corpus, tmp_path: Path) -> None:
    def engine(fail_at: int | None = None) -> Watched:
        return Watched(["{words}", "I cannot do that."], fail_at)

    run(work(engine()), corpus, tmp_path / "undisturbed")
    asked: Counter[int] = Counter()
    for fail_at in (10, 30, 50, 70, None):
        part = engine(fail_at)
        try:
            run(work(part), corpus, tmp_path / "a")
        except EngineError:
            assert fail_at is not None
        asked.update(part.asked)
    assert sum(asked.values()) - len(asked) <= 4 * Watched.in_flight
    assert made(work(), corpus, tmp_path / "a") == made(work(), corpus, tmp_path / "undisturbed")


def test_thoughts_know_their_places(corpus: Corpus, tmp_path: Path) -> None:
    recipe = LatentThoughts(splits=3)
    counts = run(work(recipe=recipe), corpus, tmp_path)
    made(work(recipe=recipe), corpus, tmp_path)
    texts = {row["id"]: row["text"] for row in corpus.rows("documents", TRAIN)}
    rows = table(tmp_path)
    assert len(rows) == counts.accepted
    for row in rows:
        assert texts[row["document_id"]][row["character_offset"] - 1].isspace()
    assert len(rows) > 2 * len(texts)


def test_noise_stands_on_the_same_interface(corpus: Corpus, tmp_path: Path) -> None:
    engine = Watched()
    recipe = TokenNoise()
    cleaning = Cleaning(copy_threshold=None, min_words=1)
    run(work(engine, recipe, cleaning=cleaning), corpus, tmp_path)
    assert not engine.asked
    made(work(recipe=recipe, cleaning=cleaning), corpus, tmp_path)
    texts = {row["id"]: row["text"] for row in corpus.rows("documents", TRAIN)}
    assert all(
        row["text"] == recipe.generate(row["document_id"], texts[row["document_id"]], row["generation"])
        for row in table(tmp_path)
    )


@pytest.mark.parametrize("divisions", [["0/1"], ["0/2", "1/2"], ["1/3", "0/1"]])
def test_samples_are_drawn_up_to_a_number_of_tokens(divisions: list[str], tmp_path: Path) -> None:
    recipe = Unconditional()
    of = work(recipe=recipe, total_tokens=1000)
    for _ in range(3):  # a shard stops where the others are not yet; another round fills what is missing
        for shard in divisions:
            run(of, None, tmp_path, shard)
    made(of, None, tmp_path)
    rows = table(tmp_path)
    tokens = [row["tokens"] for row in rows]
    assert [row["generation"] for row in rows] == list(range(len(rows)))
    assert sum(tokens[:-1]) < 1000 <= sum(tokens)
    assert {row["document_id"] for row in rows} == {None}
    run(of, None, tmp_path / "whole")
    assert made(of, None, tmp_path / "whole") == made(of, None, tmp_path)
    number = work(recipe=recipe, count=7)
    run(number, None, tmp_path)
    made(number, None, tmp_path)
    assert len(table(tmp_path)) == 7


def test_new_documents_join_and_old_ones_go(tmp_path: Path) -> None:
    rows = make_rows(20)
    first = build_corpus(CorpusSettings([str(write_jsonl(tmp_path / "a.jsonl", rows[:15]))], 0), tmp_path / "first")
    second = build_corpus(CorpusSettings([str(write_jsonl(tmp_path / "b.jsonl", rows[5:]))], 0), tmp_path / "second")
    run(work(), first, tmp_path)
    engine = Watched()
    run(work(engine), second, tmp_path)
    assert len(engine.asked) == 5 * 3
    made(work(), second, tmp_path)
    assert {row["document_id"] for row in table(tmp_path)} == {row["id"] for row in rows[5:]}


def test_a_shard_without_work_needs_no_engine(corpus: Corpus, tmp_path: Path) -> None:
    class Expensive(Scripted):
        async def __aenter__(self) -> "Expensive":
            raise AssertionError("entered")

    run(work(), corpus, tmp_path, "0/2")
    counts = run(work(Expensive()), corpus, tmp_path, "0/2")
    assert counts.done == counts.before == counts.total


def test_a_shard_remembers_its_own_generations_alone(corpus: Corpus, tmp_path: Path) -> None:
    run(work(), corpus, tmp_path)
    generator = Generator(work(), corpus, tmp_path / "journal", Shard(1, 3))
    assert not generator.has_work()
    documents = len(list(sources(corpus)))
    done = [work().identity(item) for item in document_items(work(), sources(corpus))]
    assert sum(map(generator._ledger.is_done, done)) == 3 * len(range(1, documents, 3)) == generator.counts.before


def test_what_another_process_makes_meanwhile_is_not_asked_for(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another division that is started later helps the one that is at work."""
    monkeypatch.setattr(generating, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(generating, "_LOOK_SHARE", 1e9)

    class Helped(Watched):
        in_flight = 1

        async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
            if not self.asked:
                await asyncio.to_thread(run, work(), corpus, tmp_path)
            return await super().complete(request, sampling, seed)

    engine = Helped()
    counts = run(work(engine), corpus, tmp_path)
    # Its first, and what its loop had taken from the list while that one was being made.
    assert len(engine.asked) <= 2
    assert counts.done == counts.total


def test_what_changes_a_completion_stands_in_its_record(corpus: Corpus, tmp_path: Path) -> None:
    class Warm(Watched):
        settings = {"options": {"min_p": 0.1}}  # noqa: RUF012

    run(work(count=1), corpus, tmp_path)
    run(work(Warm(), count=2), corpus, tmp_path)
    made(work(Warm(), count=2), corpus, tmp_path)
    by_index = {row["generation"]: row["settings"] for row in table(tmp_path)}
    assert by_index[0] != by_index[1]


def test_an_unreadable_character_does_no_harm(corpus: Corpus, tmp_path: Path) -> None:
    run(work(Watched(["five words and a \ud800 surrogate"])), corpus, tmp_path)
    made(work(), corpus, tmp_path)
    assert table(tmp_path)[0]["text"] == "five words and a ? surrogate"


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/2", "a/b", "1/0", "0/1/2"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="give i/n"):
        Shard.parse(text)
