"""Room on disk that a run's data takes: token stores, and a node's plan arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from megalit.streams.assumed import AssumedRun
from megalit.streams.building import CHUNK_BYTES
from megalit.streams.mixture import Mixture
from megalit.streams.pieces import LITERALS
from megalit.streams.plan import StreamPlan
from megalit.streams.plan_arrays import KEPT_EPOCHS

# A row of items.parquet, compressed: 28 bytes for a document's, 14 for one of four generations of it, whose ids and
# hashes repeat (measured on the quickstart's data). Tokens take a hundred times as much.
ITEM_ROW = 28

# numpy's header before each array.
_HEADER = 128
# Joined tables: buffer, begin, length, document, generation of each row; kept, start and count of four groups; the
# least place of each store of generations; where the four groups begin, and the samples.
_TABLE_ROW, _TABLE_DOCUMENT, _TABLE_STORE, _TABLE_REST, _TABLE_ARRAYS = 2 + 4 + 4 + 4 + 4, 8 + 2 * 4 * 8, 8, 48, 11
# Pieces and where each ends; windows; and, of the first epoch, how many tokens are synthetic.
_EPOCH_ROW, _EPOCH_WINDOW, _EPOCH_COUNT, _EPOCH_ARRAYS = 4 + 8, 8, 8, 4


@dataclass(frozen=True)
class DataSizes:
    """Bytes on disk.

    Attributes:
        stores: of all stores, with their tables of items.
        store_files: their number of files.
        tables: on each node: the stores of each folder joined by document.
        epoch: on each node: one epoch of every stream, arranged.
        plan_arrays: on each node: the tables and as many epochs as are kept.
        measured: whether the stores are there and their files were counted.
    """

    stores: int
    store_files: int
    tables: int
    epoch: int
    plan_arrays: int
    measured: bool


def sizes_of_mixture(mixture: Mixture) -> DataSizes:
    """The sizes of data that is there."""
    files = [path for store in mixture.all_stores for path in store.folder.iterdir() if path.is_file()]
    tables = [
        _table_bytes(len(tables.table), tables.documents, len(tables.stores.generations))
        for tables in mixture.all_tables
    ]
    rows = [len(stream.packed(0).rows) for stream in mixture.streams]
    return DataSizes(
        stores=sum(path.stat().st_size for path in files),
        store_files=len(files),
        **_arrays(sum(tables), rows, mixture.plan.streams, mixture.settings.epoch_order),
        measured=True,
    )


def sizes_of_assumed(run: AssumedRun, epoch_order: str) -> DataSizes:
    """The sizes of data that is assumed."""
    token_bytes = run.stored_tokens * run.dtype_bytes
    chunks = ceil(token_bytes / CHUNK_BYTES)
    rows = [stream.rows for stream in run.streams]
    return DataSizes(
        stores=token_bytes + 4 * (run.items + 2 * chunks) + ITEM_ROW * run.items,
        store_files=chunks + 3 * (2 if run.items > run.documents else 1),
        **_arrays(_table_bytes(run.table_rows + LITERALS, run.documents, 1), rows, run.plan.streams, epoch_order),
        measured=False,
    )


def _table_bytes(rows: int, documents: int, stores: int) -> int:
    """The joined stores of one folder."""
    columns = _TABLE_ROW * rows + _TABLE_DOCUMENT * documents + _TABLE_STORE * stores + _TABLE_REST
    return columns + _TABLE_ARRAYS * _HEADER


def _arrays(tables: int, rows: Sequence[int], streams: Sequence[StreamPlan], epoch_order: str) -> dict[str, int]:
    epochs = [
        _EPOCH_ROW * count + _EPOCH_WINDOW * stream.windows_per_epoch + _EPOCH_COUNT + _EPOCH_ARRAYS * _HEADER
        for count, stream in zip(rows, streams, strict=True)
    ]
    # The paper's order is one for all epochs; else those next to the one being read are kept too.
    kept = [1 if epoch_order == "paper" else min(KEPT_EPOCHS, max(1, ceil(stream.epochs))) for stream in streams]
    held = sum(size * number for size, number in zip(epochs, kept, strict=True))
    return {"tables": tables, "epoch": sum(epochs), "plan_arrays": tables + held}
