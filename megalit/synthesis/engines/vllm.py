"""vLLM in this process, fed continuously (vLLM: PagedAttention, arXiv 2309.06180)."""

import contextlib
import itertools
import logging
import os
from typing import Any

from megalit.errors import UserError, missing_extra, reason
from megalit.synthesis.engines.base import EngineError, TooLongError
from megalit.synthesis.engines.local_model import LocalModel
from megalit.synthesis.requests import Completion, Finish, Request, Sampling

# The most requests that vLLM computes together unless it is told otherwise, on its largest GPUs.
_BATCH = 1024


class Vllm(LocalModel):
    """vLLM's asynchronous engine: each request enters as soon as there is room, and leaves when it is done.

    Args:
        model: folder in the Hugging Face format, or a hub name.
        revision: of a hub name.
        chat: render requests with the chat template of an instruct model; false for a base model.
        template: further variables of the chat template, such as ``{enable_thinking: false}`` for a reasoning model
            that is to answer at once.
        tensor_parallel_size: GPUs that share one copy of the model.
        data_parallel_size: copies of the model.
        in_flight: requests in the engine at once; default: 1,024 for each copy, the most that vLLM puts in a batch.
        options: any further option of vLLM's ``AsyncEngineArgs``, such as ``max_model_len``, into which a prompt and
            ``sampling.max_tokens`` more must fit.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        chat: bool = True,
        template: dict[str, Any] | None = None,
        tensor_parallel_size: int = 1,
        data_parallel_size: int = 1,
        in_flight: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if in_flight is not None and in_flight < 1:
            raise UserError(f"engine.in_flight is {in_flight}: choose at least 1")
        # The tokenizer that renders prompts is loaded here, not by vLLM.
        super().__init__(model, revision, chat, template, bool((options or {}).get("trust_remote_code")))
        self._parallel = {"tensor_parallel_size": tensor_parallel_size, "data_parallel_size": data_parallel_size}
        self.in_flight = in_flight or _BATCH * data_parallel_size
        self._options = options or {}
        self._engine: Any = None
        self._number = itertools.count()

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "options": self._options}

    async def __aenter__(self) -> "Vllm":
        # Before vLLM is imported, which reads it then.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            from vllm import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise missing_extra("vllm", "vllm", "the engine Vllm") from error
        self.open()
        logging.getLogger("vllm").setLevel(logging.WARNING)
        settings: dict[str, Any] = {
            "model": self._name,
            "revision": self._revision,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            **self._parallel,
            **self._options,
        }
        if current_platform.is_cpu():
            # A prompt that is read in parts turns its generator back, which vLLM can do on GPUs only.
            settings.setdefault("enable_chunked_prefill", False)
        try:
            arguments = AsyncEngineArgs(**settings)
            # What it is for decides the size of its batches: of this class by itself 128 requests, of LLM, which has as
            # much to do, up to 1,024, by the GPU.
            self._engine = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"vLLM cannot load {self._name} ({_complaint(error)}): check engine.model, engine.options and the "
                "free memory"
            ) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        assert self._encoder is not None
        assert self._engine is not None
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop),
            seed=seed,
            skip_special_tokens=self._encoder.skip_special_tokens,
            # Only the finished completion: what is half done would cost time and is not used.
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": self._encoder.encode(request)}
        # Left to itself, vLLM takes every prompt that leaves room for one token, and shortens the completion.
        longest = self._engine.vllm_config.model_config.max_model_len
        if len(prompt["prompt_token_ids"]) + sampling.max_tokens > longest:
            raise TooLongError(
                f"a prompt of {len(prompt['prompt_token_ids'])} tokens and {sampling.max_tokens} more do not fit in "
                f"vLLM's max_model_len of {longest}"
            )
        final: Any = None
        try:
            async with contextlib.aclosing(
                self._engine.generate(prompt, parameters, f"megalit-{next(self._number)}")
            ) as outputs:
                async for output in outputs:
                    final = output
        except EngineDeadError as error:
            raise EngineError(
                "vLLM has died; its own messages stand above: what is finished is kept, give the command again"
            ) from error
        except (ValueError, VLLMClientError) as error:
            raise TooLongError(f"vLLM takes no such request ({reason(error)})") from error
        out = final.outputs[0]
        if out.finish_reason not in ("stop", "length", "repetition"):
            # An engine that goes down hands out what it has.
            raise EngineError(
                f"vLLM ended a completion with '{out.finish_reason}': what is finished is kept, try again"
            )
        finish: Finish = "length" if out.finish_reason == "length" else "stop"
        text = self._encoder.opened(prompt["prompt_token_ids"]) + out.text
        return Completion(text, finish, len(final.prompt_token_ids), len(out.token_ids))


def _complaint(error: Exception) -> str:
    """The line that says what is wrong: the checks of vLLM's settings end with a link."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("Value error,", "Assertion failed,"))]
    return (told or lines[-1:] or [type(error).__name__])[0]
