"""Rejections in generations of several requests: asked for again is what was rejected, and nothing else."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from data_sets import make_rows, write_jsonl
from driving import Watched, made, run, table, work

from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.corpus.tables import Corpus
from megalit.synthesis.compaction import compact
from megalit.synthesis.engines import EngineError
from megalit.synthesis.journal import Completed, Declined, Journal
from megalit.synthesis.recipes import CritiqueAndRevise, Rephrase
from megalit.synthesis.requests import Completion, Request, Sampling, request_key
from megalit.synthesis.work import Work, document_items, sources

REFUSAL = "I cannot do that."
PARTS = Rephrase(chunk_tokens=10)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Documents of one to twelve parts."""
    rows = [{"id": row["id"], "text": row["text"].replace(" ", ". ")} for row in make_rows(20)]
    for row in rows[:4]:
        row["text"] = row["text"][:40]
    settings = CorpusSettings([str(write_jsonl(tmp_path / "a.jsonl", rows))], 0)
    return build_corpus(settings, tmp_path / "corpus")


class Unwilling(Watched):
    """Declines a request as often as it is told to, or seldom by its seed."""

    def __init__(self, times: Callable[[Request], int] | None = None, fail_at: int | None = None) -> None:
        super().__init__(fail_at=fail_at)
        self.times = times
        self.requests: list[tuple[str, str]] = []

    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        completion = await super().complete(request, sampling, seed)
        asked = request.step, request.messages[-1].content
        self.requests.append(asked)
        declines = seed % 5 == 0 if self.times is None else self.requests.count(asked) <= self.times(request)
        return Completion(REFUSAL, "stop", 1, 4) if declines else completion


def parts_of(of: Work, corpus: Corpus) -> list[list[Request]]:
    """What the first step of each generation asks."""
    items = document_items(of, sources(corpus))
    return [list(next(of.recipe.run(item, of.engine.count_tokens))) for item in items]


def test_only_the_part_that_was_rejected_is_asked_for_again(corpus: Corpus, tmp_path: Path) -> None:
    engine = Unwilling(lambda request: 2 if request.chunk == 1 else 0)
    counts = run(work(engine, PARTS, count=1), corpus, tmp_path)
    parts = parts_of(work(recipe=PARTS, count=1), corpus)
    several = sum(len(requests) > 1 for requests in parts)
    assert several > 10
    assert len(engine.asked) == len(set(engine.asked)) == sum(map(len, parts)) + 2 * several
    assert counts.accepted == counts.total
    assert counts.declined == {"refusal": 2 * several}
    made(work(recipe=PARTS, count=1), corpus, tmp_path)
    assert Counter(row["attempt"] for row in table(tmp_path)) == {2: several, 0: len(parts) - several}


def test_long_documents_are_made_as_surely_as_short_ones(corpus: Corpus, tmp_path: Path) -> None:
    """A fifth of the completions is rejected: of three attempts at a whole document of ten parts, none would do."""
    counts = run(work(Unwilling(), PARTS, attempts=8), corpus, tmp_path)
    assert counts.accepted == counts.total


def test_each_request_of_several_steps_has_its_attempts(corpus: Corpus, tmp_path: Path) -> None:
    """Two of a draft and two of its revision are not four of a generation."""
    recipe = CritiqueAndRevise(chunk_tokens=10)
    engine = Unwilling(lambda request: 0 if request.step.startswith("critique") else 2)
    counts = run(work(engine, recipe, count=1), corpus, tmp_path)
    assert counts.accepted == counts.total
    steps = Counter(step for step, _ in engine.requests)
    parts = steps["critique 0"]
    assert steps == {"write": 3 * parts, "critique 0": parts, "revise 0": 3 * parts}
    assert (
        compact(work(recipe=recipe, count=1), corpus, tmp_path).declined
        == counts.declined
        == {"refusal": 4 * counts.total}
    )


def test_a_request_that_used_its_attempts_gives_the_generation_up(corpus: Corpus, tmp_path: Path) -> None:
    """And with more of them nothing but that request is asked for again."""
    engine = Unwilling(lambda request: 3 if request.chunk == 1 else 0)
    first = work(engine, PARTS, count=1)
    counts = run(first, corpus, tmp_path)
    several = sum(len(requests) > 1 for requests in parts_of(first, corpus))
    assert counts.given_up == several
    assert compact(first, corpus, tmp_path).declined == counts.declined == {"refusal": 3 * several}
    more = Unwilling(lambda request: 0)
    counts = run(work(more, PARTS, count=1, attempts=4), corpus, tmp_path)
    assert counts.accepted == several == len(more.asked)
    assert not counts.declined
    assert counts.tokens == 20 * several, "what others read and wrote is not this process's work"


def test_a_whole_that_is_rejected_is_made_anew(corpus: Corpus, tmp_path: Path) -> None:
    """Each part is fit, and all together they are a loop."""

    class Looping(Watched):
        async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
            await super().complete(request, sampling, seed)
            return Completion("one two three four five six seven eight nine ten. ", "stop", 1, 10)

    engine = Looping()
    counts = run(work(engine, PARTS, count=1), corpus, tmp_path)
    parts = [len(requests) for requests in parts_of(work(recipe=PARTS, count=1), corpus)]
    loops = [number for number in parts if number >= 5]
    assert counts.given_up == len(loops) > 5
    assert counts.declined == {"repetition": 3 * len(loops)}
    assert len(engine.asked) == len(set(engine.asked)) == sum(parts) + 2 * sum(loops)


@pytest.mark.parametrize("recipe", [PARTS, CritiqueAndRevise(chunk_tokens=10)])
def test_a_process_that_dies_keeps_the_good_parts(
    corpus: Corpus, tmp_path: Path, recipe: Rephrase | CritiqueAndRevise
) -> None:
    undisturbed = Unwilling()
    counts = run(work(undisturbed, recipe, attempts=8), corpus, tmp_path / "undisturbed")
    assert counts.accepted == counts.total
    asked: Counter[int] = Counter()
    declined: Counter[str] = Counter()
    for fail_at in (50, 100, 150, 200, None):
        engine = Unwilling(fail_at=fail_at)
        try:
            declined = run(work(engine, recipe, attempts=8), corpus, tmp_path / "a").declined
        except EngineError:
            assert fail_at is not None
        asked.update(engine.asked)
    assert set(asked) == set(undisturbed.asked)
    assert sum(asked.values()) - len(asked) <= 4 * Watched.in_flight
    assert declined["refusal"] < counts.declined["refusal"], "what was rejected before counts once"
    of = work(recipe=recipe, attempts=8)
    assert made(of, corpus, tmp_path / "a") == made(of, corpus, tmp_path / "undisturbed")
    assert compact(of, corpus, tmp_path / "a").declined == compact(of, corpus, tmp_path / "undisturbed").declined


def write_journal(of: Work, folder: Path, records: Sequence[Completed | Declined]) -> None:
    async def write() -> None:
        journal = Journal(folder / "journal")
        for record in records:
            await journal.append(record)
        await journal.close()

    asyncio.run(write())


def test_half_made_generations_of_earlier_versions_go_on(corpus: Corpus, tmp_path: Path) -> None:
    """They tried all requests again with the next number when one was rejected."""
    recipe = CritiqueAndRevise(chunk_tokens=None)
    of = work(recipe=recipe, count=1)
    records: list[Completed | Declined] = []
    for item in document_items(of, sources(corpus)):
        identity = of.identity(item)

        def completed(request: Request, number: int, text: str, identity: str = identity) -> Completed:
            return Completed(identity, request_key(request, number, of.request_settings), text, "stop", 1, 5)

        steps = recipe.run(item, of.engine.count_tokens)
        (write,) = next(steps)
        draft = Completion("A draft of some words or others.", "stop", 1, 5)
        (critique,) = steps.send([draft])
        declined = Declined(identity, 0, 0, "refusal", False, of.fingerprint, 1, 5)
        records += [completed(write, 0, REFUSAL), declined, completed(write, 1, draft.text)]
        records += [completed(critique, 1, "Say more.")]
    write_journal(of, tmp_path, records)
    engine = Unwilling(lambda request: 0)
    counts = run(work(engine, recipe, count=1), corpus, tmp_path)
    assert counts.accepted == counts.total
    assert not counts.declined
    assert {step for step, _ in engine.requests} == {"revise 0"}
    assert len(engine.asked) == counts.total
