"""What a generation run is to make, how far it is, and how it is divided."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from megalit.corpus.tables import TRAIN, Corpus
from megalit.errors import UserError
from megalit.files import fingerprint
from megalit.synthesis.cleaning import Cleaning
from megalit.synthesis.engines import Engine
from megalit.synthesis.items import Item, Recipe, Source
from megalit.synthesis.ledger import Ledger
from megalit.synthesis.requests import Sampling


@dataclass(frozen=True)
class Work:
    """What is to be made, and how.

    Attributes:
        recipe, engine, sampling, cleaning: who asks, who answers, how, and what is kept.
        count: generations of each document, or samples where nothing else bounds them.
        total_tokens: samples are drawn until they have so many tokens; None for ``count`` of them.
        attempts: tries that each request of a generation has.
        redo: make again what was made with other settings.
        retry_refused: try again what the model refused.
    """

    recipe: Recipe
    engine: Engine
    sampling: Sampling
    cleaning: Cleaning
    count: int
    total_tokens: int | None = None
    attempts: int = 3
    redo: bool = False
    retry_refused: bool = False

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

    def ledger(self, only: Set[bytes] | None = None, retry_refused: bool = False) -> Ledger:
        return Ledger(self.attempts, self.fingerprint, self.redo, only, retry_refused)


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


def sources(corpus: Corpus, shard: Shard | None = None, texts: bool = True) -> Iterator[Source]:
    """The training documents, in order: nothing is made from a document that is held out.

    Args:
        shard: whose documents; None for all.
        texts: whether their texts are wanted, which take time to read.
    """
    mine = shard or Shard()
    rows = corpus.rows("documents", TRAIN, ["id", "content_hash", *(["text"] if texts else [])])
    for row in islice(rows, mine.number, None, mine.of):
        yield Source(row["id"], row["content_hash"], row.get("text", ""))


def document_items(work: Work, documents: Iterable[Source]) -> Iterator[Item]:
    """The generations of each document, side by side, so that their common prompt stays in the engine's cache."""
    indices = work.recipe.indices(work.count)
    for source in documents:
        for index in indices:
            yield Item(source, index)
