"""What is said of the sets of generations and samples that a mixture reads, in warnings and in its plan."""

import warnings
from collections.abc import Iterable, Sequence

from megalit.streams.orderings import Ordering, Samples
from megalit.streams.pieces import PieceTables
from megalit.streams.store import TokenStore
from megalit.streams.store_set import names_of_sets


def warn_of_unsaid(ordering: Ordering, tables: PieceTables, is_own: bool) -> None:
    """Say which sets a stream reads where several lie there and none was chosen: another may have been meant.

    ``is_own`` says that the stores are the mixture's own, among which a setting chooses.
    """
    stores = tables.stores
    read = names_of_sets(ordering.sources(tables))
    there = names_of_sets(stores.samples if isinstance(ordering, Samples) else stores.generations)
    if not set(read) & set(there) or len(there) < 2:
        return
    unread = [name for name in there if name not in read]
    sets = f"the sets {', '.join(read)}" if len(read) > 1 else f"the set {read[0]}"
    order = ", in this order" if len(read) > 1 else ""
    rest = f" and not {', '.join(unread)}" if unread else ""
    remedy = "data.sets names those" if is_own else "its folder should hold only those"
    warnings.warn(
        f"the stream '{ordering.name}' reads {sets} of {stores.folder}{order}{rest}: {remedy} that should take part",
        stacklevel=3,
    )


def warn_of_unread(named: Sequence[str], read: Iterable[TokenStore]) -> None:
    """Say which of the sets that were chosen give nothing: those before them have enough, as when one has grown."""
    given = names_of_sets(read)
    unread = [name for name in named if name not in given]
    if unread:
        warnings.warn(
            f"data.sets names {', '.join(unread)}, of which no stream reads anything: raise data.generations, or take "
            "out what should not take part",
            stacklevel=3,
        )


def describe_segments(read: Iterable[Sequence[TokenStore]]) -> dict[str, str]:
    """For the plan: tells runs from those of before, where names such as ``a-b`` came between ``a`` and ``a.002``."""
    names = [[store.folder.name for store in stores] for stores in read]
    return {"segments": "set by set"} if any(order != sorted(order) for order in names) else {}
