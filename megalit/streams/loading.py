"""Loading: a map-style data set over the schedule and a sampler that slices batches by rank.

One loader item is one optimizer step's share of a rank, so the order of windows depends neither on
the number of ranks nor on workers nor on the micro-batch.
"""

from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from megalit.streams.packing import PackedTokens, split_targets
from megalit.streams.schedule import PhasedSchedule
from megalit.streams.stream import Stream


class Batch(TypedDict):
    """What a model gets.

    ``tokens`` and ``targets``: int64, ``(windows, context_length)``; targets are -100 where they do
    not count. ``provenance``: int64, ``(windows, 4)``: sample of the run, stream, epoch, window.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    provenance: torch.Tensor


class ScheduledWindows(Dataset[Batch]):
    """Item ``samples`` is the batch of these samples of the run."""

    def __init__(self, streams: list[Stream], schedule: PhasedSchedule) -> None:
        self._streams = streams
        self._schedule = schedule

    def __getitem__(self, samples: Any) -> Batch:
        wanted = np.asarray(samples, dtype=np.int64)
        numbers, ordinals = self._schedule.locate(wanted)
        windows = np.empty((len(wanted), self._streams[0].context_length + 1), dtype=np.int64)
        written = np.empty(len(wanted), dtype=np.int64)
        provenance = np.empty((len(wanted), 4), dtype=np.int64)
        for row, (sample, number, ordinal) in enumerate(
            zip(wanted.tolist(), numbers.tolist(), ordinals.tolist(), strict=True)
        ):
            stream = self._streams[number]
            epoch, position = divmod(ordinal, stream.windows)
            window, written[row] = stream.fill(windows[row], epoch, position)
            provenance[row] = sample, number, epoch, window
        return _batch(windows, written, provenance)


class SuiteWindows(Dataset[Batch]):
    """The windows of a validation suite, in order; item ``windows`` is the batch of these.

    Args:
        packed: the suite's documents, end to end.
        context_length: tokens in a window.
        text_bytes: bytes of UTF-8 text behind them.
        separate: start a window with each document, instead of where the last one ended.

    Attributes:
        windows: how many there are.
        targets: how many tokens they predict.
    """

    def __init__(self, packed: PackedTokens, context_length: int, text_bytes: int, separate: bool) -> None:
        self._packed = packed
        self._context_length = context_length
        self.text_bytes = text_bytes
        # A document is BOS, text, EOS: three pieces.
        ends = packed.ends[2::3] if separate else packed.ends[-1:]
        begins = np.concatenate([[0], ends[:-1]])
        counts = -(-(ends - begins - 1) // context_length)
        self._begin = np.repeat(begins, counts) + context_length * (
            np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        )
        self._end = np.minimum(self._begin + context_length + 1, np.repeat(ends, counts))
        self.windows = len(self._begin)
        self.targets = int((self._end - self._begin - 1).sum())

    def __getitem__(self, numbers: Any) -> Batch:
        windows = np.empty((len(numbers), self._context_length + 1), dtype=np.int64)
        written = np.empty(len(numbers), dtype=np.int64)
        provenance = np.empty((len(numbers), 4), dtype=np.int64)
        for row, number in enumerate(numbers):
            written[row] = self._packed.fill(windows[row], int(self._begin[number]), int(self._end[number]))
            provenance[row] = number, 0, 0, number
        return _batch(windows, written, provenance)


def _batch(windows: Any, written: Any, provenance: Any) -> Batch:
    tokens, targets = split_targets(windows, written)
    return {
        "tokens": torch.from_numpy(tokens),
        "targets": torch.from_numpy(targets),
        "provenance": torch.from_numpy(provenance),
    }


class GlobalBatchSampler(Sampler[range]):
    """Yields this rank's samples of each global batch, from ``consumed_samples`` on.

    Its length is that of the whole run: Lightning compares it with the number of batches done.
    """

    def __init__(self, steps: int, global_batch: int, rank: int, world_size: int, consumed_samples: int = 0) -> None:
        self._steps = steps
        self._global_batch = global_batch
        self._start = rank * (global_batch // world_size)
        self._stop = self._start + global_batch // world_size
        self._consumed_samples = consumed_samples

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[range]:
        for first in range(self._consumed_samples, self._steps * self._global_batch, self._global_batch):
            yield range(first + self._start, first + self._stop)


class SuiteSampler(Sampler[range]):
    """Yields this rank's windows of a validation suite in batches; no window twice, none left out."""

    def __init__(self, windows: int, batch: int, rank: int, world_size: int) -> None:
        self._ranges = [range(first, min(first + batch, windows)) for first in range(0, windows, batch)]
        self._ranges = self._ranges[rank::world_size]

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[range]:
        return iter(self._ranges)


class ResumableLoader(DataLoader[Batch]):
    """A loader whose position lies in its sampler.

    Lightning asks a loader for its state when it saves in mid-epoch. The position of the run is the
    data module's state (consumed samples), so there is nothing to add here.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
