"""From a journal to a table: every (document, index) exactly once, in order."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from megalit.corpus import tables
from megalit.corpus.tables import TRAIN, Corpus, TableWriter
from megalit.files import lock, read_json, remove_leftovers, write_atomic, write_json
from megalit.synthesis.items import Item
from megalit.synthesis.journal import Accepted, Declined, Journal, Place, Settings
from megalit.synthesis.ledger import Ledger
from megalit.synthesis.work import Work, document_items, sources

TABLE = "generations.parquet"
MANIFEST = "manifest.json"
# The manifest before, while another table is being written: without its own one, a table counts as not there.
_FORMER = ".manifest.former.json"

# A place as one number: a million segments, of 2 TB each. What comes before others stands above it.
_SEGMENT_BITS, _OFFSET_BITS = 20, 41

# Beside the columns of the corpus' own tables: what a row was made with.
ORIGIN = [
    pa.field("identity", pa.string()),
    pa.field("settings", pa.string()),
    pa.field("seed", pa.int64()),
    pa.field("attempt", pa.int32()),
    pa.field("prompt_tokens", pa.int64()),
    pa.field("tokens", pa.int64()),
    pa.field("cut", pa.bool_()),
]


@dataclass(frozen=True)
class Compacted:
    """What compaction found.

    Attributes:
        rows: generations written.
        given_up: generations that no attempt gave.
        missing: generations that are still to be made; with any, nothing was written.
        declined: attempts that gave nothing, by reason.
        refused: those of the generations given up that the model refused.
    """

    rows: int
    given_up: int
    missing: int
    declined: dict[str, int]
    refused: int = 0


def manifest_of(folder: Path, former: bool = False) -> dict[str, Any]:
    """The manifest of a generation folder's table; empty where none is finished.

    Args:
        folder: of the generations.
        former: where a table was being written, take the one before.
    """
    for name in (MANIFEST, *([_FORMER] if former else [])):
        if (folder / name).exists():
            manifest: dict[str, Any] = read_json(folder / name)
            return manifest
    return {}


def compact(
    work: Work, corpus: Corpus | None, folder: Path, progress: Callable[[int], None] = lambda rows: None
) -> Compacted:
    """Write ``generations.parquet`` and ``manifest.json`` to ``folder`` from its journal, if nothing is missing.

    What it writes depends on the generations alone, not on who made them when.
    """
    journal = Journal(folder / "journal")
    index = _Index(work, journal, set(manifest_of(folder, former=True).get("settings", {})))
    missing = given_up = refused = 0
    identities = hashlib.sha256()
    for item, state in _states(work, corpus, index):
        missing += state is None
        given_up += state is False
        refused += state is False and index.is_refused(work.identity(item))
        if isinstance(state, Place):
            identities.update(work.identity(item).encode())
    if missing:
        return Compacted(0, given_up, missing, index.declined, refused)
    with lock(folder / MANIFEST):
        # A table is as large as all its texts, so what killed processes wrote of one may fill the disk.
        for name in (TABLE, MANIFEST):
            remove_leftovers(folder / name)
        written = manifest_of(folder)
        if not work.redo and written.get("identities") == identities.hexdigest()[:16]:
            return Compacted(written["rows"], given_up, 0, index.declined, refused)
        rows = _write(work, corpus, folder, index, identities.hexdigest()[:16], given_up, progress)
    return Compacted(rows, given_up, 0, index.declined, refused)


def _write(
    work: Work,
    corpus: Corpus | None,
    folder: Path,
    index: "_Index",
    identities: str,
    given_up: int,
    progress: Callable[[int], None],
) -> int:
    # The table belongs to its manifest: without one, neither exists. What it held is known all the same.
    with suppress(FileNotFoundError):
        (folder / MANIFEST).replace(folder / _FORMER)
    rows = 0
    used: set[str] = set()

    def write(file: Any) -> None:
        nonlocal rows
        schema = tables.THOUGHTS if work.recipe.kind == "thoughts" else tables.GENERATIONS
        with TableWriter(file, pa.schema([*schema, *ORIGIN])) as writer:
            for item, state in _states(work, corpus, index):
                if isinstance(state, Place):
                    record = index.journal.read(state)
                    assert isinstance(record, Accepted)
                    used.add(record.settings)
                    writer.write(_row(work, item, record))
                    rows += 1
                    progress(rows)

    write_atomic(folder / TABLE, write)
    write_json(
        folder / MANIFEST,
        {
            "format": tables.FORMAT,
            "kind": work.recipe.kind,
            "recipe": work.recipe.name,
            "version": work.version,
            "model": work.model,
            "count": work.count,
            "total_tokens": work.total_tokens,
            "rows": rows,
            "identities": identities,
            "given_up": given_up,
            "settings": {name: index.settings[name] for name in sorted(used)},
        },
    )
    (folder / _FORMER).unlink(missing_ok=True)
    return rows


def _row(work: Work, item: Item, record: Accepted) -> dict[str, Any]:
    return {
        "document_id": record.document,
        "content_hash": record.content_hash,
        "generation": item.index,
        "recipe": work.recipe.name,
        "split": TRAIN,
        "text": record.text,
        "character_offset": record.offset,
        "identity": record.of,
        "settings": record.settings,
        "seed": record.seed,
        "attempt": record.attempt,
        "prompt_tokens": record.prompt_tokens,
        "tokens": record.tokens,
        "cut": record.cut,
    }


State = Place | bool | None


def _states(work: Work, corpus: Corpus | None, index: "_Index") -> Iterator[tuple[Item, State]]:
    """Each item with its place in the journal, False where it was given up, None where it is missing."""
    if corpus is not None:
        for item in document_items(work, sources(corpus)):
            yield item, index.state(work.identity(item))
        return
    tokens = number = 0
    while (number < work.count) if work.total_tokens is None else (tokens < work.total_tokens):
        item = Item(None, number)
        state = index.state(work.identity(item))
        yield item, state
        if state is None and work.total_tokens is not None:
            return  # how many more are needed is not known
        tokens += index.tokens(state)
        number += 1


class _Index:
    """Where in the journal each generation stands.

    Generations are a few hundred bytes each in Python's dictionaries, and 24 in arrays.

    Args:
        standing: fingerprints of the settings that the finished table was made with.

    Attributes:
        settings: by fingerprint.
        declined: attempts of any time, by reason.
    """

    def __init__(self, work: Work, journal: Journal, standing: Set[str]) -> None:
        self.journal = journal
        self._ledger: Ledger = work.ledger()
        self.settings: dict[str, dict[str, Any]] = {}
        declined: Counter[str] = Counter()
        segments: dict[str, int] = {}
        keys, places = bytearray(), array("q")
        for place, record in journal.new_records(completions=False):
            if isinstance(record, Settings):
                self.settings[record.fingerprint] = record.value
            elif isinstance(record, Declined):
                declined[record.reason] += 1
                self._ledger.add([(place, record)])
            elif isinstance(record, Accepted) and self._ledger.counts(record):
                keys += bytes.fromhex(record.of)
                # Of two, one that was made with the settings of now, then one that stands in the table, which --redo
                # may have put there in place of an earlier one, then the earlier one.
                rank = 0 if record.settings == work.fingerprint else 1 if record.settings in standing else 2
                segment = segments.setdefault(place.segment, len(segments))
                assert segment < 1 << _SEGMENT_BITS
                places.append((rank << _SEGMENT_BITS | segment) << _OFFSET_BITS | place.offset)
        self.declined = dict(sorted(declined.items()))
        self._segments = list(segments)
        found = np.frombuffer(keys, dtype="S16")
        where = np.frombuffer(places, dtype=np.int64)
        order = np.lexsort((where, found))
        found, where = found[order], where[order]
        del keys, places, order
        first = np.ones(len(found), dtype=bool)
        first[1:] = found[1:] != found[:-1]
        self._keys, self._places = found[first], where[first]

    def state(self, identity: str) -> State:
        key = np.frombuffer(bytes.fromhex(identity), dtype="S16")
        at = int(np.searchsorted(self._keys, key)[0])
        if at < len(self._keys) and self._keys[at] == key[0]:
            where = int(self._places[at])
            segment = where >> _OFFSET_BITS & (1 << _SEGMENT_BITS) - 1
            return Place(self._segments[segment], where & (1 << _OFFSET_BITS) - 1)
        return False if self._ledger.is_done(identity) else None

    def is_refused(self, identity: str) -> bool:
        return self._ledger.is_refused(identity)

    def tokens(self, state: State) -> int:
        if not isinstance(state, Place):
            return 0
        record = self.journal.read(state)
        assert isinstance(record, Accepted)
        return max(1, record.tokens)  # as the ledger counts
