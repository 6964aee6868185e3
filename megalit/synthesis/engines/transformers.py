"""transformers in this process, in batches: for small models, on CPU or GPU, without vLLM."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, Literal

from megalit.errors import UserError, reason
from megalit.synthesis.engines.base import EngineError, TooLongError
from megalit.synthesis.engines.local_model import LocalModel, cut_at_stop
from megalit.synthesis.requests import Completion, Request, Sampling


@dataclass(frozen=True)
class _Waiting:
    prompt: list[int]
    sampling: Sampling
    seed: int
    answer: asyncio.Future[Completion]


class Transformers(LocalModel):
    """A model of transformers. Requests that wait together are completed as one batch.

    Noise is drawn for each request by its own seed (Gumbel-max sampling), so that a text does not depend on which
    requests share its batch, up to the rounding of batched matrix products.

    Args:
        model: folder in the Hugging Face format, such as ``megalit export`` writes, or a hub name.
        revision: of a hub name.
        chat: render requests with the chat template of an instruct model; false for a base model.
        template: further variables of the chat template, such as ``{enable_thinking: false}``.
        batch_size: requests in a batch.
        device: ``auto`` is a GPU where there is one.
        dtype: of the weights; ``auto`` is as they are stored.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        chat: bool = True,
        template: dict[str, Any] | None = None,
        batch_size: int = 16,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    ) -> None:
        if batch_size < 1:
            raise UserError(f"engine.batch_size is {batch_size}: choose at least 1")
        super().__init__(model, revision, chat, template)
        self._batch_size = batch_size
        # One batch is computed while the next one is gathered.
        self.in_flight = 2 * batch_size
        self._device = device
        self._dtype = dtype
        self._loaded: Any = None
        self._ends: list[int] = []
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "dtype": self._dtype}

    async def __aenter__(self) -> "Transformers":
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        self.open()
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self._device == "auto" else self._device
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                self._name, revision=self._revision or "main", dtype=self._dtype
            )
            self._ends = self._end_tokens(loaded.generation_config)
            # Whatever is not said would be taken from the model's own file.
            loaded.generation_config = GenerationConfig()
            self._loaded = loaded.to(device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"engine.model {self._name} cannot be loaded ({reason(error)}): check it") from error
        self._worker = asyncio.get_running_loop().create_task(self._work())
        return self

    def _end_tokens(self, settings: Any) -> list[int]:
        """Tokens that end a completion: the tokenizer's EOS, and those that the model names besides (end of turn)."""
        assert self._encoder is not None
        named = settings.eos_token_id
        several = named if isinstance(named, list) else [named]
        return sorted({token for token in (self._encoder.eos, *several) if token is not None})

    async def __aexit__(self, *_: object) -> None:
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        self._loaded = None

    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        assert self._encoder is not None
        prompt = self._encoder.encode(request)
        longest = getattr(self._loaded.config, "max_position_embeddings", None)
        if longest is not None and len(prompt) + sampling.max_tokens > longest:
            raise TooLongError(
                f"a prompt of {len(prompt)} tokens and {sampling.max_tokens} more do not fit in the model's {longest}"
            )
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        await self._waiting.put(_Waiting(prompt, sampling, seed, answer))
        return await answer

    async def _work(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            await asyncio.sleep(0)  # whoever is about to ask gets into this batch
            while len(batch) < self._batch_size and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            try:
                completions = await asyncio.to_thread(self._complete, batch)
            except Exception as error:
                failure = EngineError(
                    f"transformers failed ({reason(error)}): what is finished is kept; lower engine.batch_size if "
                    "memory ran out, then give the same command"
                )
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(failure)
                continue
            for one, completion in zip(batch, completions, strict=True):
                if not one.answer.done():
                    one.answer.set_result(completion)

    def _complete(self, batch: list[_Waiting]) -> list[Completion]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        assert self._encoder is not None
        longest = max(len(one.prompt) for one in batch)
        padding = self._encoder.eos if self._encoder.eos is not None else 0
        tokens = torch.full((len(batch), longest), padding)
        mask = torch.zeros_like(tokens)
        for row, one in enumerate(batch):  # on the left, so that all continue at the same place
            tokens[row, longest - len(one.prompt) :] = torch.tensor(one.prompt)
            mask[row, longest - len(one.prompt) :] = 1
        device = self._loaded.device
        # Greedy over logits with each request's own noise is sampling from them.
        settings = GenerationConfig(
            max_new_tokens=max(one.sampling.max_tokens for one in batch),
            do_sample=False,
            eos_token_id=self._ends or None,
            pad_token_id=padding,
        )
        noise = LogitsProcessorList([_OwnNoise(batch, longest)])
        with torch.inference_mode():
            out = self._loaded.generate(
                tokens.to(device), attention_mask=mask.to(device), generation_config=settings, logits_processor=noise
            )
        return [self._completion(one, out[row, longest:].tolist()) for row, one in enumerate(batch)]

    def _completion(self, one: _Waiting, tokens: list[int]) -> Completion:
        assert self._encoder is not None
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        ended = end is not None and end < one.sampling.max_tokens
        tokens = tokens[: one.sampling.max_tokens if end is None or not ended else end + 1]
        text, stopped = cut_at_stop(self._encoder.decode(tokens), one.sampling.stop)
        text = self._encoder.opened(one.prompt) + text
        return Completion(text, "stop" if ended or stopped else "length", len(one.prompt), len(tokens))


class _OwnNoise:
    """A logits processor of transformers: temperature, top-k and top-p, then each request's own Gumbel noise."""

    def __init__(self, batch: list[_Waiting], prompt: int) -> None:
        import torch
        from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

        self._batch = batch
        self._prompt = prompt
        self._random = [torch.Generator().manual_seed(one.seed) for one in batch]
        self._steps: list[list[Any]] = []
        for one in batch:
            sampling, steps = one.sampling, []
            if sampling.repetition_penalty != 1:
                steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
            if sampling.temperature:
                steps.append(_Temperature(sampling.temperature))
                if sampling.top_k:
                    steps.append(TopKLogitsWarper(sampling.top_k))
                if sampling.top_p < 1:
                    steps.append(TopPLogitsWarper(sampling.top_p))
            self._steps.append(steps)

    def __call__(self, tokens: Any, scores: Any) -> Any:
        import torch

        out = scores.float()
        for row, (one, random) in enumerate(zip(self._batch, self._random, strict=True)):
            own = out[row : row + 1]
            # Padding on the left is no text.
            text = tokens[row : row + 1, self._prompt - len(one.prompt) :]
            for step in self._steps[row]:
                own = step(text, own)
            if one.sampling.temperature:
                uniform = torch.rand(own.shape[-1], generator=random).to(own.device)
                own = own - torch.log(-torch.log(uniform.clamp_min(1e-20)))
            out[row : row + 1] = own
        return out


class _Temperature:
    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, tokens: Any, scores: Any) -> Any:
        return scores / self._temperature
