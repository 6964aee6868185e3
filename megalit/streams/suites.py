"""Validation suites: the documents of a token store, each once, in the order of the store."""

import numpy as np

from megalit.errors import UserError
from megalit.streams.joining import join
from megalit.streams.loading import SuiteWindows
from megalit.streams.packing import PackedTokens
from megalit.streams.pieces import BOS, EOS, Literals
from megalit.streams.store import TokenStore
from megalit.streams.store_set import StoreSet


def suite_of(store: TokenStore, context_length: int, separate: bool, stride: int | None = None) -> SuiteWindows:
    """The windows over a store of any kind; each item is a document with BOS and EOS around it.

    Args:
        store: where the documents lie.
        context_length: tokens in a window.
        separate: start a window with each document.
        stride: slide the window over what is longer than it (see :class:`SuiteWindows`).

    Raises:
        UserError: the store holds no tokens.
    """
    manifest = store.manifest
    if not manifest.tokens:
        raise UserError(f"{store.folder} holds no tokens, so there is no loss to measure: name another store")
    alone = StoreSet(store.folder, store, None, (), None, (), None)
    tables = join(alone, Literals(manifest.bos, manifest.eos))
    rows = np.full((tables.documents, 3), EOS, dtype=np.int32)
    rows[:, 0] = BOS
    rows[:, 1] = tables.real.rows()
    return SuiteWindows(PackedTokens.of(tables.table, rows.ravel()), context_length, manifest.bytes, separate, stride)
