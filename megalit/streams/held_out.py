"""Documents that one store trains on and another one measures."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megalit.streams.joining import subset
from megalit.streams.store import TokenStore


def shared_ids(real: TokenStore, held_out: TokenStore) -> int:
    """How many ids of documents that are held out a store of real documents has, too."""
    wanted = held_out.items(["document_id"]).column(0).unique()
    found = [part.filter(pc.is_in(part, wanted)) for part in real.items(["document_id"]).column(0).chunks]
    return len(pa.chunked_array(found, pa.string()).unique())


def shared_documents(real: TokenStore, others: TokenStore, real_fraction: float = 1.0) -> pa.Array:
    """Content hashes of the documents of a store of real ones that are among those that another store is of.

    Args:
        real: the store of real documents.
        others: a store of any kind; that of generations is of the documents that they were made from.
        real_fraction: the share of ``real`` that takes part (:func:`megalit.streams.joining.join`).
    """
    wanted = others.items(["content_hash"]).column(0).unique().drop_null()
    if real_fraction < 1:
        table = real.items(["document_id", "content_hash"])
        taken = pa.array(np.flatnonzero(subset(table["document_id"], real_fraction) >= 0))
        parts = table["content_hash"].take(taken).chunks
    else:
        parts = [part.dictionary for part in real.column_as_dictionaries("content_hash")]
    found = [part.filter(pc.is_in(part, wanted)) for part in parts]
    return pa.chunked_array(found, pa.string()).unique()
