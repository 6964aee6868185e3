"""Tables of pieces that are computed once per node."""

from dataclasses import asdict
from typing import Any

import numpy as np

from megalit import __version__
from megalit.files import fingerprint
from megalit.streams.joining import buffers_of, group_of_samples, join
from megalit.streams.pieces import Group, Literals, PieceTable, PieceTables
from megalit.streams.plan_arrays import Arrays, PlanArrays
from megalit.streams.store_set import StoreSet

_COLUMNS = ("buffer", "begin", "length", "document", "generation")
_GROUPS = ("real", "generations", "thoughts", "segments")


class MappedTables:
    """The tables of :func:`~megalit.streams.joining.join`, computed once per node and mapped by every process there.

    Args:
        stores, literals, real_fraction: as for :func:`~megalit.streams.joining.join`.

    Attributes:
        tables: the pieces.
        key: fingerprint of everything that they depend on.
    """

    def __init__(self, stores: StoreSet, literals: Literals, real_fraction: float) -> None:
        # Which document an item belongs to is not part of a store's content hash, so its table counts too.
        items = [(store.folder / "items.parquet").stat() for store in stores.training]
        changed = [[file.st_size, file.st_mtime_ns] for file in items]
        # In the order in which generations follow each other.
        order = [store.folder.name for store in stores.training]
        versions = [__version__, np.__version__, *order]
        self.key = fingerprint([versions, stores.contents, changed, asdict(literals), real_fraction])
        self._plans = PlanArrays(self.key, lambda _: _to_arrays(join(stores, literals, real_fraction)))
        self.tables = _from_arrays(self._plans[0], stores, literals)

    def forget(self) -> None:
        """Remove the files; what is mapped stays readable."""
        self._plans.forget()


def _to_arrays(tables: PieceTables) -> Arrays:
    columns = {name: getattr(tables.table, name) for name in _COLUMNS}
    groups = [getattr(tables, name) for name in _GROUPS]
    samples = tables.samples
    return {
        **columns,
        "kept": tables.kept,
        "least_places": tables.least_places,
        "samples": np.array([samples.first, samples.size]),
        "first": np.array([group.first for group in groups]),
        "start": np.stack([group.start for group in groups]),
        "count": np.stack([group.count for group in groups]),
    }


def _from_arrays(arrays: Any, stores: StoreSet, literals: Literals) -> PieceTables:
    table = PieceTable(buffers_of(stores, literals), *(arrays[name] for name in _COLUMNS))
    real, generations, thoughts, segments = (
        Group(int(first), start, count)
        for first, start, count in zip(arrays["first"], arrays["start"], arrays["count"], strict=True)
    )
    samples = group_of_samples(*arrays["samples"].tolist())
    groups = (real, generations, thoughts, segments, samples)
    return PieceTables(stores, arrays["kept"], table, *groups, arrays["least_places"])
