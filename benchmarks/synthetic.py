"""Stores of random tokens in the shape of the megadocs paper's data, for benchmarks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from litdata.streaming.writer import BinaryWriter

from megalit.files import new_folder, write_json
from megalit.streams.store import ITEMS, DocumentLoader, Kind, Manifest

VOCABULARY = 50_000

# Mean tokens of a real document and of a rephrase (arXiv 2603.18534; about 600 by its stream sizes).
REAL_MEAN, GENERATION_MEAN = 1243, 600


def write_stores(
    folder: Path, documents: int, generations: int, scale: float = 1.0, vocabulary: int = VOCABULARY
) -> None:
    """Write a real store and one of generations; ``scale`` shortens every text."""
    random = np.random.default_rng(0)
    ids = np.array([f"document-{index:09d}" for index in range(documents)])
    _write(folder / "real", "real", ids, None, _lengths(random, documents, REAL_MEAN * scale), random, vocabulary)
    repeated = np.repeat(ids, generations)
    numbers = np.tile(np.arange(generations), documents)
    lengths = _lengths(random, len(repeated), GENERATION_MEAN * scale)
    _write(folder / "generations", "generations", repeated, numbers, lengths, random, vocabulary)


def _lengths(random: np.random.Generator, count: int, mean: float) -> np.ndarray:
    """Log-normal lengths with this mean."""
    return np.maximum(1, random.lognormal(np.log(mean) - 0.32, 0.8, size=count)).astype(np.int64)


def _write(
    folder: Path,
    kind: Kind,
    ids: np.ndarray,
    generations: np.ndarray | None,
    lengths: np.ndarray,
    random: np.random.Generator,
    vocabulary: int,
) -> None:
    with new_folder(folder) as temporary:
        writer = BinaryWriter(str(temporary), chunk_bytes=64 * 1024 * 1024, item_loader=DocumentLoader())
        pool = random.integers(2, vocabulary, size=1 << 22).astype(np.uint16)
        starts = random.integers(len(pool) - int(lengths.max()), size=len(lengths))
        for index, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            writer.add_item(index, pool[start : start + length])
        writer.done()
        (temporary / "0.index.json").rename(temporary / "index.json")
        count = len(lengths)
        columns = {
            "document_id": pa.array(ids),
            "content_hash": pa.array(ids),
            "generation": pa.array(generations if generations is not None else np.full(count, -1), pa.int32()),
            "tokens": pa.array(lengths),
            "bytes": pa.array(lengths * 4),
        }
        table = pa.table({name: columns.get(name, pa.nulls(count)) for name in ITEMS.names}).cast(ITEMS)
        # In groups as TableWriter's.
        pq.write_table(table, temporary / "items.parquet", row_group_size=1024)
        manifest = Manifest(
            kind=kind,
            tokenizer="random",
            vocabulary_size=vocabulary,
            bos=0,
            eos=1,
            dtype="uint16",
            items=count,
            tokens=int(lengths.sum()),
            bytes=int(lengths.sum()) * 4,
            content_hash="random",
            files={},
            origin={},
        )
        write_json(temporary / "manifest.json", manifest.to_json())
