"""What a finished table must not lose: a command that asks for less than it holds is told before anything is made."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megalit.corpus.tables import VALIDATION, Corpus
from megalit.errors import UserError
from megalit.synthesis.compaction import TABLE, manifest_of
from megalit.synthesis.work import Work


def check_not_fewer(work: Work, folder: Path) -> None:
    """Refuse to take generations out of a finished table, which stores and runs may go back to.

    Raises:
        UserError: it holds more than is asked for.
    """
    held = manifest_of(folder, former=True)
    if not held or not (folder / TABLE).exists():
        return
    if work.recipe.kind != "samples":
        if len(work.recipe.indices(held["count"])) > len(work.recipe.indices(work.count)):
            raise UserError(
                f"{folder} holds {held['count']} generations of each document, and {work.count} are asked for: give "
                f"--generations {held['count']} or more, or another output (training takes fewer by data.generations)"
            )
        return
    table = pq.read_table(folder / TABLE, columns=["generation", "tokens"])
    made, tokens = (table[name].to_numpy() for name in ("generation", "tokens"))
    if work.total_tokens is None:
        number = int(made[-1]) + 1 if len(made) else 0
        if number > work.count:
            raise UserError(
                f"{folder} holds {number:,} samples, and {work.count:,} are asked for: give --generations {number} or "
                "more, or another output"
            )
        return
    needed = int(np.maximum(1, tokens[:-1]).sum()) + 1  # that the last sample is still wanted
    if needed > work.total_tokens:
        raise UserError(
            f"{folder} holds samples of {needed:,} tokens, and {work.total_tokens:,} are asked for: give "
            f"--total_tokens {needed} or more, or another output"
        )


@dataclass(frozen=True)
class Leaving:
    """Generations of a finished table whose documents are no training documents of a corpus.

    Attributes:
        absent: generations of documents that it does not have, or has with another text.
        documents: so many documents they are of.
        example: id of one of these; None where there is none.
        held_out: generations of documents that it holds out.
    """

    absent: int
    documents: int
    example: str | None
    held_out: int


def leaving(corpus: Corpus, folder: Path) -> Leaving:
    """What would leave a folder's table if it were written for this corpus; of columns without texts."""
    if not manifest_of(folder, former=True) or not (folder / TABLE).exists():
        return Leaving(0, 0, None, 0)
    made = pq.read_table(folder / TABLE, columns=["document_id", "content_hash"])
    made = made.group_by(["document_id", "content_hash"]).aggregate([([], "count_all")])
    documents = pq.read_table(corpus.folder / "documents.parquet", columns=["id", "content_hash", "split"])
    joined = made.join(documents, ["document_id", "content_hash"], ["id", "content_hash"], "left outer")
    absent = joined.filter(pc.field("split").is_null())
    held_out = joined.filter(pc.field("split") == VALIDATION)
    return Leaving(
        absent=pc.sum(absent["count_all"]).as_py() or 0,
        documents=absent.num_rows,
        example=pc.min(absent["document_id"]).as_py(),
        held_out=pc.sum(held_out["count_all"]).as_py() or 0,
    )


def check_documents(corpus: Corpus, folder: Path, drop_absent: bool = False) -> str | None:
    """Refuse to take generations out of a finished table because its documents are not in this corpus.

    A corpus that has grown goes on. What it holds out now must leave the table, and is said.

    Args:
        drop_absent: they may go.

    Returns:
        What to tell the user, if anything.

    Raises:
        UserError: the table has generations of documents that the corpus does not have, or has with another text.
    """
    found = leaving(corpus, folder)
    if found.absent and not drop_absent:
        raise UserError(
            f"{folder} holds {found.absent:,} generations of {found.documents:,} documents that {corpus.folder} does "
            f"not have, or has with another text ('{found.example}', for one): name the corpus that they were made of, "
            "or another output; --drop_absent takes them out of the table (the journal keeps them)"
        )
    said = [
        f"{generations:,} of documents that {corpus.folder} {verb}"
        for generations, verb in ((found.held_out, "holds out"), (found.absent, "does not have"))
        if generations
    ]
    return f"generations leave the table, and the journal keeps them: {', '.join(said)}" if said else None
