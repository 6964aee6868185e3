"""Any server that speaks OpenAI's protocol: ``vllm serve``, tokasaurus, SGLang, a hosted one."""

import asyncio
import os
import random
import re
from typing import Any

from megalit.errors import UserError, first_line, missing_extra
from megalit.synthesis.cleaning import ANSWERING, THINKING, ends_unopened_thought
from megalit.synthesis.engines.base import Engine, EngineError, TooLongError
from megalit.synthesis.engines.local_model import PromptEncoder, plain_text
from megalit.synthesis.requests import Completion, Request, Sampling

# A server that answers so is busy or broken for a while; other refusals will be repeated word by word.
_WORTH_WAITING = {408, 409, 425, 429}
_LONGEST_WAIT = 60.0
# A server that says how long to wait is believed up to so many seconds.
_LONGEST_TOLD = 600.0
# Refusals that may be of this one text: of its length, or of what a hosted server's filter sees in it. As vLLM and
# SGLang, llama.cpp, TGI and Together, OpenAI and Azure, and DashScope word them.
_TEXT = re.compile(
    r"context.{0,8}(length|window|size)|too long|max(imum)?\b.{0,20}(length|tokens)|input.{0,4} length"
    r"|\binputs\b.{0,4}(tokens? \+|must have less than)"
    r"|content.{0,8}(policy|filter)|usage.polic|invalid_prompt|safety system|data_?inspection|inappropriate content",
    re.IGNORECASE,
)
# With these a server mostly says something else: that a key is not allowed to do so (OpenRouter's moderation is meant),
# that it is overloaded (llama.cpp's context is).
_FLAGGED = re.compile(r"input was flagged|content.{0,8}(policy|filter)", re.IGNORECASE)
_CONTEXT = re.compile(r"context.{0,8}(length|window|size)", re.IGNORECASE)
_OF_THE_TEXT = {400: _TEXT, 413: _TEXT, 422: _TEXT, 403: _FLAGGED, 500: _CONTEXT}
# Ways in which a completion ends that is whole, or as long as it was allowed to be.
_FINISHED = ("stop", "length")
# So many completions more that end a thought without its beginning than ones that end without any tell that the chat
# template opens thoughts. A model may leave a lone mark in a text now and then, which is to end no run.
_TELLING = 3


class _BadAnswerError(Exception):
    """An answer that is no completion."""


class OpenAI(Engine):
    """A server at a URL. The key, if it wants one, is read from an environment variable, never from a file.

    Args:
        model: its name at the server.
        url: where the server is, up to ``/v1``.
        revision: any name that tells this model from another of the same name; part of each generation's identity.
        chat: ask its chat endpoint; false asks for plain completion, for a base model.
        tokenizer: folder or hub name of the model's tokenizer, to measure texts with, and for the BOS that samples
            begin with; without it a token is taken to be four bytes.
        key_variable: environment variable that holds the key.
        in_flight: requests under way at once.
        timeout: seconds until an answer counts as lost.
        retries: how often a request is tried again, after waits that double from one second to a minute, or that the
            server asks for; the default waits seven minutes at most, unless it asks for more.
        opens_thought: whether the chat template opens the thought of a reasoning model, so that completions begin in
            it; false where the server parses thoughts itself. Null looks at the template of ``tokenizer`` and at
            what comes, and ends the run where thoughts come.
        options: further fields of the requests' body, such as ``{"min_p": 0.1}``, or, for a reasoning model on vLLM or
            SGLang that is to answer at once, ``{"chat_template_kwargs": {"enable_thinking": false}}``.
        strict: send nothing that is not in OpenAI's own protocol; hosted servers refuse what they do not know.
    """

    def __init__(
        self,
        model: str,
        url: str = "http://localhost:8000/v1",
        revision: str | None = None,
        chat: bool = True,
        tokenizer: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        in_flight: int = 128,
        timeout: float = 600.0,
        retries: int = 12,
        opens_thought: bool | None = None,
        options: dict[str, Any] | None = None,
        strict: bool = False,
    ) -> None:
        if retries < 0 or timeout <= 0 or in_flight < 1:
            raise UserError("engine.retries, engine.timeout and engine.in_flight are not all positive: mend them")
        if opens_thought and not chat:
            raise UserError("engine.opens_thought is about chat templates: leave it out, or set engine.chat true")
        self._name = model
        self._url = url.rstrip("/")
        self._revision = revision
        self._chat = chat
        self._tokenizer = tokenizer
        self._key_variable = key_variable
        self.in_flight = in_flight
        self._timeout = timeout
        self._retries = retries
        self._opens_thought = opens_thought
        self._closed = self._plain = 0
        self._completed = 0
        self._options = options or {}
        self._strict = strict
        self._encoder: PromptEncoder | None = None
        self._client: Any = None
        self._slots: asyncio.Semaphore | None = None

    @property
    def model(self) -> str:
        return f"{self._name}@{self._revision or 'served'}"

    @property
    def settings(self) -> dict[str, Any]:
        opens = {"opens_thought": True} if self._opens_thought else {}
        return {"chat": self._chat, "options": self._options, **opens}

    def open(self) -> None:
        if self._tokenizer is None or self._encoder is not None:
            return
        template = self._options.get("chat_template_kwargs")
        encoder = PromptEncoder(self._tokenizer, None, chat=False, template=template, setting="engine.tokenizer")
        if self._chat and self._opens_thought is None and encoder.opens_thoughts():
            raise UserError(
                f"the chat template of engine.tokenizer {self._tokenizer} opens a thought: set engine.opens_thought "
                "true, or false if the server parses thoughts itself or has another template"
            )
        self._encoder = encoder

    @property
    def counts_tokens(self) -> bool:
        return self._tokenizer is not None

    def count_tokens(self, text: str) -> int:
        return self._encoder.count(text) if self._encoder else -(-len(text.encode()) // 4)

    async def __aenter__(self) -> "OpenAI":
        try:
            import openai
        except ImportError as error:
            raise missing_extra("openai", "openai", "the engine OpenAI") from error
        self.open()
        self._slots = asyncio.Semaphore(self.in_flight)
        self._client = openai.AsyncOpenAI(
            base_url=self._url,
            # The client insists on a key; a server of one's own does not look at it.
            api_key=os.environ.get(self._key_variable) or "none",
            timeout=self._timeout,
            max_retries=0,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        import openai

        assert self._slots is not None
        reason, told = "", 0.0
        statuses: set[int] = set()
        for number in range(self._retries + 1):
            completed = self._completed
            if number:
                # Half fixed and half drawn, so that requests that failed together do not return together.
                own = min(_LONGEST_WAIT, 2.0 ** (number - 1)) * (0.5 + random.random() / 2)
                await asyncio.sleep(told + own)
                told = 0.0
            try:
                async with self._slots:
                    # The client's limit counts from byte to byte; a server that trickles would never end.
                    completion = await asyncio.wait_for(self._ask(request, sampling, seed), self._timeout)
                self._completed += 1
                return completion
            except openai.APIStatusError as error:
                reason = f"HTTP {error.status_code}: {first_line(error.message)}"
                wording = _OF_THE_TEXT.get(error.status_code)
                if wording is not None and wording.search(f"{error.code} {error.message}"):
                    raise TooLongError(f"the server at {self._url} takes no such request ({reason})") from error
                statuses.add(error.status_code)
                told = _told(error.response.headers.get("retry-after"))
                if error.status_code < 500 and error.status_code not in _WORTH_WAITING:
                    raise UserError(
                        f"the server at {self._url} refuses a request ({reason}): check engine.model, the key in "
                        f"${self._key_variable} and the lengths"
                    ) from error
            except (openai.APIError, _BadAnswerError, TimeoutError, ValueError) as error:
                # The client lets the JSON parser's own ValueError through.
                statuses.add(0)
                reason = first_line(str(error)) or f"no answer in {self._timeout:g} s"
        if statuses == {500} and self._completed > completed:
            # While this one failed for the last time, others did not: the server is well, and chokes on this text.
            raise TooLongError(f"the server at {self._url} fails on this request alone ({reason})")
        raise EngineError(
            f"the server at {self._url} does not answer after {self._retries + 1} tries ({reason}): what is finished "
            "is kept; start the server again, then give the same command"
        )

    async def _ask(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        # What the protocol does not know goes beside it; vLLM, SGLang and tokasaurus read it there. Said in any case:
        # what is not said, vLLM takes from the model's own generation_config.json.
        extra: dict[str, Any] = dict(self._options)
        if not self._strict:
            beside = {"top_k": sampling.top_k or -1, "repetition_penalty": sampling.repetition_penalty, "min_p": 0.0}
            extra = beside | extra
        elif sampling.top_k or sampling.repetition_penalty != 1:
            raise UserError("engine.strict sends neither sampling.top_k nor repetition_penalty: leave them at 0 and 1")
        common: dict[str, Any] = {
            "model": self._name,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed,
            "extra_body": extra,
        }
        if sampling.stop:
            common["stop"] = list(sampling.stop)
        if self._chat:
            if not request.messages:
                raise UserError("a chat cannot begin from BOS alone: set engine.chat false")
            turns = [{"role": message.role, "content": message.content} for message in request.messages]
            answer = await self._client.chat.completions.create(messages=turns, **common)
        else:
            prompt = plain_text(request.messages) if request.messages else self._beginning(request)
            answer = await self._client.completions.create(prompt=prompt, **common)
        return self._completion(answer, request)

    def _beginning(self, request: Request) -> list[int]:
        """The prompt of a sample: BOS. Servers refuse an empty one, or put no BOS before it."""
        if self._encoder is None:
            raise UserError("samples begin with the model's BOS token: name its tokenizer in engine.tokenizer")
        return self._encoder.encode(request)

    def _completion(self, answer: Any, request: Request) -> Completion:
        text, finish, usage, is_parsed = _parts(answer, self._chat)
        if finish == "content_filter":
            raise TooLongError("the server's filter has ended this completion")
        if finish not in _FINISHED:
            # A server that shuts down sends what it has, for example.
            raise _BadAnswerError(f"a completion that ended with '{finish}'")
        prompt_tokens, tokens = usage or (0, self.count_tokens(text))
        if self._opens_thought and not is_parsed:
            text = THINKING + text
        elif self._opens_thought is None and self._chat:
            self._look_for_thoughts(text, finish, request)
        return Completion(text, "length" if finish == "length" else "stop", prompt_tokens, tokens)

    def _look_for_thoughts(self, text: str, finish: str, request: Request) -> None:
        """End the run where completions begin within a thought: of those that the limit cuts there, nothing tells so.

        Raises:
            UserError: it is clear by now.
        """
        if ends_unopened_thought(text, request):
            self._closed += 1
            if self._closed >= self._plain + _TELLING:
                raise UserError(
                    f"completions of {self._name} begin within a thought, which '{ANSWERING}' ends: set "
                    "engine.opens_thought true, or false if such marks belong to the texts; --redo makes again what "
                    "was made so far"
                )
        elif finish == "stop" and ANSWERING not in text:
            self._plain += 1


def _parts(answer: Any, chat: bool) -> tuple[str, str, tuple[int, int] | None, bool]:
    """Text, reason of its end, tokens read and written where they are counted, and whether a thought was parsed."""
    try:
        choice = answer.choices[0]
        text = choice.message.content if chat else choice.text
        usage = answer.usage
        tokens = (int(usage.prompt_tokens), int(usage.completion_tokens)) if usage is not None else None
        finish = choice.finish_reason
        # No part of the protocol; servers call it by either name.
        thought = chat and (
            getattr(choice.message, "reasoning_content", None) or getattr(choice.message, "reasoning", None)
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _BadAnswerError(f"an answer that is no completion: {first_line(str(answer))[:100]}") from error
    if not isinstance(text, str) and text is not None:
        raise _BadAnswerError("an answer whose text is no text")
    return text or "", str(finish), tokens, bool(thought)


def _told(header: str | None) -> float:
    """Seconds that a server asks to wait; it may also name a date, which is taken for nothing said."""
    try:
        return min(_LONGEST_TOLD, max(0.0, float(header or 0)))
    except ValueError:
        return 0.0
