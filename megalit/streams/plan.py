"""The plan of a run: what will be read, how often, in how many steps, before anything is trained."""

from dataclasses import asdict, dataclass
from typing import Any

from megalit.differences import differences
from megalit.files import fingerprint

# Of a stream, where documents have fewer than are asked for: how many one has on average, and at most.
GENERATIONS = "generations_per_document"
MOST_GENERATIONS = "most_generations"
# Of a stream of latent thoughts: how many a document has on average.
THOUGHTS = "thoughts_per_document"
_TOLD = (GENERATIONS, MOST_GENERATIONS, THOUGHTS)


@dataclass(frozen=True)
class StreamPlan:
    """One stream's part in a run.

    Attributes:
        name: the ordering's name.
        share: of the run's windows.
        unique_tokens: in one epoch of the stream.
        synthetic_fraction: share of its tokens that a model or a recipe wrote.
        windows_per_epoch: windows in one epoch.
        windows: read during the run.
    """

    name: str
    share: float
    unique_tokens: int
    synthetic_fraction: float
    windows_per_epoch: int
    windows: int

    @property
    def epochs(self) -> float:
        return self.windows / self.windows_per_epoch


@dataclass(frozen=True)
class RunPlan:
    """The whole run.

    Attributes:
        streams: their parts.
        context_length: tokens per window.
        global_batch: windows per optimizer step, over all devices.
        steps: optimizer steps.
        vocabulary_size: of the stores.
        bos: token that each document begins with.
        unique_real_tokens: tokens of the real training documents, BOS and EOS included.
        settings: everything the order of windows depends on.
    """

    streams: tuple[StreamPlan, ...]
    context_length: int
    global_batch: int
    steps: int
    vocabulary_size: int
    bos: int
    unique_real_tokens: int
    settings: dict[str, Any]

    @property
    def tokenizer(self) -> str | None:
        """Fingerprint of the tokenizer that made the stores; None for stores that are assumed."""
        return self.settings.get("tokenizer")

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model, padding included."""
        return self.steps * self.global_batch * self.context_length

    @property
    def synthetic_share(self) -> float:
        """True share of synthetic tokens: real documents inside a synthetic stream count as real."""
        total = sum(stream.windows for stream in self.streams)
        return sum(stream.windows * stream.synthetic_fraction for stream in self.streams) / total

    @property
    def fingerprint(self) -> str:
        """Two runs with the same fingerprint read the same windows in the same order."""
        return fingerprint(what_is_read(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def first_difference(self, other: dict[str, Any]) -> str | None:
        """Name the first thing in which an earlier plan (as JSON) differs from this one."""
        return difference(what_is_read(other), what_is_read(self.to_json()))


def what_is_read(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan, as JSON, without what it only tells of its streams, which depends on who built the stores."""
    settings = plan.get("settings", {})
    if "streams" not in settings:
        return plan
    streams = [{key: value for key, value in told.items() if key not in _TOLD} for told in settings["streams"]]
    return {**plan, "settings": {**settings, "streams": streams}}


def difference(then: Any, now: Any) -> str | None:
    """Name the first thing in which two values of JSON differ, with what it was and what it is."""
    for path, before, after in differences(then, now):
        return f"{path} was {before!r} and is {after!r}"
    return None
