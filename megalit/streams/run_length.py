"""How long a run is: steps, schedule and each stream's part, from sizes alone.

Streams of real stores and streams that are only assumed (:mod:`megalit.streams.assumed`) come through here alike, so
that what is predicted before the data is there is what will be read when it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from typing import Literal, Protocol

from megalit.errors import UserError
from megalit.streams.orderings import Ordering, Real
from megalit.streams.plan import StreamPlan
from megalit.streams.schedule import BLOCK, BlockSchedule, Mixing, PhasedSchedule, Schedule
from megalit.streams.stream import EpochOrder

DocumentOrder = Literal["permuted", "related"]


@dataclass(frozen=True)
class Component:
    """A stream's part in the mixture.

    Attributes:
        ordering: the order of its pieces.
        shares: of the run's windows, one for each phase.
        stores: folder of its stores, if they are not the mixture's own.
    """

    ordering: Ordering
    shares: tuple[Fraction, ...]
    stores: str | None = None


@dataclass(frozen=True)
class MixtureSettings:
    """What all streams of a mixture share; see :class:`megalit.streams.datamodule.StreamDataModule`."""

    stores: str
    context_length: int
    global_batch: int
    real_epochs: float | None
    total_tokens: int | None
    epoch_order: EpochOrder
    seed: int
    real_fraction: float
    separate_validation: bool
    document_order: DocumentOrder
    embeddings: str | None
    sets: tuple[str, ...] | None = None


class SizedStream(Protocol):
    """What a run's length depends on of a stream: tokens and windows of one epoch."""

    @property
    def name(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def synthetic_tokens(self) -> int: ...
    @property
    def windows(self) -> int: ...


def steps_of(
    settings: MixtureSettings,
    components: Sequence[Component],
    phases: Sequence[Fraction],
    windows: Sequence[int],
    real_tokens: int,
) -> int:
    """Optimizer steps of a run.

    Args:
        settings, components, phases: of the mixture.
        windows: in one epoch of each component.
        real_tokens: of the real documents, BOS and EOS included.

    Raises:
        UserError: real epochs without a real stream, or a run without a step.
    """
    if settings.total_tokens is not None:
        return ceil(Fraction(settings.total_tokens, settings.context_length * settings.global_batch))
    assert settings.real_epochs is not None
    own = (None, settings.stores)
    number = next((n for n, c in enumerate(components) if isinstance(c.ordering, Real) and c.stores in own), None)
    share = Fraction(0)
    if number is not None:
        share = sum((p * s for p, s in zip(phases, components[number].shares, strict=True)), Fraction(0))
    if number is None or not share:
        raise UserError("data.real_epochs is given and no real stream is in the mixture: give data.total_tokens")
    epochs = Fraction(str(settings.real_epochs))
    if settings.epoch_order == "paper":
        steps = paper_steps(real_tokens, settings.context_length * settings.global_batch, epochs, share)
    else:
        steps = ceil(windows[number] * epochs / share / settings.global_batch)
    if not steps:
        raise UserError("the run has no step: raise data.real_epochs or lower data.global_batch")
    return steps


def paper_steps(real_tokens: int, batch_tokens: int, real_epochs: Fraction, real_share: Fraction) -> int:
    """Steps of a run in the paper's order (arXiv 2603.18534): the incomplete last batch of an epoch is dropped."""
    return floor(real_tokens // batch_tokens * real_epochs / real_share)


def schedule_of(
    settings: MixtureSettings, components: Sequence[Component], phases: Sequence[Fraction], steps: int
) -> PhasedSchedule:
    """Which stream each sample of a run of ``steps`` comes from."""
    edges = [round(sum(phases[:end]) * steps) for end in range(len(phases) + 1)]
    parts: list[tuple[int, Mixing]] = []
    for number, (first, last) in enumerate(pairwise(edges)):
        shares = [component.shares[number] for component in components]
        mixing: Mixing = BlockSchedule(shares, settings.seed) if settings.epoch_order == "paper" else Schedule(shares)
        parts.append(((last - first) * settings.global_batch, mixing))
    return PhasedSchedule(parts)


def describe_blocks(settings: MixtureSettings, components: Sequence[Component]) -> dict[str, str]:
    """For the plan: tells runs in the paper's order from those of before their blocks were rounded as the paper's."""
    shares = [share for component in components for share in component.shares]
    is_rounded = settings.epoch_order == "paper" and any((share * BLOCK).denominator > 1 for share in shares)
    return {"blocks": "the largest share takes what is left"} if is_rounded else {}


def stream_plans(streams: Sequence[SizedStream], schedule: PhasedSchedule) -> tuple[StreamPlan, ...]:
    """Each stream's part in the run."""
    counts = schedule.counts(schedule.samples)
    return tuple(
        StreamPlan(
            name=stream.name,
            share=int(count) / schedule.samples,
            unique_tokens=stream.tokens,
            synthetic_fraction=stream.synthetic_tokens / stream.tokens,
            windows_per_epoch=stream.windows,
            windows=int(count),
        )
        for stream, count in zip(streams, counts, strict=True)
    )
