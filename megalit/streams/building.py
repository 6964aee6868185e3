"""Build token stores from a corpus, verify them, and make them appear as a whole.

Tokenizing runs in this process, where the tokenizer itself uses all cores, and LitData's writer
takes the encoded items. ``litdata.optimize`` would spawn workers of its own: a worker that dies
leaves a silently shorter store, and its start-up costs seconds per store.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from litdata.streaming.writer import BinaryWriter

from megalit.corpus.contamination import Contamination, ContaminationGuard, GuardSettings
from megalit.corpus.tables import VALIDATION, Corpus, TableWriter
from megalit.corpus.tokenizers import Tokenizer, Tokens
from megalit.errors import UserError
from megalit.files import new_folder, write_json
from megalit.streams import store as stores
from megalit.streams.plan import difference
from megalit.streams.sources import GenerationSet, Rows, refuse_more_thoughts, refuse_other_names
from megalit.streams.sources import sources as sources_of
from megalit.streams.store import ITEMS, Kind, Manifest, TokenStore
from megalit.streams.thoughts import TOKEN_OFFSETS, Places

T = TypeVar("T")

# Small beside the memory of any machine; a chunk is put together in memory.
CHUNK_BYTES = 32 * 1024 * 1024
Progress = Callable[[str, int], None]


def build_store(
    folder: Path,
    kind: Kind,
    rows: Rows,
    tokenizer: Tokenizer,
    origin: dict[str, Any],
    progress: Progress = lambda store, items: None,
    contamination: Contamination | None = None,
    places: Places | None = None,
) -> Manifest:
    """Tokenize ``rows`` into a new store at ``folder``, which appears when it is verified.

    Call it under :func:`megalit.files.lock`. ``progress`` is told the store's name and the number of items
    written; ``contamination`` is what the guard has counted once all rows are through, ``places`` those for thoughts
    in the documents that went by.

    Raises:
        UserError: nothing to write, or what was written does not read back the same.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocabulary_size <= 2**16 else np.int32)
    digest = hashlib.blake2b(digest_size=8)
    tokens = text_bytes = 0
    with new_folder(folder) as temporary:
        writer = _chunk_writer(temporary)
        with TableWriter(temporary / "items.parquet", ITEMS) as table, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="An item was larger than the target chunk size")
            for batch, encodings in _ahead(_encoded(_ahead(rows), tokenizer)):
                for row, encoded in zip(batch, encodings, strict=True):
                    data = encoded.astype(dtype)
                    writer.add_item(table.rows, data)
                    digest.update(data.tobytes())
                    tokens += len(data)
                    size = len(row["text"].encode())
                    text_bytes += size
                    columns = {name: row.get(name) for name in ITEMS.names}
                    table.write({**columns, "tokens": len(data), "bytes": size})
                progress(folder.name, table.rows)
        if not table.rows:
            raise UserError(f"there is nothing to tokenize for {folder}: its corpus has no {kind} rows")
        _finish_chunks(writer, temporary)
        manifest = Manifest(
            kind=kind,
            tokenizer=tokenizer.fingerprint,
            vocabulary_size=tokenizer.vocabulary_size,
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            dtype=dtype.name,
            items=table.rows,
            tokens=tokens,
            bytes=text_bytes,
            content_hash=digest.hexdigest(),
            files={path.name: _file_hash(path) for path in sorted(temporary.iterdir())},
            origin=origin,
            contamination=contamination.to_json() if contamination else None,
            places=asdict(places) if places else None,
        )
        write_json(temporary / "manifest.json", manifest.to_json())
        verify(temporary)
    return manifest


def verify(folder: Path) -> None:
    """Read a store back and compare files, items, tokens, their largest id and content hash with its manifest.

    Raises:
        UserError: they differ; the message names the file, or the store.
    """
    store = TokenStore(folder)
    for name, expected in store.manifest.files.items():
        if not (folder / name).exists() or _file_hash(folder / name) != expected:
            raise UserError(f"{folder / name} does not hold what was written: build the store again")
    digest = hashlib.blake2b(digest_size=8)
    counts = pq.read_table(folder / "items.parquet", columns=["tokens"]).column(0).to_numpy()
    for item, count in enumerate(counts):
        digest.update(store.read(item, 0, count).tobytes())
    manifest = store.manifest
    largest = max((int(buffer.max()) for buffer in store.buffers if len(buffer)), default=0)
    if largest >= manifest.vocabulary_size:
        raise UserError(
            f"{folder} holds the token {largest}, and its vocabulary has {manifest.vocabulary_size}: "
            "build the store again"
        )
    if (len(counts), int(counts.sum()), digest.hexdigest()) != (manifest.items, manifest.tokens, manifest.content_hash):
        raise UserError(f"{folder} does not hold what its manifest says: build the store again")


def _encoded(batches: Rows, tokenizer: Tokenizer) -> Iterator[tuple[list[dict[str, Any]], list[Tokens]]]:
    for batch in batches:
        yield batch, tokenizer.encode_batch([row["text"] for row in batch])


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Compute the next item in a thread while this one is used: reading, encoding and writing overlap."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _chunk_writer(folder: Path) -> BinaryWriter:
    # LitData names chunks by the rank it detects; a store has one writer, whoever runs it.
    previous = os.environ.get("DATA_OPTIMIZER_GLOBAL_RANK")
    os.environ["DATA_OPTIMIZER_GLOBAL_RANK"] = "0"
    try:
        writer = BinaryWriter(str(folder), chunk_bytes=CHUNK_BYTES, item_loader=stores.DocumentLoader())
        assert writer.rank == 0
        return writer
    finally:
        if previous is None:
            del os.environ["DATA_OPTIMIZER_GLOBAL_RANK"]
        else:
            os.environ["DATA_OPTIMIZER_GLOBAL_RANK"] = previous


def _finish_chunks(writer: BinaryWriter, folder: Path) -> None:
    writer.done()
    # One writer: its own index is the data set's.
    (folder / "0.index.json").rename(folder / "index.json")


def build_stores(
    corpus: Corpus,
    sets: Iterable[GenerationSet],
    tokenizer: Tokenizer,
    output: Path,
    guard: GuardSettings | None = None,
    progress: Progress = lambda store, items: None,
) -> list[Manifest]:
    """Build every store of a data set that is not there yet.

    Args:
        corpus: real documents, with the generations and thoughts that came with them.
        sets: further generations, thoughts and samples.
        tokenizer: encodes all of them.
        output: the folder of the stores, one sub-folder each.
        guard: looks for validation text in everything else; None does not look.
        progress: told the store's name and the number of items written.

    Returns:
        The manifests of the stores that were built.

    Raises:
        UserError: a store is there that was built from something else.
    """
    source: dict[str, Any] = {"corpus": corpus.manifest["settings"], "inputs": _inputs(corpus)}
    if guard is not None:
        source["guard"] = asdict(guard)
    sets = list(sets)
    sources = list(sources_of(corpus, sets, tokenizer, source, output))
    refuse_other_names(sources, sets, output)
    refuse_more_thoughts(sources, output)
    missing = [part for part in sources if not stores.exists(output / part.name)]
    for part in sources:
        if part not in missing:
            manifest = stores.read_manifest(output / part.name)
            # Streams without thoughts go on with the stores that are there; the others say what is wrong with them.
            origin = {key: value for key, value in part.origin.items() if key != TOKEN_OFFSETS}
            built_from = {key: value for key, value in manifest.origin.items() if key != TOKEN_OFFSETS}
            asked = {**origin, "tokenizer": tokenizer.fingerprint}
            other = difference({**built_from, "tokenizer": manifest.tokenizer}, asked)
            if other is not None:
                raise UserError(
                    f"{output / part.name} was built from something else ({other}): go back to what it was built with, "
                    "or choose another folder for the stores"
                )
    if not missing:
        return []
    for part in missing:
        if (output / part.name).exists():
            raise UserError(f"{output / part.name} is there and is no finished store: move it away")
    watch = ContaminationGuard(guard, corpus.texts(VALIDATION)) if guard is not None and guard.words else None
    dropped: set[str] = _dropped(output / "real") if (output / "real").exists() else set()
    built = []
    for part in missing:
        rows, found = part.rows(), None
        if watch is not None and part.kind != "validation":
            found = Contamination()
            rows = watch.filter(_without(rows, dropped), found)
        if part.optional:
            first = next(rows, None)
            if first is None:
                continue  # the guard has left nothing of what came later
            rows = chain([first], rows)
        target = output / part.name
        built.append(build_store(target, part.kind, rows, tokenizer, part.origin, progress, found, part.places))
        if part.kind == "real":
            # What was made from a document that is left out is left out too.
            dropped = _dropped(output / part.name)
    return built


def _dropped(folder: Path) -> set[str]:
    manifest = stores.read_manifest(folder)
    if (manifest.origin.get("guard") or {}).get("action") != "drop" or manifest.contamination is None:
        return set()
    return {document for document, _, _ in manifest.contamination["contaminated"]}


def _without(batches: Rows, documents: set[str]) -> Rows:
    for batch in batches:
        yield [row for row in batch if row["document_id"] not in documents]


def _inputs(corpus: Corpus) -> list[dict[str, Any]]:
    """What the corpus was read from; times of change only where a manifest does not say what was in the files."""
    inputs: list[dict[str, Any]] = corpus.manifest["inputs"]
    return [
        {key: value for key, value in source.items() if key != "state" or "content" not in source} for source in inputs
    ]
