"""What the stores of a data set are made of: tables of texts, one for each store.

A set of generations may grow: what has come since its store was built becomes a further store, a segment, because
stores do not change.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from megalit.corpus.tables import FORMAT, TRAIN, VALIDATION, Corpus
from megalit.corpus.tokenizers import Tokenizer
from megalit.errors import UserError
from megalit.files import read_json
from megalit.streams import store as stores
from megalit.streams.store import Kind
from megalit.streams.store_set import set_of
from megalit.streams.thoughts import TOKEN_OFFSETS, Places

Rows = Iterator[list[dict[str, Any]]]

# Of a generation that is looked up, and rows that are read at once for it.
_KEY, _ROWS = np.dtype("S16"), 1 << 13

_OFFSETS = {TOKEN_OFFSETS: "of a word's first character"}


def real_rows(corpus: Corpus, split: str) -> Rows:
    """Batches of real documents: the training ones, or those held out."""
    for batch in corpus.batches(corpus.folder / "documents.parquet", split):
        yield [{**row, "document_id": row["id"]} for row in batch]


def generation_rows(path: Path) -> Rows:
    """Batches of generations of training documents, from a ``generations.parquet``."""
    yield from Corpus.batches(path, TRAIN)


def thought_rows(corpus: Corpus, path: Path, tokenizer: Tokenizer, places: Places | None = None) -> Rows:
    """Batches of thoughts of training documents, from a table at ``path``, each with the token offset of its split.

    ``places`` is shown every document.
    """
    documents = corpus.rows("documents", TRAIN, ["id", "text"])
    thoughts = (row for batch in Corpus.batches(path, TRAIN) for row in batch)
    # Thoughts stand in the order of their documents, so one pass over both suffices.
    for identifier, group in groupby(thoughts, key=lambda row: row["document_id"]):
        rows = list(group)
        text = _text_of(identifier, documents, places, len(rows))
        if text is None:
            raise UserError(f"{path} holds thoughts for '{identifier}', which is not in {corpus.folder}: check both")
        offsets = tokenizer.token_offsets(text, [row["character_offset"] for row in rows])
        yield [{**row, "token_offset": offset} for row, offset in zip(rows, offsets, strict=True)]
    if places is not None:
        _text_of(None, documents, places, 0)  # the documents behind the last one that has thoughts


def _text_of(
    identifier: str | None, documents: Iterator[dict[str, Any]], places: Places | None, made: int
) -> str | None:
    """The text of the document of that id, which has so many thoughts; those before it have none."""
    for document in documents:
        is_it = document["id"] == identifier
        if places is not None:
            places.look(document["id"], document["text"], made if is_it else 0)
        if is_it:
            return str(document["text"])
    return None


@dataclass(frozen=True)
class GenerationSet:
    """What one recipe made, as ``megalit generate`` and the preparation of ``fit`` write it.

    Attributes:
        name: of its store.
        kind: ``generations``, ``thoughts`` or ``samples``.
        path: its table.
        origin: what it was made with; ``identities`` and ``settings`` change when more of it is made.
    """

    name: str
    kind: Literal["generations", "thoughts", "samples"]
    path: Path
    origin: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "GenerationSet":
        """What a folder of generations says of itself.

        Raises:
            UserError: nothing finished there, or something else.
        """
        path = folder / "manifest.json"
        if not path.exists():
            raise UserError(
                f"{folder} holds no finished generations: make them with `megalit generate --output {folder}` "
                "and a --config (configs/generate/ has examples)"
            )
        manifest = read_json(path)
        table = folder / "generations.parquet"
        # Corpora and stores have manifests of the same name.
        if not isinstance(manifest, dict) or not {"recipe", "kind"} <= manifest.keys() or not table.exists():
            raise UserError(
                f"{folder} holds no generations but something else: name a folder that `megalit generate` wrote"
            )
        if manifest.get("format", 0) > FORMAT:
            raise UserError(f"{folder} was written by a newer megalit: upgrade megalit")
        changing = {key: manifest[key] for key in ("settings", "identities") if key in manifest}
        made = {key: manifest.get(key) for key in ("recipe", "version", "model")}
        if manifest["recipe"] == "token_noise" and "model" not in manifest:  # made by the preparation itself
            made, changing = {"recipe": manifest["settings"]}, {}
        return cls(folder.name, manifest["kind"], table, {**made, **changing})


@dataclass(frozen=True)
class Source:
    """A store to be built."""

    name: str
    kind: Kind
    rows: Callable[[], Rows]
    origin: dict[str, Any]
    optional: bool = False
    places: Places | None = None


def sources(
    corpus: Corpus, sets: Iterable[GenerationSet], tokenizer: Tokenizer, origin: dict[str, Any], output: Path
) -> Iterator[Source]:
    yield Source("real", "real", lambda: real_rows(corpus, TRAIN), origin)
    if corpus.manifest["documents"][VALIDATION]:
        yield Source("validation", "validation", lambda: real_rows(corpus, VALIDATION), origin)
    if corpus.manifest["generations"]:
        rows = partial(generation_rows, corpus.folder / "generations.parquet")
        yield Source("generations", "generations", rows, origin)
    for made in sets:
        if made.kind == "thoughts":
            places = Places.of(made.path, made.origin)
            rows = partial(thought_rows, corpus, made.path, tokenizer, places)
            yield Source(made.name, "thoughts", rows, {**origin, **made.origin, **_OFFSETS}, places=places)
        else:
            yield from _segments(made, origin, output)
    if corpus.manifest["thoughts"]:
        rows = partial(thought_rows, corpus, corpus.folder / "thoughts.parquet", tokenizer)
        yield Source("thoughts", "thoughts", rows, {**origin, **_OFFSETS})


def _segments(made: GenerationSet, origin: dict[str, Any], output: Path) -> Iterator[Source]:
    """A set of generations as stores: those that are there, and one more for what has come since."""
    there = [made.name]
    while stores.exists(output / f"{made.name}.{len(there) + 1:03}"):
        there.append(f"{made.name}.{len(there) + 1:03}")
    if not stores.exists(output / made.name):
        rows = partial(generation_rows, made.path)
        yield Source(made.name, made.kind, rows, {**origin, **made.origin})
        return
    origins = [stores.read_manifest(output / name).origin for name in there]
    for name, built in zip(there, origins, strict=True):
        # What has come since is no other origin.
        changing: dict[str, Any] = {key: built[key] for key in ("settings", "identities") if key in built}
        yield Source(name, made.kind, partial(generation_rows, made.path), {**origin, **made.origin, **changing})
    if any(origins[-1].get(key) != made.origin.get(key) for key in ("settings", "identities")):
        rows = partial(_new_rows, made, [output / name for name in there])
        if any(rows()):
            name = f"{made.name}.{len(there) + 1:03}"
            yield Source(name, made.kind, rows, {**origin, **made.origin}, optional=True)


def refuse_other_names(parts: list[Source], sets: list[GenerationSet], output: Path) -> None:
    """The same generations under two names would take part twice."""
    names = {part.name for part in parts}
    keys = ("recipe", "version", "model")
    for path in sorted(output.glob("[!.]*/manifest.json")):
        if path.parent.name in names:
            continue
        origin = stores.read_manifest(path.parent).origin
        for made in sets:
            if all(origin.get(key) == made.origin.get(key) for key in keys):
                raise UserError(
                    f"{path.parent} holds generations of the recipe and model of '{made.name}': move it away, or give "
                    f"the folder of the generations the name {set_of(path.parent.name)[0]} again"
                )


def refuse_more_thoughts(parts: list[Source], output: Path) -> None:
    """Thoughts of two sets would cut a document in two ways: streams open a folder that holds one."""
    there = [path.parent for path in sorted(output.glob("[!.]*/manifest.json"))]
    names = [folder.name for folder in there if stores.read_manifest(folder).kind == "thoughts"]
    names += [part.name for part in parts if part.kind == "thoughts" and part.name not in names]
    if len(names) > 1:
        raise UserError(
            f"{output} would hold several sets of thoughts ({', '.join(names)}): give each its own folder of stores"
        )


def _new_rows(made: GenerationSet, segments: list[Path]) -> Rows:
    """Generations that no segment holds.

    Raises:
        UserError: one that a segment holds has been made again since, with other settings.
    """
    known = _Known(segments)
    for batch in generation_rows(made.path):
        new = []
        for row, settings in zip(batch, known.find(batch), strict=True):
            if settings is None:
                new.append(row)
            elif known.settings[settings] != row.get("settings"):
                raise UserError(
                    f"{segments[0]} holds generations of '{made.name}' that have been made again since: choose another "
                    "folder for the stores"
                )
        if new:
            yield new


class _Known:
    """Generations that segments hold; 20 bytes each in arrays, and ten times as many in a dictionary.

    Attributes:
        settings: of all of them, each once.
    """

    def __init__(self, segments: list[Path]) -> None:
        number: dict[str | None, int] = {}
        keys, settings = bytearray(), array("i")
        for folder in segments:
            with pq.ParquetFile(folder / "items.parquet") as file:
                for batch in file.iter_batches(_ROWS, columns=["document_id", "generation", "settings"]):
                    rows = batch.to_pylist()
                    keys += _keys(rows)
                    settings.extend(number.setdefault(row["settings"], len(number)) for row in rows)
        found = np.frombuffer(keys, dtype=_KEY)
        order = np.argsort(found)
        self._keys, self._settings = found[order], np.array(settings)[order]
        self.settings = list(number)

    def find(self, rows: list[dict[str, Any]]) -> list[int | None]:
        """For each row the number of its settings among :attr:`settings`, or None where no segment holds it."""
        wanted = np.frombuffer(_keys(rows), dtype=_KEY)
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        is_there = self._keys[place] == wanted
        return [int(own) if known else None for own, known in zip(self._settings[place], is_there, strict=True)]


def _keys(rows: list[dict[str, Any]]) -> bytes:
    """Which generation of which document each row is: hashes, so long that no two in a table are the same."""
    named = (f"{row['generation']} {row['document_id']}".encode() for row in rows)
    return b"".join(hashlib.blake2b(name, digest_size=_KEY.itemsize).digest() for name in named)
