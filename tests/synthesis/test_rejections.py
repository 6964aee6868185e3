"""Generations that are rejected: tried again, given up, and the end of a run that makes nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
from data_sets import DataSet
from driving import Watched, run, table, work

from megalit.corpus.tables import Corpus
from megalit.errors import UserError
from megalit.synthesis import generating
from megalit.synthesis.cleaning import Cleaning
from megalit.synthesis.compaction import Compacted, compact
from megalit.synthesis.engines import Scripted, TooLongError
from megalit.synthesis.recipes import CritiqueAndRevise, Unconditional
from megalit.synthesis.requests import Completion, Request, Sampling
from megalit.synthesis.work import sources


@pytest.fixture
def corpus(data_set: DataSet) -> Corpus:
    return data_set.corpus


def test_a_rejected_attempt_is_tried_again_with_another_seed(corpus: Corpus, tmp_path: Path) -> None:
    engine = Watched(["{words}", "I cannot do that.", ""])
    cleaning = Cleaning(copy_threshold=None, min_words=3)
    counts = run(work(engine, cleaning=cleaning, attempts=4), corpus, tmp_path)
    assert set(counts.declined) == {"refusal", "empty"}
    assert counts.given_up > 0
    assert counts.accepted + counts.given_up == counts.total
    assert len(engine.asked) == len(set(engine.asked)) == counts.accepted + counts.declined.total()
    compacted = compact(work(cleaning=cleaning, attempts=4), corpus, tmp_path)
    assert compacted == Compacted(counts.accepted, counts.given_up, 0, dict(sorted(counts.declined.items())))
    assert max(row["attempt"] for row in table(tmp_path)) > 0
    # More tries take up where the last one ended.
    more = Watched(["{words}"])
    run(work(more, cleaning=cleaning, attempts=5), corpus, tmp_path)
    assert len(more.asked) == counts.given_up
    assert compact(work(cleaning=cleaning, attempts=5), corpus, tmp_path).given_up == 0


def test_a_review_is_not_judged_as_a_text(corpus: Corpus, tmp_path: Path) -> None:
    """It may well begin with "I cannot provide anything to mend", or be cut at the limit."""

    class Reviewer(Scripted):
        async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
            if request.step.startswith("critique"):
                return Completion("I cannot provide anything to mend", "length", 1, 1)
            return await super().complete(request, sampling, seed)

    of = work(Reviewer(), CritiqueAndRevise())
    counts = run(of, corpus, tmp_path)
    assert counts.accepted == counts.total
    compact(of, corpus, tmp_path)
    assert {row["cut"] for row in table(tmp_path)} == {False}, "its texts are whole"


def test_a_document_that_is_too_long_costs_its_own_generations(corpus: Corpus, tmp_path: Path) -> None:
    class Small(Scripted):
        async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
            if len(request.messages[-1].content) > 500:
                raise TooLongError("too long")
            return await super().complete(request, sampling, seed)

    counts = run(work(Small()), corpus, tmp_path)
    assert set(counts.declined) == {"too long for the model"}
    # Once, not as often as there are attempts.
    assert counts.declined.total() == counts.given_up
    assert 0 < counts.given_up < counts.total  # type: ignore[operator]


def test_samples_that_are_all_rejected_end_the_run(tmp_path: Path) -> None:
    of = work(Watched(["I cannot do that."]), Unconditional(), total_tokens=1000)
    with pytest.raises(UserError, match="samples in a row were given up .refusal."):
        run(of, None, tmp_path)


def test_generations_that_are_all_rejected_end_the_run(corpus: Corpus, tmp_path: Path) -> None:
    engine = Watched(["I cannot do that.", ""])
    of = work(engine, count=100, attempts=2)
    with pytest.raises(UserError, match=r"first 1,000 generations were given up \((refusal|empty) [\d,]+, ") as caught:
        run(of, corpus, tmp_path)
    assert "\n" not in str(caught.value)
    total = 100 * len(list(sources(corpus)))
    assert len(engine.asked) < 2 * (1000 + 2 * engine.in_flight) < 2 * total
    # Other settings begin anew.
    better = work(Watched(), count=100, attempts=2, sampling=Sampling(temperature=0.5))
    assert run(better, corpus, tmp_path).accepted == total


def test_rejections_after_good_generations_end_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that starts again may meet the documents first that no attempt helps."""
    monkeypatch.setattr(generating, "_ALL_REJECTED", 20)
    run(work(count=1), corpus, tmp_path)
    counts = run(work(Watched(["I cannot do that."]), count=3), corpus, tmp_path)
    assert counts.given_up > 20


def test_many_rejections_among_accepted_ones_end_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generating, "_ALL_REJECTED", 20)

    class Opened(Watched):
        """Its first completion is good."""

        async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
            is_first = not self.asked
            completion = await super().complete(request, sampling, seed)
            return completion if is_first else replace(completion, text="I cannot do that.")

    class Small(Watched):
        async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
            raise TooLongError("too long")

    for name, engine in (("rejected", Opened()), ("refused", Small())):
        counts = run(work(engine), corpus, tmp_path / name)
        assert counts.done == counts.total
        assert counts.given_up > 100
