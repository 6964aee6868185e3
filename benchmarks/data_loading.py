"""Reading speed of a stitched stream, batch 8 x 4,096, shuffled windows.

Peers, in the same run over the same tokens: a numpy memmap over one flat file read at random windows, and LitData's
own StreamingDataset with TokensLoader, shuffled. In process and with two loader processes. Prints one JSON line.

    python benchmarks/data_loading.py [--documents 20000] [--batches 400]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
from litdata.streaming.item_loader import TokensLoader
from litdata.streaming.writer import BinaryWriter
from synthetic import write_stores
from torch.utils.data import DataLoader, Dataset

from megalit.streams import StitchedStream

BATCH, LENGTH = 8, 4096


class FlatFile(Dataset[torch.Tensor]):
    """The plainest reader: random windows of one memory-mapped file."""

    def __init__(self, path: Path, dtype: Any, batches: int) -> None:
        self.path, self.dtype, self.batches = path, dtype, batches
        self.tokens: Any = None

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.tokens is None:
            self.tokens = np.memmap(self.path, dtype=self.dtype, mode="r")
        random = np.random.default_rng(index)
        starts = random.integers(len(self.tokens) - LENGTH - 1, size=BATCH)
        return torch.from_numpy(np.stack([self.tokens[s : s + LENGTH + 1].astype(np.int64) for s in starts]))


def rate(batches: Iterator[Any], count: int) -> float:
    """Tokens per second over ``count`` batches, after a tenth of them as warm-up."""
    for _ in range(count // 10):
        next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH * LENGTH / (time.perf_counter() - began)


def endless(make: Callable[[], Any]) -> Iterator[Any]:
    while True:
        yield from make()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MEGALIT_PLANS"] = str(folder / "plans")
        write_stores(folder / "stores", arguments.documents, arguments.generations)
        data = StitchedStream(
            stores=str(folder / "stores"),
            generations=arguments.generations,
            synthetic_fraction=1,
            context_length=LENGTH,
            global_batch=BATCH,
            total_tokens=BATCH * LENGTH * 1_000_000,
        )
        data.setup("validate")
        stream = data.mixture.streams[0]
        flat = np.concatenate([stream.tables.table.read(int(row)) for row in stream.packed(0).rows])
        flat = flat.astype(np.uint16)
        flat.tofile(folder / "flat.bin")
        writer = BinaryWriter(str(folder / "litdata"), chunk_bytes="64MB", item_loader=TokensLoader())
        for index, start in enumerate(range(0, len(flat), 1 << 20)):
            writer.add_item(index, flat[start : start + (1 << 20)])
        writer.done()
        (folder / "litdata" / "0.index.json").rename(folder / "litdata" / "index.json")

        def ours(workers: int) -> Iterator[Any]:
            data.num_workers = workers
            return ({**batch, "targets": batch["targets"].long()} for batch in data.train_dataloader())

        def plain(workers: int) -> Iterator[Any]:
            dataset = FlatFile(folder / "flat.bin", flat.dtype, 10**9)
            return iter(DataLoader(dataset, batch_size=None, sampler=range(10**6), num_workers=workers))

        def litdata_tokens(workers: int) -> Iterator[Any]:
            dataset = litdata.StreamingDataset(
                str(folder / "litdata"), item_loader=TokensLoader(block_size=LENGTH + 1), shuffle=True, drop_last=True
            )
            loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)
            return endless(lambda: (batch.long() if hasattr(batch, "long") else batch for batch in loader))

        result: dict[str, Any] = {
            "benchmark": "data_loading",
            "tokens": len(flat),
            "pieces_per_window": round(len(stream.packed(0).rows) / stream.windows, 1),
            "torch": torch.__version__,
            "litdata": litdata.__version__,
            "cores": os.cpu_count(),
        }
        for workers in (0, 2):
            rates: dict[str, list[float]] = {"megalit": [], "memmap": [], "litdata": []}
            for _ in range(arguments.rounds):
                for peer, make in (("megalit", ours), ("memmap", plain), ("litdata", litdata_tokens)):
                    rates[peer].append(rate(make(workers), arguments.batches))
            medians = {peer: statistics.median(values) for peer, values in rates.items()}
            key = "in_process" if workers == 0 else f"{workers}_workers"
            result[key] = {
                "million_tokens_per_second": {peer: round(value / 1e6, 1) for peer, value in medians.items()},
                "against_memmap": round(medians["megalit"] / medians["memmap"], 3),
                "against_litdata": round(medians["megalit"] / medians["litdata"], 3),
            }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
