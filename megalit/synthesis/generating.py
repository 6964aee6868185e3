"""Driving recipes: items in, requests to the engine, records to the journal.

Exactly once: every completion is in the journal before its recipe sees it, and every generation before it counts.
What was in flight when a process died is asked for again; what was finished never is.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from megalit.corpus.tables import TRAIN, Corpus
from megalit.errors import UserError
from megalit.files import fingerprint
from megalit.synthesis.cleaning import Cleaning
from megalit.synthesis.engines import Engine, TooLongError
from megalit.synthesis.items import Generated, Item, Outcome, Recipe, Rejected, Source
from megalit.synthesis.journal import Accepted, Completed, Declined, Journal, Record, Settings
from megalit.synthesis.ledger import Ledger
from megalit.synthesis.requests import Completion, Request, Sampling, request_key, request_seed

# How often what other shards have written is looked at, in seconds.
_REFRESH = 30.0
_TICK = 5.0
# Samples in a row of which none was accepted, after which a run up to a number of tokens is given up.
_HOPELESS = 200


@dataclass(frozen=True)
class Work:
    """What is to be made, and how.

    Attributes:
        recipe, engine, sampling, cleaning: who asks, who answers, how, and what is kept.
        count: generations of each document, or samples where nothing else bounds them.
        total_tokens: samples are drawn until they have so many tokens; None for ``count`` of them.
        attempts: tries that a generation has.
        redo: make again what was made with other settings.
    """

    recipe: Recipe
    engine: Engine
    sampling: Sampling
    cleaning: Cleaning
    count: int
    total_tokens: int | None = None
    attempts: int = 3
    redo: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What each row's record names: everything but the recipe, the model and the count."""
        return {**self._asked_with, "cleaning": asdict(self.cleaning)}

    @property
    def _asked_with(self) -> dict[str, Any]:
        return {"sampling": asdict(self.sampling), "engine": self.engine.settings}

    @cached_property
    def request_settings(self) -> str:
        """Fingerprint of what changes a completion."""
        return fingerprint(self._asked_with)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.settings)

    @cached_property
    def version(self) -> str:
        """Of the recipe and its templates."""
        return self.recipe.version

    @cached_property
    def model(self) -> str:
        """Which model and revision."""
        return self.engine.model

    def identity(self, item: Item) -> str:
        return item.identity(self.version, self.model)

    def ledger(self) -> Ledger:
        return Ledger(self.attempts, self.fingerprint, self.redo)


@dataclass(frozen=True)
class Shard:
    """Every ``of``-th document from number ``number`` on."""

    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``i/n``.

        Raises:
            UserError: it is not that, or i is not in [0, n).
        """
        number, slash, of = text.partition("/")
        if not slash or not number.isdecimal() or not of.isdecimal() or not int(number) < int(of):
            raise UserError(f"shard is '{text}': give i/n with i from 0 to n-1, such as 0/4")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass
class Counts:
    """How far a shard is.

    Attributes:
        total: items of the shard; None where samples are drawn up to a number of tokens.
        before: of them finished before this process began.
        accepted, given_up: finished by this process.
        declined: attempts by reason.
        prompt_tokens, tokens: read and written by the model for this process.
        began, ended: when the engine was ready and when the last item was done, on the monotonic clock; None before.
    """

    total: int | None = None
    before: int = 0
    accepted: int = 0
    given_up: int = 0
    declined: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    tokens: int = 0
    began: float | None = None
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """Time at work: loading the engine and shutting it down do not count."""
        return 0.0 if self.began is None else (self.ended or time.monotonic()) - self.began

    @property
    def done(self) -> int:
        return self.before + self.accepted + self.given_up


def sources(corpus: Corpus) -> Iterator[Source]:
    """The training documents, in order: nothing is made from a document that is held out."""
    for row in corpus.rows("documents", TRAIN, ["id", "content_hash", "text"]):
        yield Source(row["id"], row["content_hash"], row["text"])


def document_items(work: Work, documents: Iterable[Source]) -> Iterator[Item]:
    """The generations of each document, side by side, so that their common prompt stays in the engine's cache."""
    indices = work.recipe.indices(work.count)
    for source in documents:
        for index in indices:
            yield Item(source, index)


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
        self._ledger = work.ledger()
        self._looked = 0.0
        self._named = False
        self._in_vain = 0
        self.counts = Counts(self._total())

    def _total(self) -> int | None:
        if self._corpus is None:
            return None if self._work.total_tokens else len(range(self._shard.number, self._work.count, self._shard.of))
        documents = range(self._shard.number, self._corpus.manifest["documents"][TRAIN], self._shard.of)
        return len(documents) * len(self._work.recipe.indices(self._work.count))

    async def run(self) -> Counts:
        """Make what is missing.

        Raises:
            UserError: the engine refuses, or is gone; what is finished is kept.
            OSError: the journal cannot be written.
        """
        self._refresh()
        missing = self._missing()
        first = next(missing, None)
        if first is None:
            return self.counts  # other shards may have work; this one needs no engine
        slots = asyncio.Semaphore(self._work.engine.in_flight)
        ticking = asyncio.create_task(self._tick())
        try:
            async with self._work.engine:
                self.counts.began = time.monotonic()
                try:
                    async with asyncio.TaskGroup() as tasks:
                        for item in chain([first], missing):
                            await slots.acquire()
                            tasks.create_task(self._make(item)).add_done_callback(lambda _: slots.release())
                except BaseExceptionGroup as group:
                    raise _first(group) from None
                finally:
                    await self._journal.close()
                    self.counts.ended = time.monotonic()
        finally:
            ticking.cancel()
        return self.counts

    async def _tick(self) -> None:
        """Say that this process lives, also while nothing gets finished."""
        while True:
            await asyncio.sleep(_TICK)
            self._progress(self.counts)

    def _missing(self) -> Iterator[Item]:
        for item in self._items():
            if time.monotonic() - self._looked > _REFRESH:
                self._refresh()
            if self._ledger.is_done(self._work.identity(item)):
                self.counts.before += 1
                self._progress(self.counts)
            else:
                yield item

    def _items(self) -> Iterator[Item]:
        if self._corpus is not None:
            every = enumerate(sources(self._corpus))
            mine = (source for number, source in every if number % self._shard.of == self._shard.number)
            yield from document_items(self._work, mine)
            return
        index = self._shard.number
        while self._wants(index):
            yield Item(None, index)
            index += self._shard.of

    def _wants(self, index: int) -> bool:
        """Whether there is to be a sample of this number."""
        if self._work.total_tokens is None:
            return index < self._work.count
        # Those before it that are not finished will have tokens, too, but nobody knows how many.
        return self._ledger.tokens_before(index) < self._work.total_tokens

    def _refresh(self) -> None:
        """Take in what other processes have written."""
        self._ledger.add(self._journal.new_records())
        self._looked = time.monotonic()

    async def _make(self, item: Item) -> None:
        work, counts = self._work, self.counts
        identity = work.identity(item)
        known = {key: self._journal.read(place) for key, place in self._ledger.completions(identity).items()}
        for attempt in range(self._ledger.next_attempt(identity), work.attempts):
            trial = _Attempt(work, self._journal, item, attempt, known)
            outcome = await trial.run()
            counts.prompt_tokens += trial.prompt_tokens
            counts.tokens += trial.tokens
            if isinstance(outcome, Generated):
                accepted = trial.accepted(outcome)
                await self._write(accepted)
                self._ledger.accept(accepted)
                counts.accepted += 1
                self._in_vain = 0
                self._progress(counts)
                return
            counts.declined[outcome.reason] += 1
            declined = trial.declined(outcome)
            await self._write(declined)
            self._ledger.decline(declined)
            self._progress(counts)
            if declined.final:
                break
        counts.given_up += 1
        self._progress(counts)
        self._in_vain += 1
        if work.total_tokens is not None and self._in_vain >= _HOPELESS:
            raise UserError(
                f"{self._in_vain} samples in a row were given up ({counts.declined.most_common(1)[0][0]}): look at "
                "cleaning and sampling"
            )

    async def _write(self, record: Accepted | Declined) -> None:
        if not self._named:
            # Once in each segment, before the first record that refers to them.
            self._named = True
            await self._journal.append(Settings(self._work.fingerprint, self._work.settings))
        await self._journal.append(record)


class _Attempt:
    """One try at one item.

    Attributes:
        prompt_tokens, tokens: read and written by the model for it.
    """

    def __init__(self, work: Work, journal: Journal, item: Item, attempt: int, known: dict[str, Record]) -> None:
        self._work = work
        self._journal = journal
        self._item = item
        self._attempt = attempt
        self._known = known
        self._identity = work.identity(item)
        self.prompt_tokens = self.tokens = 0

    async def run(self) -> Outcome:
        """Drive the recipe to its end, then look at what it made."""
        outcome = await self._drive()
        if isinstance(outcome, Rejected):
            return outcome
        source = self._item.source
        problem = self._work.cleaning.problem(outcome.text, source.text if source else None)
        return outcome if problem is None else Rejected(problem)

    async def _drive(self) -> Outcome:
        steps = self._work.recipe.run(self._item, self._work.engine.count_tokens)
        try:
            requests = next(steps)
            while True:
                completions = await self._answers(requests)
                if isinstance(completions, Rejected):
                    return completions
                requests = steps.send(completions)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome
        finally:
            steps.close()

    async def _answers(self, requests: Sequence[Request]) -> list[Completion] | Rejected:
        """The requests' completions, cleaned."""
        too_long = False
        try:
            async with asyncio.TaskGroup() as together:
                tasks = [together.create_task(self._complete(request)) for request in requests]
        except* TooLongError:
            too_long = True
        if too_long:
            return Rejected("too long for the model", final=True)
        completions = []
        for request, task in zip(requests, tasks, strict=True):
            completion = task.result()
            text = self._work.cleaning.clean(completion) if request.is_text else completion.text
            if isinstance(text, Rejected):
                return text
            completions.append(replace(completion, text=text))
        return completions

    async def _complete(self, request: Request) -> Completion:
        work = self._work
        key = request_key(request, self._attempt, work.request_settings)
        record = self._known.get(key)
        if isinstance(record, Completed):
            completion = record.completion
        else:
            seed = request_seed(work.sampling.seed, self._identity, self._attempt, request)
            completion = await work.engine.complete(request, work.sampling, seed)
            # A lone surrogate, which JSON can spell, is no text.
            text = completion.text.encode(errors="replace").decode()
            completion = replace(completion, text=text)
            await self._journal.append(Completed(of=self._identity, key=key, **vars(completion)))
        self.prompt_tokens += completion.prompt_tokens
        self.tokens += completion.tokens
        return completion

    def accepted(self, generated: Generated) -> Accepted:
        source = self._item.source
        return Accepted(
            of=self._identity,
            document=source.id if source else None,
            content_hash=source.content_hash if source else None,
            index=self._item.index,
            text=generated.text,
            offset=generated.character_offset,
            attempt=self._attempt,
            seed=self._work.sampling.seed,
            settings=self._work.fingerprint,
            prompt_tokens=self.prompt_tokens,
            tokens=self.tokens,
        )

    def declined(self, rejected: Rejected) -> Declined:
        return Declined(
            of=self._identity,
            index=self._item.index,
            attempt=self._attempt,
            reason=rejected.reason,
            final=rejected.final,
            settings=self._work.fingerprint,
            prompt_tokens=self.prompt_tokens,
            tokens=self.tokens,
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that stopped the others: what the user can mend, if there is such a one."""
    flat: list[BaseException] = []
    for error in group.exceptions:
        flat += [_first(error)] if isinstance(error, BaseExceptionGroup) else [error]
    return next((error for error in flat if isinstance(error, UserError | OSError)), flat[0])
