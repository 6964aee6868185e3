"""One generation in the making: its recipe is driven to its end, and every completion is kept on the way.

After a rejection the recipe is driven again from its beginning with the completions that are in hand, and what is asked
for again is what was rejected: one part of a long document, and not its hundred good ones. Which completions were
rejected follows from their texts, so a process that has another's completions comes to where that one was.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from megalit.synthesis.cleaning import answer
from megalit.synthesis.engines import TooLongError
from megalit.synthesis.items import Generated, Item, Outcome, Rejected
from megalit.synthesis.journal import REFUSED, Accepted, Completed, Declined, Journal, Record
from megalit.synthesis.requests import Completion, Request, request_key, request_seed
from megalit.synthesis.work import Work

# The step and chunk of a request, or what stands for the generation as a whole.
_Part = tuple[str, int]
_WHOLE: _Part = ("", -1)


class Trial:
    """One item, tried until a generation is accepted or a request of it has used all its attempts.

    Args:
        known: the journal's completions for it, by request key.

    Attributes:
        attempt: number, from 0, of the attempt that the last run accepted or rejected; the highest of its requests'.
        is_over: whether no further run could give another outcome.
        prompt_tokens, tokens: read and written by the model for the completions of the last run.
        new_prompt_tokens, new_tokens: those of them that were asked for in that run.
        is_new: whether that run asked for any; otherwise an earlier process came to the same.
        cut: whether the limit cut the text that the last run came to, or a part of it.
    """

    def __init__(self, work: Work, journal: Journal, item: Item, known: Mapping[str, Record]) -> None:
        self._work = work
        self._journal = journal
        self._item = item
        self._identity = work.identity(item)
        self._completions = {key: record.completion for key, record in known.items() if isinstance(record, Completed)}
        self._number: Counter[_Part] = Counter()  # of the attempt that each request is at
        self._asked: set[_Part] = set()
        self._at_fault: set[_Part] = set()
        self.attempt = 0
        self.is_over = self.is_new = False
        self.cut = False
        self.prompt_tokens = self.tokens = self.new_prompt_tokens = self.new_tokens = 0

    async def run(self) -> Outcome:
        """Drive the recipe to its end or to a rejection, and look at what it made."""
        self._asked, self._at_fault = {_WHOLE}, set()
        self.prompt_tokens = self.tokens = self.new_prompt_tokens = self.new_tokens = 0
        self.is_new = False
        outcome = self._judged(await self._drive())
        # What no request alone is at fault for is all anew.
        parts = self._at_fault or self._asked
        self.attempt = max(self._number[part] for part in parts)
        if isinstance(outcome, Rejected):
            self._number.update(parts)
            self.is_over = outcome.final or self.attempt + 1 >= self._work.attempts
        else:
            self.is_over = True
        return outcome

    def _judged(self, outcome: Outcome) -> Outcome:
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
        """The requests' completions, cleaned; or why one of them, at least, is to be asked for again."""
        too_long = False
        try:
            async with asyncio.TaskGroup() as together:
                tasks = [together.create_task(self._complete(request)) for request in requests]
        except* TooLongError:
            too_long = True
        if too_long:
            return Rejected(REFUSED, final=True)
        # The last texts are those of the generation: a revision that is whole mends a draft that is not.
        self.cut = any(
            request.is_text and task.result().finish == "length" for request, task in zip(requests, tasks, strict=True)
        )
        completions = []
        rejected: Rejected | None = None
        for request, task in zip(requests, tasks, strict=True):
            completion = self._cleaned(request, task.result())
            if isinstance(completion, Rejected):
                self._at_fault.add(_part(request))
                rejected = rejected or completion
            else:
                completions.append(completion)
        return rejected or completions

    def _cleaned(self, request: Request, completion: Completion) -> Completion | Rejected:
        cleaned = answer(completion, request)
        if isinstance(cleaned, Rejected) or not request.is_text:
            return cleaned
        text = self._work.cleaning.clean(cleaned)
        return text if isinstance(text, Rejected) else replace(cleaned, text=text)

    async def _complete(self, request: Request) -> Completion:
        part = _part(request)
        self._asked.add(part)
        # The first that is there: earlier versions gave all of a generation's requests a new number at a rejection.
        numbers = range(self._number[part], self._work.attempts)
        known = (number for number in numbers if self._key(request, number) in self._completions)
        self._number[part] = next(known, self._number[part])
        completion = self._completions.get(self._key(request, self._number[part]))
        if completion is None:
            completion = await self._ask(request, self._number[part])
            self.new_prompt_tokens += completion.prompt_tokens
            self.new_tokens += completion.tokens
            self.is_new = True
        self.prompt_tokens += completion.prompt_tokens
        self.tokens += completion.tokens
        return completion

    def _key(self, request: Request, number: int) -> str:
        return request_key(request, number, self._work.request_settings)

    async def _ask(self, request: Request, number: int) -> Completion:
        work = self._work
        seed = request_seed(work.sampling.seed, self._identity, number, request)
        completion = await work.engine.complete(request, work.sampling, seed)
        # A lone surrogate, which JSON can spell, is no text.
        completion = replace(completion, text=completion.text.encode(errors="replace").decode())
        key = self._key(request, number)
        await self._journal.append(Completed(of=self._identity, key=key, **vars(completion)))
        self._completions[key] = completion
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
            attempt=self.attempt,
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
            attempt=self.attempt,
            reason=rejected.reason,
            final=rejected.final,
            settings=self._work.fingerprint,
            prompt_tokens=self.new_prompt_tokens,
            tokens=self.new_tokens,
        )


def _part(request: Request) -> _Part:
    return request.step, request.chunk
