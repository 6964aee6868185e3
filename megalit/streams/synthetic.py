"""LightningDataModules over two streams: the real documents, and a synthetic one.

The synthetic stream has the share ``synthetic_fraction`` of windows. (A simple or stitched stream holds each real
document once itself, as in the paper; the plan says the true share of synthetic tokens.) ``MixtureStream`` mixes any
number.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from megalit.errors import UserError
from megalit.streams.datamodule import StreamDataModule
from megalit.streams.orderings import Ordering, Real
from megalit.streams.run_length import Component
from megalit.streams.schedule import exact


@dataclass(frozen=True)
class Phase:
    """A part of the run with a mixture of its own.

    Attributes:
        share: of the run's steps; the phases' shares sum to 1.
        synthetic_fraction: share of windows from the synthetic stream in this phase.
    """

    share: float
    synthetic_fraction: float


class SyntheticDataModule(StreamDataModule):
    """The real documents and one synthetic stream.

    Args:
        synthetic_fraction: share of windows that come from the synthetic stream.
        phases: parts of the run with fractions of their own; they take the place of ``synthetic_fraction``.
    """

    def __init__(self, synthetic_fraction: float = 0.75, phases: Sequence[Phase] = (), **settings: Any) -> None:
        super().__init__(**settings)
        self.synthetic_fraction = synthetic_fraction
        self.phases = tuple(phases) or (Phase(1.0, synthetic_fraction),)
        for phase in self.phases:
            if not 0 <= phase.synthetic_fraction <= 1:
                raise UserError(f"data.synthetic_fraction is {phase.synthetic_fraction}: choose a value in [0, 1]")
        if any(phase.share <= 0 for phase in self.phases) or sum(exact(phase.share) for phase in self.phases) != 1:
            raise UserError("data.phases: their shares are not positive with a sum of 1: mend them")
        if self.real_epochs is not None and all(phase.synthetic_fraction == 1 for phase in self.phases):
            raise UserError(
                "data.synthetic_fraction is 1, so the real stream is never read and real_epochs has no meaning: "
                "give data.total_tokens instead"
            )

    @abstractmethod
    def synthetic_ordering(self) -> Ordering:
        """The synthetic stream's order."""

    def components(self) -> tuple[list[Component], list[Fraction]]:
        fractions = [exact(phase.synthetic_fraction) for phase in self.phases]
        mixed = [
            Component(Real(), tuple(1 - fraction for fraction in fractions)),
            Component(self.synthetic_ordering(), tuple(fractions)),
        ]
        return [part for part in mixed if any(part.shares)], [exact(phase.share) for phase in self.phases]
