"""Prepared completions: for tests, and for a look at what a recipe asks."""

import asyncio
import hashlib
from collections.abc import Sequence

from megalit.errors import UserError
from megalit.synthesis.engines.base import Engine
from megalit.synthesis.requests import Completion, Request, Sampling

# Waiting this long lets other requests overtake, as a real engine does.
_TURNS = 4


class Scripted(Engine):
    """Answers with prepared texts: which of them, the request's seed decides.

    Args:
        texts: templates of completions; ``{prompt}`` stands for the last message, ``{seed}`` for the request's seed,
            ``{words}`` for twenty words drawn with that seed.
        seconds: each completion takes so long.
    """

    def __init__(self, texts: Sequence[str] = ("{words}",), seconds: float = 0.0) -> None:
        if not texts:
            raise UserError("engine.texts is empty: give at least one completion")
        self.texts = tuple(texts)
        self.seconds = seconds

    @property
    def model(self) -> str:
        return "scripted"

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        await asyncio.sleep(self.seconds)
        for _ in range(seed % _TURNS):
            await asyncio.sleep(0)
        prompt = request.messages[-1].content if request.messages else ""
        text = self.texts[seed % len(self.texts)]
        text = text.replace("{prompt}", prompt).replace("{seed}", str(seed)).replace("{words}", _words(seed))
        words = text.split(" ")
        cut = len(words) > sampling.max_tokens
        text = " ".join(words[: sampling.max_tokens])
        return Completion(text, "length" if cut else "stop", len(prompt.split()), min(len(words), sampling.max_tokens))


def _words(seed: int) -> str:
    digits = hashlib.sha256(str(seed).encode()).digest()[:20]
    return " ".join(f"{'bcdfgklmnprst'[n % 13]}{'aeiou'[n % 5]}{n:x}" for n in digits) + "."
