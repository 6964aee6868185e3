"""What a recipe's requests are given to."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any

from megalit.errors import UserError
from megalit.synthesis.requests import Completion, Request, Sampling


class EngineError(UserError):
    """The engine is gone: a server that does not answer, a process that died. What was finished is kept."""


class TooLongError(Exception):
    """A request that this model does not complete, because it is too long or otherwise not to its liking.

    It costs that one generation, not the run.
    """


class Engine(ABC):
    """A language model that completes requests, many at a time.

    It is an asynchronous context manager: what it holds is there between entering and leaving.

    Attributes:
        in_flight: how many requests keep it busy; more wait their turn.
    """

    in_flight: int = 64

    @property
    @abstractmethod
    def model(self) -> str:
        """Which model and revision it is: part of every generation's identity. Known before entering."""

    @property
    def settings(self) -> dict[str, Any]:
        """What else changes a completion, as JSON; it stands in the record of each generation."""
        return {}

    @property
    def counts_tokens(self) -> bool:
        """Whether :meth:`count_tokens` counts; some engines can only estimate."""
        return True

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Number of the model's tokens in a text."""

    @abstractmethod
    async def complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        """Complete one request. Any number of calls may be under way.

        Args:
            request: what to complete.
            sampling: how; its own seed plays no part.
            seed: of this request: the same one gives the same text, where the engine can do that.

        Raises:
            EngineError: the model cannot be reached any more.
            TooLongError: this request can never be completed.
            UserError: no request can be completed; the message says why.
        """

    def open(self) -> None:  # noqa: B027 (most have nothing to load)
        """Load what :meth:`count_tokens` needs, if it is not loaded yet; entering does it, too.

        Raises:
            UserError: nothing there to load.
        """

    async def __aenter__(self) -> "Engine":
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None
