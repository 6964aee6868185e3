"""Driving recipes: items in, requests to the engine, records to the journal.

Exactly once: every completion is in the journal before its recipe sees it, and every generation before it counts.
What was in flight when a process died is asked for again; what was finished never is.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from megalit.corpus.tables import TRAIN, Corpus
from megalit.errors import UserError
from megalit.files import lock
from megalit.synthesis.attempt import Trial
from megalit.synthesis.items import Generated, Item
from megalit.synthesis.journal import Accepted, Declined, Journal, Settings
from megalit.synthesis.samples import all_ended, ended, samples_to_begin
from megalit.synthesis.settings import made_otherwise
from megalit.synthesis.work import Counts, Shard, Work, document_items, sources

# How often what other processes have written is looked at, in seconds, and for what share of the time at most: all
# shards read what all have written, however many there are.
_LOOK_EVERY = 30.0
_LOOK_SHARE = 0.02
_TICK = 5.0
# Samples in a row of which none was accepted, after which a run up to a number of tokens is given up.
_HOPELESS = 200
# Generations given up where none was ever accepted, after which a process stops, whatever it makes: something is wrong
# with the recipe, sampling or cleaning, and going on to the corpus' end would cost as much as if it were not.
_ALL_REJECTED = 1000


class Generator:
    """One shard's work, from its journal to its journal.

    Args:
        work: what is to be made.
        corpus: the documents; None for a recipe that needs none.
        journal: the folder of the journal, shared by all shards.
        shard: which documents.
        progress: called with the counts whenever they change.
    """

    def __init__(
        self,
        work: Work,
        corpus: Corpus | None,
        journal: Path,
        shard: Shard | None = None,
        progress: Callable[[Counts], None] = lambda counts: None,
    ) -> None:
        self._work = work
        self._corpus = corpus
        self._journal = Journal(journal)
        self._shard = shard or Shard()
        self._progress = progress
        self._ledger = work.ledger(self._own_identities(), work.retry_refused)
        self._next_look = 0.0
        self._to_do: Iterator[Item] | None = None
        self._named = False
        self._in_vain = self._rejected = 0
        self._held = ExitStack()
        self._is_filling = False
        self.counts = Counts(self._total())

    def _total(self) -> int | None:
        if self._corpus is None:
            return None if self._work.total_tokens else len(range(self._shard.number, self._work.count, self._shard.of))
        documents = range(self._shard.number, self._corpus.manifest["documents"][TRAIN], self._shard.of)
        return len(documents) * len(self._work.recipe.indices(self._work.count))

    def _own_identities(self) -> set[bytes] | None:
        """What this shard makes, so that it need not remember what all others have made; None for one that makes all.

        How many samples are to come depends on those of all shards.
        """
        if self._corpus is None or self._shard.of == 1:
            return None
        items = document_items(self._work, sources(self._corpus, self._shard, texts=False))
        return {bytes.fromhex(self._work.identity(item)) for item in items}

    def has_work(self) -> bool:
        """Read the journal, and say whether anything of this shard is missing."""
        self._refresh()
        # The first reading was of all there is; what comes later is little.
        self._next_look = time.monotonic() + _LOOK_EVERY
        self.counts.before = 0
        if self._work.total_tokens is None:
            self._to_do = _if_any(self._missing(self._items()))
        else:
            mine = (index % self._shard.of == self._shard.number for index in self._ledger.sample_tokens)
            self.counts.before = sum(mine)
            self._to_do = self._more_samples()
        return self._to_do is not None

    def made_otherwise(self) -> list[str]:
        """What to tell of generations that are there and were made with other settings."""
        return made_otherwise(self._ledger, self._work.settings)

    def _more_samples(self) -> Iterator[Item] | None:
        """What is to be made next of samples up to a number of tokens; None if it is nothing, or others' part."""
        self._refresh()
        mine = _if_any(self._missing(samples_to_begin(self._work, self._ledger, self._shard)))
        if mine is not None or self._shard.of == 1:
            return mine
        over = ended(self._work, self._shard)
        if over not in self._ledger.ended:
            self._journal.write(over)
            self._ledger.ended.add(over)
        # Each shard's part ended where the average of its time said. The last one fills what is left between them.
        self._refresh()
        if not all_ended(self._work, self._ledger, self._shard.of) or not self._fills_alone():
            return None
        return _if_any(self._missing(samples_to_begin(self._work, self._ledger, self._shard, of_all=True)))

    def _fills_alone(self) -> bool:
        """Whether this process is to fill what is left, which no other one does at the same time."""
        if not self._is_filling:
            try:
                self._held.enter_context(lock(self._journal.folder / "last-part", busy="another shard fills it"))
            except UserError:
                return False
            self._is_filling = True
            self._refresh()
        return True

    async def run(self) -> Counts:
        """Make what is missing; where nothing is, the engine is not needed.

        Raises:
            UserError: the engine refuses, or is gone; what is finished is kept.
            OSError: the journal cannot be written.
        """
        if self._to_do is None:
            self.has_work()
        if self._to_do is None:
            return self.counts
        slots = asyncio.Semaphore(self._work.engine.in_flight)
        ticking = asyncio.create_task(self._tick())
        try:
            async with self._work.engine:
                self.counts.began = time.monotonic()
                try:
                    while self._to_do is not None:
                        async with asyncio.TaskGroup() as tasks:
                            for item in self._to_do:
                                await slots.acquire()
                                tasks.create_task(self._make(item)).add_done_callback(lambda _: slots.release())
                        self._to_do = None if self._work.total_tokens is None else self._more_samples()
                except BaseExceptionGroup as group:
                    raise _first(group) from None
                finally:
                    await self._journal.close()
                    self.counts.ended = time.monotonic()
        finally:
            ticking.cancel()
            self._held.close()
            self._is_filling = False
        return self.counts

    async def _tick(self) -> None:
        """Say that this process lives, also while nothing gets finished."""
        while True:
            await asyncio.sleep(_TICK)
            self._progress(self.counts)

    def _missing(self, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            if time.monotonic() > self._next_look:
                self._refresh()
            if self._ledger.is_done(self._work.identity(item)):
                self.counts.before += 1
                self._progress(self.counts)
            else:
                yield item

    def _items(self) -> Iterator[Item]:
        if self._corpus is not None:
            yield from document_items(self._work, sources(self._corpus, self._shard))
            return
        for index in range(self._shard.number, self._work.count, self._shard.of):
            yield Item(None, index)

    def _refresh(self) -> None:
        """Take in what other processes have written."""
        began = time.monotonic()
        self._ledger.add(self._journal.new_records())
        took = time.monotonic() - began
        self._next_look = began + took + max(_LOOK_EVERY, took / _LOOK_SHARE)

    async def _make(self, item: Item) -> None:
        work, counts = self._work, self.counts
        identity = work.identity(item)
        known = {key: self._journal.read(place) for key, place in self._ledger.completions(identity).items()}
        trial = Trial(work, self._journal, item, known)
        is_final = False
        while not trial.is_over:
            outcome = await trial.run()
            counts.prompt_tokens += trial.new_prompt_tokens
            counts.tokens += trial.new_tokens
            if isinstance(outcome, Generated):
                accepted = trial.accepted(outcome)
                await self._write(accepted)
                self._ledger.accept(accepted)
                counts.accepted += 1
                self._in_vain = 0
                self._progress(counts)
                return
            is_final = outcome.final
            # What an earlier process was told of counts no second time.
            if is_final or trial.is_new or trial.attempt >= self._ledger.next_attempt(identity):
                counts.declined[outcome.reason] += 1
                declined = trial.declined(outcome)
                await self._write(declined)
                self._ledger.decline(declined)
            self._progress(counts)
        counts.given_up += 1
        self._progress(counts)
        self._in_vain += 1
        # What is refused or unfit at once costs next to nothing, and documents may be in order of their lengths.
        self._rejected += not is_final
        self._stop_if_in_vain()

    def _stop_if_in_vain(self) -> None:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in self.counts.declined.most_common(3))
        if self._work.total_tokens is not None and self._in_vain >= _HOPELESS:
            raise UserError(
                f"{self._in_vain} samples in a row were given up ({reasons}): look at cleaning and sampling"
            )
        if not self._ledger.accepted and self._rejected >= _ALL_REJECTED:
            raise UserError(
                f"all of the first {self._rejected:,} generations were given up ({reasons}): look at cleaning, "
                "sampling and recipe"
            )

    async def _write(self, record: Accepted | Declined) -> None:
        if not self._named:
            # Once in each segment, before the first record that refers to them.
            self._named = True
            await self._journal.append(Settings(self._work.fingerprint, self._work.settings))
        await self._journal.append(record)


def _if_any(items: Iterator[Item]) -> Iterator[Item] | None:
    """The same items, or None where there is none."""
    first = next(items, None)
    return None if first is None else chain([first], items)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that stopped the others: what the user can mend, if there is such a one."""
    flat: list[BaseException] = []
    for error in group.exceptions:
        flat += [_first(error)] if isinstance(error, BaseExceptionGroup) else [error]
    return next((error for error in flat if isinstance(error, UserError | OSError)), flat[0])
