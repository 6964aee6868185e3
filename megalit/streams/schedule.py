"""The schedule: sample *k* of the run -> (stream, its n-th window), in closed form.

Shares are exact fractions. With their common denominator Q the pattern of streams repeats every Q
samples, so one period tells everything. Within it, each sample goes to the stream whose next window
is due first among those that are not ahead of their share (the quota method of apportionment:
Balinski and Young, 1975), which keeps every stream within one window of its share at every sample,
and so after every global batch.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from math import lcm
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megalit.errors import UserError

Integers = npt.NDArray[np.int64]

# Samples in which the paper's order has exact counts.
BLOCK = 2048

# Shares of finer grain than this are refused: the period would outgrow any run.
_LARGEST_PERIOD = 100_000


def exact(share: float) -> Fraction:
    """The fraction that a decimal like 0.75 means, not its nearest binary float."""
    return Fraction(str(share))


class Schedule:
    """Which stream each sample of the run comes from.

    Args:
        shares: of the streams, 0 or more, with a sum of 1.

    Raises:
        UserError: shares that do not sum to 1, or of too fine a grain.
    """

    def __init__(self, shares: Sequence[Fraction]) -> None:
        if sum(shares) != 1 or any(share < 0 for share in shares):
            raise UserError(f"shares {[float(share) for share in shares]} are not 0 or more with a sum of 1")
        period = reduce(lcm, (share.denominator for share in shares))
        if period > _LARGEST_PERIOD:
            raise UserError(f"shares {[float(share) for share in shares]} are too fine: use at most 4 decimals")
        self._stream = _one_period([int(share * period) for share in shares], period)
        chosen = self._stream[:, None] == np.arange(len(shares))
        self._before = np.cumsum(chosen, axis=0) - chosen
        self._per_period = chosen.sum(axis=0)

    def locate(self, samples: Integers) -> tuple[Integers, Integers]:
        """Stream and ordinal (the how-manieth window of that stream) of each sample of the run."""
        cycle, place = np.divmod(samples, len(self._stream))
        stream = self._stream[place]
        return stream, cycle * self._per_period[stream] + self._before[place, stream]

    def counts(self, samples: int) -> Integers:
        """How many of the first ``samples`` samples come from each stream."""
        cycle, place = divmod(samples, len(self._stream))
        partial = self._before[place] if place else np.zeros_like(self._per_period)
        return np.asarray(cycle * self._per_period + partial)


class BlockSchedule:
    """The mixture of the paper's code: exact counts within blocks, each block shuffled.

    Where a share does not divide a block, its windows are rounded down, and the largest share takes what is left, as
    in the paper's training library (levanter, ``MixtureDataset``).

    Args:
        shares: of the streams, 0 or more, with a sum of 1.
        seed: fixes the order in each block.
        block: samples in a block.

    Raises:
        UserError: a share that no window of a block would come from.
    """

    def __init__(self, shares: Sequence[Fraction], seed: int, block: int = BLOCK) -> None:
        self._seed = seed
        self._block = block
        counts = np.array([int(share * block) for share in shares])
        counts[counts.argmax()] += block - counts.sum()
        for share, count in zip(shares, counts, strict=True):
            if share and not count:
                raise UserError(
                    f"a share of {float(share):g} is no window in a block of {block:,}, of which epoch_order paper "
                    "mixes: raise it, or set data.epoch_order to documents"
                )
        self._counts = counts

    def locate(self, samples: Integers) -> tuple[Integers, Integers]:
        """Stream and ordinal of each sample of the run."""
        stream, ordinal = np.empty_like(samples), np.empty_like(samples)
        number, place = np.divmod(samples, self._block)
        for block in np.unique(number):
            here = number == block
            order = self._order(int(block))
            chosen = order[:, None] == np.arange(len(self._counts))
            before = np.cumsum(chosen, axis=0) - chosen
            stream[here] = order[place[here]]
            ordinal[here] = block * self._counts[stream[here]] + before[place[here], stream[here]]
        return stream, ordinal

    def counts(self, samples: int) -> Integers:
        """How many of the first ``samples`` samples come from each stream."""
        blocks, rest = divmod(samples, self._block)
        partial = np.bincount(self._order(blocks)[:rest], minlength=len(self._counts))
        return np.asarray(blocks * self._counts + partial)

    def _order(self, block: int) -> Integers:
        streams = np.repeat(np.arange(len(self._counts)), self._counts)
        return np.random.default_rng([self._seed, block, *b"blocks"]).permutation(streams)


class Mixing(Protocol):
    """Which stream each sample comes from."""

    def locate(self, samples: Integers) -> tuple[Integers, Integers]: ...

    def counts(self, samples: int) -> Integers: ...


class PhasedSchedule:
    """Phases of a run one after the other, each with shares of its own.

    Args:
        phases: samples and mixing of each phase. A stream's windows go on from phase to phase.
    """

    def __init__(self, phases: Sequence[tuple[int, Mixing]]) -> None:
        self._mixings = [mixing for _, mixing in phases]
        counts = [mixing.counts(samples) for samples, mixing in phases]
        self._starts = np.cumsum([0, *(samples for samples, _ in phases)])
        self._before = np.cumsum([np.zeros_like(counts[0]), *counts], axis=0)
        self.samples = int(self._starts[-1])

    def locate(self, samples: Integers) -> tuple[Integers, Integers]:
        """Stream and ordinal (the how-manieth window of that stream) of each sample of the run."""
        if len(self._mixings) == 1:
            return self._mixings[0].locate(samples)
        phase = np.searchsorted(self._starts[1:-1], samples, side="right")
        stream, ordinal = np.empty_like(samples), np.empty_like(samples)
        for number in np.unique(phase):
            here = phase == number
            stream[here], local = self._mixings[number].locate(samples[here] - self._starts[number])
            ordinal[here] = local + self._before[number, stream[here]]
        return stream, ordinal

    def counts(self, samples: int) -> Integers:
        """How many of the first ``samples`` samples of the run come from each stream."""
        phase = int(np.searchsorted(self._starts[1:-1], samples, side="left"))
        return np.asarray(self._before[phase] + self._mixings[phase].counts(samples - int(self._starts[phase])))


def _one_period(quotas: list[int], period: int) -> Integers:
    """Apportion ``period`` samples among streams with these integer quotas."""
    counts = [0] * len(quotas)
    order = np.empty(period, dtype=np.int64)
    for sample in range(period):
        eligible = [i for i, quota in enumerate(quotas) if counts[i] * period < (sample + 1) * quota]
        chosen = min(eligible, key=lambda i: Fraction(counts[i] + 1, quotas[i]))
        counts[chosen] += 1
        order[sample] = chosen
    return order
