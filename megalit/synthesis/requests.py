"""What recipes ask of engines: a request, how to sample, and the completion that comes back."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from megalit.errors import UserError
from megalit.files import fingerprint

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Request:
    """What a recipe wants to be completed.

    Attributes:
        messages: the conversation so far; the engine renders it with the model's chat template, or end to end for
            a base model. None at all: the model continues its BOS token.
        step: name of the recipe's step.
        chunk: number of the part of the document, where it was split.
        is_text: whether the completion becomes text of the generation, so that it is cleaned; a review does not.
    """

    messages: tuple[Message, ...]
    step: str
    chunk: int = 0
    is_text: bool = True


def ask(prompt: str, step: str, chunk: int = 0, is_text: bool = True) -> Request:
    """A request of one user's message."""
    return Request((Message("user", prompt),), step, chunk, is_text)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: smallest set of tokens with this probability.
        top_k: that many likeliest tokens; 0 is all of them.
        repetition_penalty: above 1 makes tokens that stand in the text less likely.
        max_tokens: longest completion.
        stop: texts at which a completion ends; they do not belong to it.
        seed: with it, the document, the generation's index and the attempt each request has a seed of its own.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = field(default=())
    seed: int = 0

    def check(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: one of them is out of its range; the message names it.
        """
        ranges = {
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "repetition_penalty": self.repetition_penalty > 0,
            "max_tokens": self.max_tokens >= 1,
            "stop": "" not in self.stop,
        }
        for name, is_right in ranges.items():
            if not is_right:
                raise UserError(f"sampling.{name} is {getattr(self, name)}: choose a value in its range (see --help)")


@dataclass(frozen=True)
class Completion:
    """What an engine gives for a request.

    Attributes:
        text: without the stop text.
        finish: whether the model ended it (``stop``) or the limit did (``length``).
        prompt_tokens, tokens: read and written by the model.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    tokens: int


def request_seed(seed: int, identity: str, attempt: int, request: Request) -> int:
    """The seed of one request, in [0, 2**31): a function of the run's seed and of what is asked for.

    ``identity`` stands for document and generation index (:meth:`megalit.synthesis.items.Item.identity`).
    """
    key = f"{seed}:{identity}:{attempt}:{request.step}:{request.chunk}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1


def request_key(request: Request, attempt: int, settings: str) -> str:
    """Tells the requests of one item apart: step, chunk, attempt, settings with the seed, and the words.

    ``settings`` is a fingerprint of what changes a completion: sampling and the engine's own settings.

    The words too, so that a completion that was made for another critique is never taken for this one's.
    """
    words = [[message.role, message.content] for message in request.messages]
    return fingerprint([request.step, request.chunk, attempt, settings, words])
