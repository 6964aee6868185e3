"""What a recipe works on, and what comes of it."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from megalit.synthesis.requests import Completion, Request

TokenCounter = Callable[[str], int]
Kind = Literal["generations", "thoughts", "samples"]


@dataclass(frozen=True)
class Source:
    """A real document."""

    id: str
    content_hash: str
    text: str


@dataclass(frozen=True)
class Item:
    """One generation to be made.

    Attributes:
        source: the document it is made from; None for what has no source.
        index: its number among the document's generations, or among all samples.
    """

    source: Source | None
    index: int

    def identity(self, recipe: str, model: str) -> str:
        """What this generation is, whatever the settings of sampling: 32 hex digits.

        Args:
            recipe: the recipe's :attr:`Recipe.version`.
            model: the engine's :attr:`~megalit.synthesis.engines.Engine.model`.
        """
        source = [self.source.id, self.source.content_hash] if self.source else None
        key = json.dumps([source, recipe, model, self.index]).encode()
        return hashlib.sha256(key).hexdigest()[:32]


@dataclass(frozen=True)
class Generated:
    """A finished generation.

    Attributes:
        text: of the generation.
        character_offset: for a thought, where in the document it belongs.
    """

    text: str
    character_offset: int | None = None


@dataclass(frozen=True)
class Rejected:
    """An attempt that gave nothing worth keeping.

    Attributes:
        reason: why, in a few words.
        final: another attempt would give nothing either.
    """

    reason: str
    final: bool = False


Outcome = Generated | Rejected
Steps = Generator[Sequence[Request], Sequence[Completion], Outcome]


class Recipe(ABC):
    """Turns an item into a generation by asking a language model.

    A recipe is pure: what it asks and returns depends on its settings, the item and the completions alone. So any
    engine can drive it, and after a crash it is driven again with the completions that were kept.

    Attributes:
        name: of the recipe, kept with each generation.
        kind: ``generations`` and ``thoughts`` are made from documents, ``samples`` from nothing.
    """

    kind: ClassVar[Kind] = "generations"

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def version(self) -> str:
        """Changes with everything that changes what is asked: name, settings, templates."""

    @abstractmethod
    def run(self, item: Item, count_tokens: TokenCounter) -> Steps:
        """Yield requests, receive their completions in the same order, maybe again, and return the outcome.

        Args:
            item: what to make.
            count_tokens: number of the model's tokens in a text.
        """

    def check(self) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuse settings that cannot work.

        Raises:
            UserError: the message names the setting.
        """

    def indices(self, count: int) -> range:
        """The generation indices of each document when ``count`` are asked for."""
        return range(count)


def source_of(item: Item) -> Source:
    """The item's document, for recipes that need one."""
    assert item.source is not None, "this recipe works on documents"
    return item.source
