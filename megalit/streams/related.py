"""Related documents side by side: an order of documents along a nearest-neighbour path.

In-context pre-training (ICPT, arXiv 2310.10638) puts documents that are close in an embedding next to each other, so
that a window spans related ones. The default embedding is TF-IDF over the documents' own tokens; any other comes in
as a file.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from megalit.errors import UserError, reason
from megalit.streams.pieces import Integers, PieceTables

# Neighbours that the path may go on to before it has to jump.
_NEIGHBOURS = 32


def related_order(tables: PieceTables, embeddings: Path | None, seed: int) -> Integers:
    """An order of the documents in which neighbours are related, ``(documents,)``.

    Args:
        tables: the documents.
        embeddings: Parquet file with the columns ``id`` and ``embedding`` (lists of numbers of one length), or
            None for TF-IDF over tokens.
        seed: fixes where the path begins and where it jumps.

    Raises:
        UserError: the file is missing or malformed, or lacks a document.
    """
    vectors = token_tfidf(tables) if embeddings is None else read_embeddings(embeddings, tables.ids)
    return nearest_neighbour_path(vectors, seed)


def token_tfidf(tables: PieceTables) -> sparse.csr_matrix:
    """TF-IDF of each document's tokens, rows of length 1: ``(documents, largest token id + 1)``."""
    columns, counts, ends = [], [], [0]
    for row in tables.real.rows():
        tokens, count = np.unique(tables.table.read(int(row)), return_counts=True)
        columns.append(tokens.astype(np.int64))
        counts.append(count)
        ends.append(ends[-1] + len(tokens))
    data: Any = np.concatenate(counts)
    matrix = sparse.csr_matrix((data, np.concatenate(columns), np.array(ends)))
    return TfidfTransformer(sublinear_tf=True).fit_transform(matrix)


def read_embeddings(path: Path, ids: pa.Array) -> npt.NDArray[np.float32]:
    """Embeddings of the documents ``ids``, in their order, rows of length 1.

    Raises:
        UserError: see :func:`related_order`.
    """
    if not path.exists():
        raise UserError(f"data.embeddings {path} does not exist: check the path")
    try:
        table = pq.read_table(path, columns=["id", "embedding"])
        places = {str(name): place for place, name in enumerate(table["id"].to_pylist())}
        vectors = np.stack(table["embedding"].to_numpy()).astype(np.float32)
        if not np.isfinite(vectors).all():
            raise ValueError("a number is not finite")
    except (pa.ArrowInvalid, ValueError, KeyError) as error:
        raise UserError(
            f"data.embeddings {path} is no Parquet file with 'id' and 'embedding' of one length "
            f"({reason(error)}): write it again"
        ) from error
    names = ids.to_pylist()
    absent = next((name for name in names if name not in places), None)
    if absent is not None:
        raise UserError(f"data.embeddings {path} lacks the document '{absent}': embed every training document")
    ordered: npt.NDArray[np.float32] = normalize(vectors[[places[name] for name in names]])
    return ordered


def nearest_neighbour_path(vectors: Any, seed: int) -> Integers:
    """Visit every row once, each time going to the nearest row not yet visited.

    Only the nearest few of each row are known; where all of them have been visited, the path jumps to a row drawn
    by seed.
    """
    documents = vectors.shape[0]
    random = np.random.default_rng([seed, *b"related"])
    known = min(_NEIGHBOURS, documents - 1)
    if not known:
        return np.zeros(documents, dtype=np.int64)
    neighbours = NearestNeighbors(n_neighbors=known, metric="cosine").fit(vectors).kneighbors(return_distance=False)
    jumps = iter(random.permutation(documents).tolist())
    visited = np.zeros(documents, dtype=bool)
    path: Integers = np.empty(documents, dtype=np.int64)
    here = -1
    for place in range(documents):
        onward = (row for row in (neighbours[here].tolist() if here >= 0 else ()) if not visited[row])
        here = next(onward, -1)
        while here < 0:
            candidate = next(jumps)
            here = -1 if visited[candidate] else candidate
        visited[here] = True
        path[place] = here
    return path
