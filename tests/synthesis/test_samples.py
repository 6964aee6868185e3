"""Samples up to a number of tokens: about so many are made in all, whenever the shards run."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megalit.corpus.tables import TRAIN, Corpus
from megalit.synthesis.cleaning import Cleaning
from megalit.synthesis.compaction import TABLE, compact
from megalit.synthesis.engines import EngineError, Scripted
from megalit.synthesis.generating import Generator
from megalit.synthesis.journal import Journal
from megalit.synthesis.recipes import Unconditional
from megalit.synthesis.requests import Completion, Request, Sampling
from megalit.synthesis.samples import ended
from megalit.synthesis.work import Counts, Shard, Work

TOTAL = 40_000
LONGEST = 400


class Uneven(Scripted):
    """Samples of a few and of many tokens; the short ones are finished first, as with a model."""

    in_flight = 1024

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.made = 0
        self.fail_at = fail_at

    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        tokens = min(LONGEST, int(random.Random(seed).expovariate(1 / 100)) + 5)
        for _ in range(tokens):
            await asyncio.sleep(0)
        if self.fail_at is not None and self.made >= self.fail_at:
            raise EngineError("the engine is gone")
        self.made += 1
        return Completion(" ".join(f"{seed}{n}" for n in range(tokens)), "stop", 1, tokens)


def work(engine: Scripted | None = None, total_tokens: int = TOTAL, longest: int = LONGEST) -> Work:
    cleaning = Cleaning(copy_threshold=None, min_words=1)
    sampling = Sampling(max_tokens=longest)
    return Work(Unconditional(), engine or Uneven(), sampling, cleaning, 1, total_tokens=total_tokens)


def shards(folder: Path, names: Sequence[str], **settings: Any) -> int:
    """Run shards at the same time; give the tokens that they made."""

    async def together() -> list[Counts]:
        running = [Generator(work(**settings), None, folder / "journal", Shard.parse(name)).run() for name in names]
        return await asyncio.gather(*running)

    return sum(counts.tokens for counts in asyncio.run(together()))


def table(folder: Path, total_tokens: int = TOTAL, longest: int = LONGEST) -> list[int]:
    """Tokens of each sample in the table, which must be complete."""
    assert compact(work(total_tokens=total_tokens, longest=longest), None, folder).missing == 0
    rows = [row for batch in Corpus.batches(folder / TABLE, TRAIN) for row in batch]
    assert [row["generation"] for row in rows] == list(range(len(rows)))
    tokens = [row["tokens"] for row in rows]
    assert sum(tokens[:-1]) < total_tokens <= sum(tokens)
    return tokens


ORDERS = {
    "one": [["0/1"]],
    "one behind the other": [[f"{n}/8"] for n in range(8)],
    "backwards": [[f"{n}/8"] for n in reversed(range(8))],
    "two at a time": [["0/8", "1/8"], ["2/8", "3/8"], ["4/8", "5/8"], ["6/8", "7/8"]],
    "all at once": [[f"{n}/8" for n in range(8)]],
    "many small ones": [[f"{n}/64" for n in range(first, first + 8)] for first in range(0, 64, 8)],
    "another division": [["1/3"], ["0/3"], ["0/2", "1/2"]],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("longest", [LONGEST, 10 * LONGEST])
def test_about_the_total_is_made_in_all(order: list[list[str]], longest: int, tmp_path: Path) -> None:
    tokens = sum(shards(tmp_path, together, longest=longest) for together in order)
    # Each shard's last sample may be one too many, of those that are at work at the same time.
    assert tokens < 1.2 * TOTAL
    whole = tmp_path / "whole"
    shards(whole, ["0/1"], longest=longest)
    assert table(tmp_path, longest=longest) == table(whole, longest=longest)


def test_a_shard_that_was_killed_makes_no_more_than_its_part(tmp_path: Path) -> None:
    """What it had finished by then are the short ones, by which everything would look short."""
    engine = Uneven(fail_at=10)
    with pytest.raises(EngineError):
        asyncio.run(Generator(work(engine), None, tmp_path / "journal", Shard(0, 2)).run())
    assert shards(tmp_path, ["0/2"]) + shards(tmp_path, ["1/2"]) < 1.2 * TOTAL
    table(tmp_path)


def test_a_higher_total_adds_what_is_missing(tmp_path: Path) -> None:
    made = [sum(shards(tmp_path, [f"{n}/4"], total_tokens=total) for n in range(4)) for total in (TOTAL, 2 * TOTAL)]
    assert sum(made) < 2 * 1.2 * TOTAL
    table(tmp_path, 2 * TOTAL)
    assert shards(tmp_path, ["2/4"], total_tokens=2 * TOTAL) == 0


def test_what_is_left_between_shards_is_filled_by_one_of_them(tmp_path: Path) -> None:
    """Also where all are started again at once, after the one that was to fill it was lost."""
    journal = Journal(tmp_path / "journal")
    for number in range(4):
        journal.write(ended(work(), Shard(number, 4)))
    generators = [Generator(work(), None, tmp_path / "journal", Shard(number, 4)) for number in range(4)]
    asyncio.run(generators[0].run())
    assert generators[0].counts.tokens >= TOTAL
    assert not any(generator.has_work() for generator in generators[1:])
    assert sum(table(tmp_path)) >= TOTAL


def test_two_shards_do_not_fill_it_at_once(tmp_path: Path) -> None:
    made = shards(tmp_path, [f"{number}/4" for number in range(4)])
    assert made < 1.2 * TOTAL
    again = [Generator(work(total_tokens=2 * TOTAL), None, tmp_path / "journal", Shard(n, 4)) for n in range(2)]
    assert again[0]._fills_alone()
    assert not again[1]._fills_alone()
