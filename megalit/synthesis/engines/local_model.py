"""What the engines that hold a model share: which one it is, its tokenizer, and prompts as token ids."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megalit.errors import UserError, reason
from megalit.files import fingerprint
from megalit.synthesis.cleaning import THINKING
from megalit.synthesis.engines.base import Engine
from megalit.synthesis.requests import Message, Request

# In the chat template of a model that thinks and answers in channels (gpt-oss); to be told apart, they must be seen.
_CHANNEL = "<|channel|>"
# Of each file so much at either end tells one model from another; weights are too large to be read whole.
_ENDS = 1 << 20


def model_identity(model: str, revision: str | None) -> str:
    """A hub name with its revision, or a folder with a fingerprint of what lies there.

    Raises:
        UserError: a path without a model.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model.startswith((".", "/", "~")):
            raise UserError(f"engine.model {model} does not exist: give a folder in the Hugging Face format, or a name")
        return f"{model}@{revision or 'main'}"
    if not (folder / "config.json").exists():
        raise UserError(f"engine.model {model} holds no config.json: give a folder in the Hugging Face format")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin", ".model"))
    return f"{folder.name}@{fingerprint([[path.name, path.stat().st_size, _ends(path)] for path in files])}"


def _ends(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(_ENDS)
        file.seek(max(0, path.stat().st_size - _ENDS))
        return hashlib.sha256(start + file.read()).hexdigest()


class PromptEncoder:
    """A model's tokenizer, for prompts.

    Args:
        model: folder or hub name.
        revision: of a hub name.
        chat: render conversations with the model's chat template; a base model has none and takes the messages' texts.
        template: further variables of the chat template.
        trust_remote_code: run code that comes with the tokenizer.
        setting: which setting names the model, for what is said of it.

    Attributes:
        eos, bos: their ids; BOS is EOS where there is none.
        skip_special_tokens: whether a completion is decoded without them.

    Raises:
        UserError: no tokenizer there, or no chat template where one is asked for.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        chat: bool,
        template: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        setting: str = "engine.model",
    ) -> None:
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(Path(model).expanduser()), revision=revision or "main", trust_remote_code=trust_remote_code
            )
        except Exception as error:
            raise UserError(
                f"the tokenizer of {setting} {model} cannot be loaded ({reason(error)}): check it"
            ) from error
        if chat and not tokenizer.chat_template:
            raise UserError(f"engine.model {model} has no chat template: set engine.chat false for a base model")
        self._tokenizer = tokenizer
        self._chat = chat
        self._template = dict(template or {})
        # Without special tokens, channels cannot be told from the text.
        self.skip_special_tokens = not (chat and _CHANNEL in str(tokenizer.chat_template))
        self.eos: int | None = tokenizer.eos_token_id
        self.bos: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos

    def count(self, text: str) -> int:
        """Number of tokens in a text."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(self, request: Request) -> list[int]:
        """The prompt's token ids, at least one.

        Raises:
            UserError: an empty request, and a model that knows neither BOS nor EOS.
        """
        if not request.messages:
            if self.bos is None:
                raise UserError("the model has no BOS token to begin from: set bos_token in its tokenizer_config.json")
            return [self.bos]
        if self._chat:
            # The template writes BOS itself.
            return list(self._tokenizer(self._rendered(request.messages), add_special_tokens=False)["input_ids"])
        tokens = list(self._tokenizer(plain_text(request.messages), add_special_tokens=False)["input_ids"])
        return tokens if self.bos is None else [self.bos, *tokens]

    def _rendered(self, messages: Sequence[Message]) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        settings = {"add_generation_prompt": True, "tokenize": False, **self._template}
        return str(self._tokenizer.apply_chat_template(turns, **settings))

    def opens_thoughts(self) -> bool:
        """Whether the chat template, where there is one, ends a prompt within the thought of a reasoning model."""
        from jinja2 import TemplateError

        try:
            return bool(self._tokenizer.chat_template) and _is_opened(self._rendered((Message("user", "?"),)))
        except (TemplateError, ValueError, TypeError):
            return False  # of a template that takes no such conversation nothing is known

    def opened(self, prompt: Sequence[int]) -> str:
        """What a prompt has opened that belongs to its completion: the thought of a reasoning model."""
        return THINKING if _is_opened(str(self._tokenizer.decode(prompt[-8:]))) else ""

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=self.skip_special_tokens))


def _is_opened(prompt: str) -> bool:
    return prompt.rstrip().endswith(THINKING)


class LocalModel(Engine):
    """An engine that holds a model: what it is called, and its tokenizer.

    Args:
        model: folder in the Hugging Face format, or a hub name.
        revision: of a hub name.
        chat: render requests with the model's chat template.
        template: further variables of that template.
        trust_remote_code: run code that comes with the tokenizer.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        chat: bool,
        template: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._name = os.path.expanduser(model)  # noqa: PTH111 (a hub name is no path)
        self._revision = revision
        self._chat = chat
        self._template = template or {}
        self._own_code = trust_remote_code
        self._encoder: PromptEncoder | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {"chat": self._chat, **({"template": self._template} if self._template else {})}

    @property
    def model(self) -> str:
        return model_identity(self._name, self._revision)

    def open(self) -> None:
        if self._encoder is None:
            self._encoder = PromptEncoder(self._name, self._revision, self._chat, self._template, self._own_code)

    def count_tokens(self, text: str) -> int:
        assert self._encoder is not None
        return self._encoder.count(text)


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation for a base model: what was said, paragraph by paragraph."""
    return "\n\n".join(message.content for message in messages) + "\n\n"


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop text, and whether there was one."""
    found = [at for at in (text.find(mark) for mark in stop) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)
