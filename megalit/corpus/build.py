"""Build a corpus from inputs: unique ids, no exact duplicates, a validation split by id."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megalit.corpus import tables
from megalit.corpus.documents import Document
from megalit.corpus.readers import read, source_name, text_files
from megalit.corpus.tables import TRAIN, VALIDATION, Corpus, TableWriter
from megalit.errors import UserError
from megalit.files import file_digest, fingerprint, new_folder, write_json


@dataclass(frozen=True)
class CorpusSettings:
    """What a corpus is made of.

    Attributes:
        inputs: files and folders to read (JSONL, plain, .gz or .zst; Parquet; folders of text), or
            ``python-docs`` for the documentation in this Python installation.
        validation_fraction: share of documents held out, chosen by a hash of their ids.
        validation_group: regular expression; documents whose ids give the same first group (or
            match) are held out together, for example ``^(.*):`` for ids like ``Genesis 1:1-8``.
        prefix_ids: put the input's name before each id, for inputs that count from 1 each.
    """

    inputs: list[str] = field(default_factory=list)
    validation_fraction: float = 0.05
    validation_group: str | None = None
    prefix_ids: bool = False


def validation_split(group: str, fraction: float) -> str:
    """Say whether a document is held out: a pure function of its id's group.

    The same id lands on the same side in every corpus with the same fraction, and raising the
    fraction only adds documents to the validation set.
    """
    bits = int.from_bytes(hashlib.sha256(b"validation:" + group.encode()).digest()[:8], "big")
    return VALIDATION if bits < fraction * 2**64 else TRAIN


def build_corpus(
    settings: CorpusSettings, output: Path, progress: Callable[[int], None] = lambda documents: None
) -> Corpus:
    """Read the inputs and write the corpus to ``output``, which appears as a whole.

    Call it under :func:`megalit.files.lock`; ``progress`` is told the number of documents read.

    Raises:
        UserError: no inputs, a bad input (see :mod:`megalit.corpus.readers`), a duplicate id, or
            nothing left in one of the splits.
    """
    _check(settings)
    with new_folder(output) as folder:
        counts = _write_tables(settings, folder, progress)
        manifest = {
            "format": tables.FORMAT,
            "kind": "corpus",
            "settings": asdict(settings),
            "inputs": [{**input_state(source), **input_content(source)} for source in settings.inputs],
            **counts,
        }
        write_json(folder / "manifest.json", manifest)
    return Corpus(output)


def input_state(source: str) -> dict[str, Any]:
    """What tells at no cost that an input has not changed since it was read: sizes and times of change."""
    files = _files(source)
    if files is None:
        return {"name": source}
    stats = [(name, file.stat()) for name, file in files]
    state = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return {"name": source, "bytes": sum(stat.st_size for _, stat in stats), "state": fingerprint(state)}


def input_content(source: str) -> dict[str, Any]:
    """What the files of an input say, wherever and whenever they were copied to; reads all of them.

    Nothing for what is no file here, such as ``python-docs``, or can be read only once, such as a named pipe.
    """
    files = _files(source)
    if files is None or not all(file.is_file() for _, file in files):
        return {}
    return {"content": fingerprint([[name, file_digest(file)] for name, file in files])}


def input_now(recorded: dict[str, Any]) -> dict[str, Any] | None:
    """What a manifest should say of an input that it records; None where the input has changed.

    An input of another time of change is read, because a copy or a download of the same files is the same input; one
    that is no longer there has not changed.
    """
    now = input_state(recorded["name"])
    if "bytes" not in now or now["state"] == recorded.get("state"):
        return recorded
    if now["bytes"] != recorded.get("bytes") or "content" not in recorded:
        return None
    return {**recorded, **now} if input_content(recorded["name"]).get("content") == recorded["content"] else None


def _files(source: str) -> list[tuple[str, Path]] | None:
    """The files of an input with their names in it; None for what is not on this machine."""
    path = Path(source).expanduser()
    if not path.exists():
        return None
    return [(file.relative_to(path).as_posix(), file) for file in (text_files(path) if path.is_dir() else [path])]


def _check(settings: CorpusSettings) -> None:
    if not settings.inputs:
        raise UserError("no inputs: name at least one file or folder with --inputs")
    if not 0 <= settings.validation_fraction < 1:
        raise UserError(f"validation_fraction is {settings.validation_fraction}: choose a value in [0, 1)")
    if settings.validation_group is not None:
        try:
            re.compile(settings.validation_group)
        except re.error as error:
            raise UserError(f"validation_group is no regular expression ({error}): mend it") from error


def _write_tables(settings: CorpusSettings, folder: Path, progress: Callable[[int], None]) -> dict[str, Any]:
    splits = {TRAIN: 0, VALIDATION: 0}
    characters = {TRAIN: 0, VALIDATION: 0}
    duplicates = {"duplicates_removed": 0, "generations_removed": 0, "thoughts_removed": 0}
    contents: set[str] = set()
    with ExitStack() as stack:
        documents, generations, thoughts = (
            stack.enter_context(TableWriter(folder / f"{name}.parquet", schema))
            for name, schema in (
                ("documents", tables.DOCUMENTS),
                ("generations", tables.GENERATIONS),
                ("thoughts", tables.THOUGHTS),
            )
        )
        for number, document in enumerate(_unique_ids(settings), start=1):
            progress(number)
            content_hash = document.content_hash
            if content_hash in contents:
                # With what belongs to it: merged, the order of a document's generations would hang on that of the rows.
                duplicates["duplicates_removed"] += 1
                duplicates["generations_removed"] += len(document.generations)
                duplicates["thoughts_removed"] += len(document.thoughts)
                continue
            contents.add(content_hash)
            split = validation_split(_group(settings, document.id), settings.validation_fraction)
            splits[split] += 1
            characters[split] += len(document.text)
            documents.write(
                {
                    "id": document.id,
                    "content_hash": content_hash,
                    "source": document.source,
                    "split": split,
                    "text": document.text,
                }
            )
            join = {"document_id": document.id, "content_hash": content_hash, "split": split}
            for index, item in enumerate(document.generations):
                generations.write({**join, "generation": index, "recipe": item.style, "text": item.text})
            for index, thought in enumerate(document.thoughts):
                thoughts.write(
                    {
                        **join,
                        "generation": index,
                        "recipe": "thought",
                        "text": thought.text,
                        "character_offset": thought.offset,
                    }
                )
        counts = {"generations": generations.rows, "thoughts": thoughts.rows}
    for name, rows in counts.items():
        if not rows:
            (folder / f"{name}.parquet").unlink()
    _check_splits(settings, splits)
    return {"documents": splits, "characters": characters, **duplicates, **counts}


def _check_splits(settings: CorpusSettings, splits: dict[str, int]) -> None:
    total = sum(splits.values())
    if not total:
        raise UserError(f"the corpus is empty: {', '.join(settings.inputs)} hold no document")
    if not splits[TRAIN]:
        raise UserError(f"all {total} documents are held out: lower validation_fraction or add documents")
    if settings.validation_fraction and not splits[VALIDATION]:
        raise UserError(
            f"no document of {total} is held out at validation_fraction {settings.validation_fraction}: "
            "raise it or add documents"
        )


def _unique_ids(settings: CorpusSettings) -> Iterator[Document]:
    places: dict[str, str] = {}
    for source in settings.inputs:
        for document in read(source):
            if settings.prefix_ids:
                document = Document(**{**vars(document), "id": f"{document.source}/{document.id}"})
            if document.id in places:
                raise UserError(
                    f"{document.place} repeats the id '{document.id}' of {places[document.id]}: make ids unique"
                    + _other_remedy(settings, document.source)
                )
            places[document.id] = document.place
            yield document


def _other_remedy(settings: CorpusSettings, name: str) -> str:
    """What may help besides unique ids, where the repeated one stands in an input of that name."""
    namesakes = [source for source in settings.inputs if source_name(source) == name]
    if len(namesakes) > 1:
        # A prefix is the name of the input, so it tells them apart no better.
        prefix = "" if settings.prefix_ids else " and set prefix_ids"
        return f", or, as the inputs {' and '.join(namesakes)} have one name, rename a file{prefix}"
    return "" if settings.prefix_ids else ", or set prefix_ids where inputs share ids"


def _group(settings: CorpusSettings, identifier: str) -> str:
    if settings.validation_group is None:
        return identifier
    match = re.search(settings.validation_group, identifier)
    if match is None:
        return identifier
    # A group that takes no part in the match tells nothing.
    return (match.group(1) if match.re.groups else None) or match.group(0)
