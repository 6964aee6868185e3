"""An epoch's ordering and packing at the size of the megadocs paper: 164,000 documents x 32 generations.

Times and memory of the plan's arrays, and the first batch of a fresh start against that of a resume at sample
10,000,000 (which computes another epoch's arrays). Prints one JSON line.

    python benchmarks/epoch_plan.py
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory import PeakMemory
from synthetic import write_stores

from megalit.streams import StitchedStream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=164_000)
    parser.add_argument("--generations", type=int, default=32)
    parser.add_argument("--resume_at", type=int, default=10_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MEGALIT_PLANS"] = str(folder / "plans")
        # Short texts: the plan depends on the number of pieces, not on their length.
        write_stores(folder / "stores", arguments.documents, arguments.generations, scale=0.02)

        def open_data() -> StitchedStream:
            data = StitchedStream(
                stores=str(folder / "stores"),
                generations=arguments.generations,
                synthetic_fraction=1,
                context_length=128,
                global_batch=64,
                total_tokens=128 * (arguments.resume_at + 64_000),
            )
            data.setup("validate")
            return data

        began = time.perf_counter()
        with PeakMemory() as opening:
            data = open_data()
        opened = time.perf_counter() - began
        began = time.perf_counter()
        with PeakMemory() as mapping:
            open_data()
        mapped = time.perf_counter() - began
        stream: Any = data.mixture.streams[0]
        with PeakMemory() as memory:
            began = time.perf_counter()
            arrays = stream._arrange(1)
            arranged = time.perf_counter() - began
        size = sum(array.nbytes for array in arrays.values())
        del arrays

        def first_batch(consumed: int) -> float:
            data._start_samples = consumed
            began = time.perf_counter()
            next(iter(data.train_dataloader()))
            return time.perf_counter() - began

        started = first_batch(0)
        resumed_at = arguments.resume_at // 64 * 64
        resumed = first_batch(resumed_at)
        again = first_batch(resumed_at)
        result = {
            "benchmark": "epoch_plan",
            "pieces": int(stream.tables.generations.size + stream.tables.documents),
            "opening_stores_and_first_epoch_s": round(opened, 2),
            "opening_peak_mb": round(opening.megabytes),
            "opening_as_a_further_process_s": round(mapped, 2),
            "opening_as_a_further_process_peak_mb": round(mapping.megabytes),
            "epoch_arrays_s": round(arranged, 2),
            "epoch_arrays_peak_mb": round(memory.megabytes),
            "epoch_arrays_mb": round(size / 1e6),
            "first_batch_fresh_s": round(started, 3),
            "first_batch_resumed_in_another_epoch_s": round(resumed, 3),
            "first_batch_resumed_epoch_on_disk_s": round(again, 3),
            "resumed_epoch": resumed_at // stream.windows,
            "numpy": np.__version__,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
