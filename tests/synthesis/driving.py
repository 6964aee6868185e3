"""A scripted engine that is watched, and the work that it is driven with."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megalit.corpus.tables import TRAIN, Corpus
from megalit.synthesis.cleaning import Cleaning
from megalit.synthesis.compaction import TABLE, compact
from megalit.synthesis.engines import EngineError, Scripted
from megalit.synthesis.generating import Generator
from megalit.synthesis.items import Recipe
from megalit.synthesis.recipes import Rephrase
from megalit.synthesis.requests import Completion, Request, Sampling
from megalit.synthesis.work import Counts, Shard, Work


class Watched(Scripted):
    """Remembers what it was asked, and fails when it is told to."""

    def __init__(self, texts: Sequence[str] = ("{words}",), fail_at: int | None = None) -> None:
        super().__init__(texts)
        self.asked: list[int] = []
        self.fail_at = fail_at

    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        if self.fail_at is not None and len(self.asked) >= self.fail_at:
            raise EngineError("the engine is gone")
        self.asked.append(seed)
        return await super().complete(request, sampling, seed)


def work(engine: Scripted | None = None, recipe: Recipe | None = None, count: int = 3, **settings: Any) -> Work:
    cleaning = settings.pop("cleaning", Cleaning(copy_threshold=None))
    sampling = settings.pop("sampling", Sampling())
    return Work(recipe or Rephrase(), engine or Watched(), sampling, cleaning, count, **settings)


def run(of: Work, corpus: Corpus | None, folder: Path, shard: str = "0/1") -> Counts:
    return asyncio.run(Generator(of, corpus, folder / "journal", Shard.parse(shard)).run())


def table(folder: Path) -> list[dict[str, Any]]:
    return [row for batch in Corpus.batches(folder / TABLE, TRAIN) for row in batch]


def made(of: Work, corpus: Corpus | None, folder: Path) -> bytes:
    """The table, which must be complete."""
    assert compact(of, corpus, folder).missing == 0
    return (folder / TABLE).read_bytes()
