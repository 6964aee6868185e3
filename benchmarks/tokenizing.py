"""Building a token store against ``tokenizers.encode_batch`` alone on the same texts and cores.

Shows that memory does not grow with the corpus: peak memory at two sizes. Prints one JSON line. The text is the
documentation in this Python installation, repeated with a number in front so that nothing is a duplicate.

    python benchmarks/tokenizing.py [--megabytes 100 1000]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from memory import PeakMemory


def texts(documents: list[str], megabytes: int) -> Iterator[str]:
    total, number = 0, 0
    while total < megabytes * 1_000_000:
        text = f"{number} {documents[number % len(documents)]}"
        total += len(text.encode())
        number += 1
        yield text


def rows(documents: list[str], megabytes: int, batch: int = 1024) -> Iterator[list[dict[str, Any]]]:
    pending: list[dict[str, Any]] = []
    for number, text in enumerate(texts(documents, megabytes)):
        pending.append({"document_id": str(number), "content_hash": str(number), "text": text})
        if len(pending) == batch:
            yield pending
            pending = []
    if pending:
        yield pending


def measure(kind: str, megabytes: int, folder: Path) -> None:
    """One way of tokenizing in a process of its own; prints seconds and peak memory."""
    from megalit.corpus.contamination import Contamination, ContaminationGuard, GuardSettings
    from megalit.corpus.tokenizers import Tokenizer
    from megalit.streams.building import build_store

    tokenizer = Tokenizer(str(folder / "tokenizer"))
    documents: list[str] = json.loads((folder / "documents.json").read_text())
    batches: Iterator[list[dict[str, Any]]] = rows(documents, megabytes)
    guard = ContaminationGuard(GuardSettings(), texts(documents, 1))
    began = time.perf_counter()
    with PeakMemory() as memory:
        if kind == "encode_batch":
            for batch in batches:
                tokenizer._backend.encode_batch_fast([row["text"] for row in batch], add_special_tokens=False)
        else:
            if kind == "store_guarded":
                batches = guard.filter(batches, Contamination())
            build_store(folder / f"{kind}-{megabytes}", "real", batches, tokenizer, {})
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_mb": round(memory.megabytes)}))


def run(kind: str, megabytes: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", kind, str(megabytes), str(folder)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--measure", nargs=3)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, megabytes, name = arguments.measure
        measure(kind, int(megabytes), Path(name))
        return
    from megalit.corpus import python_docs
    from megalit.corpus.tokenizers import train_bpe

    result: dict[str, Any] = {"benchmark": "tokenize", "tokenizers": tokenizers.__version__, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = [document.text for document in python_docs.read()]
        (folder / "documents.json").write_text(json.dumps(documents))
        train_bpe(documents, arguments.vocabulary, folder / "tokenizer")
        for megabytes in arguments.megabytes:
            found = {kind: run(kind, megabytes, folder) for kind in ("encode_batch", "store", "store_guarded")}
            result[f"{megabytes}_mb"] = {
                "megabytes_per_second": {kind: round(megabytes / f["seconds"], 2) for kind, f in found.items()},
                "against_encode_batch": round(found["encode_batch"]["seconds"] / found["store"]["seconds"], 3),
                "guarded_against_encode_batch": round(
                    found["encode_batch"]["seconds"] / found["store_guarded"]["seconds"], 3
                ),
                "peak_mb": {kind: f["peak_mb"] for kind, f in found.items()},
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
