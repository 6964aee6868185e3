"""Plans of epochs at growing sizes: the arrays that runs use, and an epoch in closed form, for data that outgrows them.

No token is stored: plans depend on lengths alone. Three parts, each checked before it is timed:

1. ``arrays``: a stitched epoch as runs plan it: time, peak memory and size, for growing numbers of generations.
2. ``closed_form``: the same kind of epoch without arrays. The order of documents and of windows are keyed permutations
   (a Feistel network with cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), and only
   every 256th document's first token is kept. Its windows are compared with those of the same order laid out whole.
3. ``ranks``: the first batch of every rank of a large run, one after the other.

Times are of the processor, not of the clock, so that they mean the same on a busy machine. Prints one JSON line.

    python benchmarks/plan_scale.py
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from memory import PeakMemory
from synthetic import GENERATION_MEAN, REAL_MEAN, write_stores

from megalit.streams import StitchedStream
from megalit.streams.loading import GlobalBatchSampler, ScheduledWindows
from megalit.streams.orderings import Stitched
from megalit.streams.packing import PackedTokens
from megalit.streams.pieces import LITERALS, Group, PieceTable, PieceTables

GENERATIONS, CONTEXT = 32, 4096
# Documents between two kept positions.
STRIDE = 256

Integers = npt.NDArray[np.int64]


def lengths_of(documents: int, random: np.random.Generator) -> npt.NDArray[np.int32]:
    """Tokens of each document and its generations, ``(documents, 1 + generations)``, as in the megadocs paper."""
    means = np.array([REAL_MEAN, *[GENERATION_MEAN] * GENERATIONS])
    found = random.lognormal(np.log(means) - 0.32, 0.8, size=(documents, len(means)))
    return np.maximum(1, found).astype(np.int32)


# Arrays ------------------------------------------------------------------------------------------------


def tables_of(lengths: npt.NDArray[np.int32]) -> PieceTables:
    """A table of pieces whose tokens lie nowhere."""
    documents, pieces = lengths.shape
    literals = np.array([1, 1, 2, 0, 0, 0], dtype=np.int32)
    length = np.concatenate([literals, lengths[:, 0], lengths[:, 1:].ravel()])
    nothing = np.zeros(0, dtype=np.int32)
    table = PieceTable([], nothing.astype(np.uint16), nothing.astype(np.uint32), length, nothing, nothing)
    ones, none = np.ones(documents, dtype=np.int64), np.zeros(documents, dtype=np.int64)
    real = Group(LITERALS, np.arange(documents), ones)
    generations = Group(LITERALS + documents, np.arange(documents) * (pieces - 1), ones * (pieces - 1))
    empty = Group(len(length), none, none)
    stores: Any = None
    return PieceTables(stores, np.arange(documents), table, real, generations, empty, empty, empty)


def measure_arrays(documents: int) -> dict[str, Any]:
    tables = tables_of(lengths_of(documents, np.random.default_rng(0)))
    began = time.process_time()
    with PeakMemory() as memory:
        random = np.random.default_rng(1)
        rows = Stitched(GENERATIONS).rows(tables, random, random)
        packed = PackedTokens.of(tables.table, rows)
        windows = random.permutation(np.arange(packed.windows(CONTEXT)))
    seconds = time.process_time() - began
    assert len(windows) == -(-(int(tables.table.length[rows].sum(dtype=np.int64)) - 1) // CONTEXT)
    size = rows.nbytes + packed.ends.nbytes + windows.nbytes
    return {
        "generations": documents * GENERATIONS,
        "cpu_seconds": round(seconds, 2),
        "peak_mb": round(memory.megabytes),
        "arrays_mb": round(size / 1e6),
        "bytes_a_generation": round(size / (documents * GENERATIONS), 1),
    }


# Closed form -------------------------------------------------------------------------------------------


class Permutation:
    """A permutation of ``0 … size - 1`` that is computed where it is needed."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        half = max(1, -(-(size - 1).bit_length() // 2))
        self._shift, self._mask = np.uint64(half), np.uint64(2**half - 1)
        self._keys = np.random.default_rng(seed).integers(2**63, size=4, dtype=np.uint64)

    def __getitem__(self, positions: Integers) -> Integers:
        values = positions.astype(np.uint64)
        outside = np.arange(len(values))
        while len(outside):
            # Walk on until inside: the network permutes a power of four, less than four times as large.
            values[outside] = self._network(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _network(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self._shift, values & self._mask
        for key in self._keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & self._mask)
        return (left << self._shift) | right


class ClosedForm:
    """An epoch of megadocs of these lengths: where a window begins, from 8 bytes for 256 documents.

    Args:
        megadocs: tokens of each document's megadoc, delimiters included; it may be a mapped file.
        seed: fixes both orders.
    """

    def __init__(self, megadocs: npt.NDArray[np.int32], seed: int, part: int = 1 << 20) -> None:
        self._megadocs = megadocs
        self.documents = Permutation(len(megadocs), seed)
        kept, total = [], 0
        for first in range(0, len(megadocs), part):
            tokens = megadocs[self.documents[np.arange(first, min(first + part, len(megadocs)))]]
            ends = np.cumsum(tokens, dtype=np.int64)
            kept.append(total + (ends - tokens)[::STRIDE])
            total += int(ends[-1])
        self.starts = np.concatenate(kept)
        self.tokens = total
        self.windows = Permutation(-(-(total - 1) // CONTEXT), seed + 1)

    def window(self, place: int) -> tuple[int, int]:
        """The document in which the window at a place of the epoch begins, and the token there."""
        begin = int(self.windows[np.array([place])][0]) * CONTEXT
        block = int(np.searchsorted(self.starts, begin, side="right")) - 1
        positions = np.arange(block * STRIDE, min((block + 1) * STRIDE, len(self._megadocs)))
        documents = self.documents[positions]
        ends = self.starts[block] + np.cumsum(self._megadocs[documents], dtype=np.int64)
        inside = int(np.searchsorted(ends, begin, side="right"))
        return int(documents[inside]), begin - int(ends[inside] - self._megadocs[documents[inside]])


def check_closed_form() -> None:
    """Its windows are those of the same order laid out whole."""
    megadocs = lengths_of(5000, np.random.default_rng(0)).sum(axis=1, dtype=np.int32)
    epoch = ClosedForm(megadocs, seed=3, part=STRIDE)
    order = epoch.documents[np.arange(len(megadocs))]
    assert (np.sort(order) == np.arange(len(megadocs))).all()
    ends = np.cumsum(megadocs[order], dtype=np.int64)
    windows = epoch.windows[np.arange(epoch.windows.size)]
    assert (np.sort(windows) == np.arange(epoch.windows.size)).all()
    assert epoch.windows.size == -(-(int(ends[-1]) - 1) // CONTEXT)
    for place in range(0, epoch.windows.size, 37):
        begin = int(windows[place]) * CONTEXT
        number = int(np.searchsorted(ends, begin, side="right"))
        start = int(ends[number]) - int(megadocs[order[number]])
        assert epoch.window(place) == (int(order[number]), begin - start)


def measure_closed_form(documents: int, lookups: int = 2000) -> dict[str, Any]:
    random = np.random.default_rng(0)
    mean = REAL_MEAN + GENERATIONS * GENERATION_MEAN
    megadocs = random.integers(mean // 2, mean * 3 // 2, size=documents, dtype=np.int32)
    began = time.process_time()
    with PeakMemory() as memory:
        epoch = ClosedForm(megadocs, seed=1)
    seconds = time.process_time() - began
    places = random.integers(epoch.windows.size, size=lookups)
    began = time.process_time()
    for place in places.tolist():
        epoch.window(place)
    a_window = (time.process_time() - began) / lookups
    return {
        "generations": documents * GENERATIONS,
        "cpu_seconds": round(seconds, 2),
        "peak_mb": round(memory.megabytes),
        "lengths_mb": round(megadocs.nbytes / 1e6, 1),
        "kept_mb": round(epoch.starts.nbytes / 1e6, 3),
        "window_cpu_us": round(a_window * 1e6),
    }


# Ranks -------------------------------------------------------------------------------------------------


def measure_ranks(ranks: int) -> dict[str, Any]:
    """The first batch of every rank; together they are the global batch, each sample once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MEGALIT_PLANS"] = str(folder / "plans")
        write_stores(folder / "stores", 20_000, 4, scale=0.05)
        batch = 1024 * (-(-ranks // 1024))
        data = StitchedStream(stores=str(folder / "stores"), context_length=128, global_batch=batch, real_epochs=4)
        data.setup("validate")
        mixture = data.mixture
        windows = ScheduledWindows(mixture.streams, mixture.schedule)
        world = next(size for size in range(ranks, batch + 1) if batch % size == 0)
        seen, seconds = [], []
        for rank in range(world):
            began = time.process_time()
            samples = next(iter(GlobalBatchSampler(data.plan.steps, batch, rank, world)))
            rows = windows[samples]
            seconds.append(time.process_time() - began)
            seen += rows[:, -4].tolist()
        assert seen == list(range(batch))
        mixture.forget_plans()
        return {"ranks": world, "global_batch": batch, "a_rank_cpu_ms": round(1000 * sorted(seconds)[world // 2], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[62_500, 250_000, 1_000_000])
    parser.add_argument("--closed_form_documents", type=int, nargs="+", default=[1_000_000, 16_000_000, 312_500_000])
    parser.add_argument("--ranks", type=int, default=1000)
    arguments = parser.parse_args()
    check_closed_form()
    result = {
        "benchmark": "plan_scale",
        "arrays": [measure_arrays(count) for count in arguments.documents],
        "closed_form": [measure_closed_form(count) for count in arguments.closed_form_documents],
        "ranks": measure_ranks(arguments.ranks),
        "numpy": np.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
