"""The corpus on disk: Parquet tables in one folder, joined by (document id, content hash).

============================ ==========================================================
``documents.parquet``        id, content_hash, source, split (train or validation), text
``generations.parquet``      document_id, content_hash, generation, recipe, split, text
``thoughts.parquet``         document_id, content_hash, generation, recipe, split, text,
                             character_offset
``manifest.json``            settings, inputs and counts; a corpus without it does not exist
============================ ==========================================================

The content hash is that of the *document*, in all three tables: a generation made from an
older text of a document does not join with the new one. A generation carries the split of its
document, so nothing made from a validation document reaches training.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from megalit.errors import UserError
from megalit.files import read_json

FORMAT = 1
TRAIN, VALIDATION = "train", "validation"

DOCUMENTS = pa.schema(
    [
        ("id", pa.string()),
        ("content_hash", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),
    ]
)
GENERATIONS = pa.schema(
    [
        ("document_id", pa.string()),
        ("content_hash", pa.string()),
        ("generation", pa.int32()),
        ("recipe", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),
    ]
)
THOUGHTS = GENERATIONS.append(pa.field("character_offset", pa.int64()))


# Bounds of a row group, the part of a table that is in memory at once.
_GROUP_ROWS, _GROUP_CHARACTERS = 1024, 2**23


class TableWriter:
    """Writes rows to a Parquet file in groups, so that memory grows neither with the table nor with its texts."""

    def __init__(self, file: Path | IO[bytes], schema: pa.Schema) -> None:
        self.rows = 0
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._pending: list[dict[str, Any]] = []
        self._characters = 0

    def write(self, row: dict[str, Any]) -> None:
        self._pending.append(row)
        self.rows += 1
        self._characters += len(row.get("text", ""))
        if len(self._pending) >= _GROUP_ROWS or self._characters >= _GROUP_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self._schema))
            self._pending.clear()
            self._characters = 0

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


class Corpus:
    """A finished corpus folder.

    Raises:
        UserError: the folder is no corpus, or a newer version of megalit wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "manifest.json"
        if not path.exists():
            raise UserError(f"{folder} holds no finished corpus: build it with `megalit corpus --output {folder}`")
        self.manifest: dict[str, Any] = read_json(path)
        # Stores and generations have manifests of the same name.
        if not isinstance(self.manifest, dict) or self.manifest.get("kind") != "corpus":
            raise UserError(f"{folder} holds no corpus but something else: name a folder that `megalit corpus` wrote")
        if self.manifest.get("format", 0) > FORMAT:
            raise UserError(f"{folder} was written by a newer megalit: upgrade megalit or build the corpus again")

    def rows(self, table: str, split: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of ``table`` (documents, generations or thoughts) in one split, in order."""
        for batch in self.batches(self.folder / f"{table}.parquet", split, columns):
            yield from batch

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts of the real documents of one split."""
        for row in self.rows("documents", split, ["text"]):
            yield row["text"]

    @staticmethod
    def batches(path: Path, split: str, columns: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of the Parquet file at ``path`` in one split, a row group at a time.

        A file that is not there has no rows: a corpus need not have generations or thoughts.
        """
        if not path.exists():
            return
        wanted = None if columns is None else sorted({*columns, "split"})
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=wanted)
                rows = [row for row in table.to_pylist() if row["split"] == split]
                if rows:
                    yield rows
