"""Loading: a map-style data set over the schedule and a sampler that slices batches by rank.

One loader item is one optimizer step's share of a rank, so the order of windows depends neither on
the number of ranks nor on workers nor on the micro-batch.
"""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from megalit.streams.packing import PackedTokens, split_targets
from megalit.streams.schedule import PhasedSchedule
from megalit.streams.stream import Stream


class Batch(TypedDict):
    """What a model gets.

    ``tokens`` and ``targets``: int32, ``(windows, context_length)``; targets are -100 where they do not count.
    ``provenance``: int32, ``(windows, 4)``: sample of the run, stream, epoch, window.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    provenance: torch.Tensor


# A batch travels from a loader process as one tensor, because each tensor costs a file descriptor and a mapping:
# a window's tokens and its last target, then how many of its first targets do not count, how many tokens were
# written, and its provenance.
_CONTEXT, _WRITTEN, _PROVENANCE = -6, -5, slice(-4, None)
_COLUMNS = 6

# Windows of a suite that are hashed at a time.
_HASHED_WINDOWS = 256


def _room(windows: int, context_length: int) -> npt.NDArray[np.int32]:
    return np.empty((windows, context_length + 1 + _COLUMNS), dtype=np.int32)


def split(packed: torch.Tensor) -> Batch:
    """The batch that a loader's tensor stands for; views of it, where every window is full."""
    rows = packed.numpy()
    tokens, targets = split_targets(rows[:, :-_COLUMNS], rows[:, _WRITTEN], rows[:, _CONTEXT])
    return {
        "tokens": torch.from_numpy(tokens),
        "targets": torch.from_numpy(targets),
        "provenance": torch.from_numpy(rows[:, _PROVENANCE]),
    }


class ScheduledWindows(Dataset[torch.Tensor]):
    """Item ``samples`` is the packed batch of these samples of the run (see :func:`split`)."""

    def __init__(self, streams: list[Stream], schedule: PhasedSchedule) -> None:
        self._streams = streams
        self._schedule = schedule

    def __getitem__(self, samples: Any) -> torch.Tensor:
        wanted = np.asarray(samples, dtype=np.int64)
        numbers, ordinals = self._schedule.locate(wanted)
        out = _room(len(wanted), self._streams[0].context_length)
        out[:, _CONTEXT] = 0
        out[:, -4] = wanted
        out[:, -3] = numbers
        # Mostly one or two groups: a batch spans two epochs of a stream only where one ends.
        keys = [(number, ordinal // self._streams[number].windows) for number, ordinal in _pairs(numbers, ordinals)]
        for number, epoch in dict.fromkeys(keys):
            stream = self._streams[number]
            into = np.array([row for row, key in enumerate(keys) if key == (number, epoch)])
            windows, written = stream.fill(out, into, epoch, ordinals[into] - epoch * stream.windows)
            out[into, -2] = epoch
            out[into, -1] = windows
            out[into, _WRITTEN] = written
        return torch.from_numpy(out)


def _pairs(first: Any, second: Any) -> Iterator[tuple[int, int]]:
    return zip(first.tolist(), second.tolist(), strict=True)


class SuiteWindows(Dataset[torch.Tensor]):
    """The windows of a validation suite, in order; item ``windows`` is the packed batch of these.

    Window -1 is padding: it has tokens and no target.

    Args:
        packed: the suite's documents, end to end.
        context_length: tokens in a window.
        text_bytes: bytes of UTF-8 text behind them.
        separate: start a window with each document, instead of where the last one ended.
        stride: slide: each window but the first of its text predicts so many tokens and has all the others that it
            holds for context, so a token is a target once (default: windows follow each other, without overlap).

    Attributes:
        windows: how many there are.
        targets: how many tokens they predict.
        window_targets: how many each of them predicts, ``(windows,)``.
    """

    def __init__(
        self, packed: PackedTokens, context_length: int, text_bytes: int, separate: bool, stride: int | None = None
    ) -> None:
        self._packed = packed
        self._fingerprint: str | None = None
        self.context_length = context_length
        self.text_bytes = text_bytes
        # A document is BOS, text, EOS: three pieces.
        ends = packed.ends[2::3] if separate else packed.ends[-1:]
        begins = np.concatenate([[0], ends[:-1]])
        predicted = ends - begins - 1
        step = stride or context_length
        counts = 1 + np.maximum(0, -(-(predicted - context_length) // step))
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        text = np.repeat(begins, counts)
        # Targets of a text that were predicted before each window, and when it is done.
        after = np.minimum(context_length + number * step, np.repeat(predicted, counts))
        before = np.where(number > 0, context_length + (number - 1) * step, 0)
        self._begin = text + (before if stride is None else np.maximum(0, after - context_length))
        self._end = text + after + 1
        self._context = text + before - self._begin
        self.windows = len(self._begin)
        self.window_targets = after - before
        self.targets = int(self.window_targets.sum())

    def __getitem__(self, numbers: Any) -> torch.Tensor:
        wanted = np.asarray(numbers, dtype=np.int64)
        out = _room(len(wanted), self.context_length)
        begins = self._begin[wanted]
        # The padding window is a single token, so it has no target.
        ends = np.where(wanted < 0, begins + 1, self._end[wanted])
        self._packed.fill(out, np.arange(len(wanted)), begins, ends)
        out[:, _CONTEXT] = self._context[wanted]
        out[:, _WRITTEN] = ends - begins
        out[:, -4] = out[:, -1] = wanted
        out[:, -3:-1] = 0
        return torch.from_numpy(out)

    @property
    def fingerprint(self) -> str:
        """Changes with any token of any window, and with what counts as a target."""
        if self._fingerprint is None:
            hashed = hashlib.blake2b(digest_size=8)
            for first in range(0, self.windows, _HASHED_WINDOWS):
                numbers = range(first, min(first + _HASHED_WINDOWS, self.windows))
                for name in ("tokens", "targets"):
                    hashed.update(self.batch(numbers)[name].numpy().tobytes())
            self._fingerprint = hashed.hexdigest()
        return self._fingerprint

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These windows, on the CPU."""
        return split(self[numbers])


class GlobalBatchSampler(Sampler[range]):
    """Yields this rank's samples of each global batch, from ``consumed_samples`` on.

    Its length is that of the whole run: Lightning compares it with the number of batches done.

    Args:
        steps: optimizer steps of the plan.
        global_batch: samples in each.
        rank, world_size: this process among all.
        consumed_samples: where a run continues.
        done: optimizer steps that it has done before.
    """

    def __init__(
        self, steps: int, global_batch: int, rank: int, world_size: int, consumed_samples: int = 0, done: int = 0
    ) -> None:
        self._left = (steps * global_batch - consumed_samples) // global_batch
        self._done = done
        self._global_batch = global_batch
        self._start = rank * (global_batch // world_size)
        self._stop = self._start + global_batch // world_size
        self._consumed_samples = consumed_samples

    def __len__(self) -> int:
        return self._done + self._left

    def __iter__(self) -> Iterator[range]:
        for step in range(self._left):
            first = self._consumed_samples + step * self._global_batch
            yield range(first + self._start, first + self._stop)


class SuiteSampler(Sampler[Sequence[int]]):
    """Yields this rank's windows of a validation suite in batches; no window twice, none left out.

    Every rank has as many batches as the others, of as many windows: a sharded model runs on all ranks at once, and
    each pass of one waits for all others. Where windows run out, a batch is filled with the padding window, number -1.
    """

    def __init__(self, windows: int, batch: int, rank: int, world_size: int) -> None:
        batch = max(1, min(batch, -(-windows // world_size)))
        parts = [range(first, min(first + batch, windows)) for first in range(0, windows, batch)]
        self._batches: list[Sequence[int]] = []
        for first in range(0, max(1, len(parts)), world_size):
            together = parts[first : first + world_size]
            own = together[rank] if rank < len(together) else range(0)
            longest = len(together[0]) if together else 1
            self._batches.append([*own, *[-1] * (longest - len(own))])

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self._batches)


def _leave_signals_to_training(worker: int) -> None:
    """Let a loader process end when the training process ends it, and not when somebody signals the whole job.

    SLURM signals every process of a step; a loader process that died of it would take training with it, unsaved.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class BatchLoader:
    """A loader of batches, whose position lies in its sampler.

    Lightning asks a loader for its state when it saves in mid-epoch. The position of the run is the data module's
    state (consumed samples), so there is nothing to add here.
    """

    def __init__(self, dataset: Dataset[torch.Tensor], sampler: Sampler[Any], num_workers: int = 0) -> None:
        self.dataset = dataset
        self._sampler: Any = sampler
        self._loader = DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            # A copy of all tokens would be sent to a process that is not forked, as is the default from Python 3.14 on.
            multiprocessing_context="fork" if num_workers else None,
            worker_init_fn=_leave_signals_to_training,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        if self._loader.num_workers or self._loader.pin_memory:
            return map(split, self._loader)
        # In process there is nothing for a DataLoader to do.
        return (split(self.dataset[samples]) for samples in self._sampler)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
