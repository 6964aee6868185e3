"""Loading: a map-style data set over the schedule and a sampler that slices batches by rank.

One loader item is one optimizer step's share of a rank, so the order of windows depends neither on
the number of ranks nor on workers nor on the micro-batch.
"""

from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from megalit.streams.packing import PackedTokens, TokenSource
from megalit.streams.schedule import Schedule
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

    def __init__(self, streams: list[Stream], schedule: Schedule) -> None:
        self._streams = streams
        self._schedule = schedule

    def __getitem__(self, samples: Any) -> Batch:
        wanted = np.asarray(samples, dtype=np.int64)
        numbers, ordinals = self._schedule.locate(wanted)
        rows = []
        for sample, number, ordinal in zip(wanted, numbers, ordinals, strict=True):
            stream = self._streams[number]
            epoch, position = divmod(int(ordinal), stream.windows)
            tokens, targets, window = stream.window(epoch, position)
            rows.append((tokens, targets, (sample, number, epoch, window)))
        return _stack(rows)


class SuiteWindows(Dataset[Batch]):
    """The windows of a validation suite, in order; item ``windows`` is the batch of these."""

    def __init__(self, packed: PackedTokens, context_length: int, sources: list[TokenSource]) -> None:
        self._packed = packed
        self._context_length = context_length
        self._sources = sources
        self.windows = packed.windows(context_length)
        # Every token but the first.
        self.targets = packed.tokens - 1

    def __getitem__(self, windows: Any) -> Batch:
        rows = []
        for window in windows:
            tokens, targets = self._packed.window(int(window), self._context_length, self._sources)
            rows.append((tokens, targets, (window, 0, 0, window)))
        return _stack(rows)


def _stack(rows: list[Any]) -> Batch:
    return {
        "tokens": torch.from_numpy(np.stack([row[0] for row in rows])),
        "targets": torch.from_numpy(np.stack([row[1] for row in rows])),
        "provenance": torch.from_numpy(np.array([row[2] for row in rows], dtype=np.int64)),
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
