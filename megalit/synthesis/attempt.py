"""One try at one generation: the recipe is driven to its end, and every completion is kept on the way."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from megalit.synthesis.cleaning import answer
from megalit.synthesis.engines import TooLongError
from megalit.synthesis.items import Generated, Item, Outcome, Rejected
from megalit.synthesis.journal import REFUSED, Accepted, Completed, Declined, Journal, Record
from megalit.synthesis.requests import Completion, Request, request_key, request_seed
from megalit.synthesis.work import Work


class Attempt:
    """One try at one item.

    Attributes:
        prompt_tokens, tokens: read and written by the model for it.
        cut: whether the limit cut the text so far, or a part of it.
    """

    def __init__(self, work: Work, journal: Journal, item: Item, attempt: int, known: Mapping[str, Record]) -> None:
        self._work = work
        self._journal = journal
        self._item = item
        self._attempt = attempt
        self._known = known
        self._identity = work.identity(item)
        self.prompt_tokens = self.tokens = 0
        self.cut = False

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
            return Rejected(REFUSED, final=True)
        # The last texts are those of the generation: a revision that is whole mends a draft that is not.
        self.cut = False
        completions = []
        for request, task in zip(requests, tasks, strict=True):
            self.cut |= request.is_text and task.result().finish == "length"
            completion = answer(task.result(), request)
            if isinstance(completion, Rejected):
                return completion
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
            cut=self.cut,
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
