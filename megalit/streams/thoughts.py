"""Whether documents have the thoughts that they were meant to have.

A document of few words has fewer places for thoughts than others. Whatever else it lacks was given up when thoughts
were made, or left out by the guard. Only its text tells one from the other, so that is looked at when stores are built.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megalit.errors import UserError
from megalit.streams.orderings import LatentThoughts, Ordering
from megalit.streams.pieces import Integers, PieceTables
from megalit.streams.plan import THOUGHTS
from megalit.streams.store_set import StoreSet
from megalit.synthesis.recipes.latent_thoughts import LatentThoughts as Recipe
from megalit.synthesis.recipes.latent_thoughts import split_places

# In the origin of thoughts; stores of before have them behind the first token of the word that they belong before.
TOKEN_OFFSETS = "token_offsets"


@dataclass
class Places:
    """How many thoughts each document was to have.

    Attributes:
        splits: places of a document that is long enough.
        fewer: places of each document that has fewer, by id.
    """

    splits: int
    fewer: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, origin: dict[str, Any]) -> "Places | None":
        """Those of a table of thoughts, before a document is looked at; None where the recipe that made it is not known
        to choose its places by :func:`split_places`."""
        if origin.get("recipe") != Recipe().name:
            return None
        numbers = pq.read_table(path, columns=["generation"]).column(0)
        return cls(int(pc.max(numbers).as_py() or 0) + 1)

    def look(self, document: str, text: str, made: int) -> None:
        """Note how many places a document has, of which so many have a thought. Finding them takes time, so it is done
        where some have none."""
        if made < self.splits:
            places = len(split_places(text, self.splits))
            if places < self.splits:
                self.fewer[document] = places


def check_thoughts(stores: StoreSet, tables: PieceTables, ordering: LatentThoughts) -> None:
    """Refuse stores without thoughts, and those that lack some where that is not accepted.

    Raises:
        UserError: the thoughts that are not there, or some of them.
    """
    store = stores.thoughts
    if store is None:
        raise UserError(
            f"synthetic data is asked for and {stores.folder} holds no thoughts: "
            "tokenize a corpus whose rows have 'thoughts', or train on another stream"
        )
    if TOKEN_OFFSETS not in store.manifest.origin:
        warnings.warn(
            f"{store.folder} was built by an earlier megalit, whose thoughts stand a token late: "
            "tokenize the corpus into another folder for new runs",
            stacklevel=2,
        )
    if store.manifest.places is not None:
        if ordering.incomplete == "refuse":
            _refuse_fewer(tables, _places(tables, **store.manifest.places))
    elif store.manifest.origin.get("recipe") == Recipe().name:
        _warn_of_fewer(tables)


def describe_thoughts(ordering: Ordering, tables: PieceTables) -> dict[str, Any]:
    """G of latent thoughts, which no setting says, for the plan: places of a document, fewer in a short one.

    Beside it their mean, where the store says how many there were to be: plans of runs on earlier stores lack it.
    """
    if not isinstance(ordering, LatentThoughts):
        return {}
    found: dict[str, Any] = {"generations": int(tables.thoughts.count.max(initial=0))}
    store = tables.stores.thoughts
    if store is not None and store.manifest.places is not None:
        found[THOUGHTS] = mean_thoughts(tables)
    return found


def mean_thoughts(tables: PieceTables) -> float:
    """Thoughts of a document on average, to three places."""
    return round(tables.thoughts.size / tables.documents, 3)


def _places(tables: PieceTables, splits: int, fewer: dict[str, int]) -> Integers:
    """Places of each document, ``(documents,)``."""
    places = np.full(tables.documents, splits, dtype=np.int64)
    if fewer and tables.thoughts.count.min(initial=splits) < splits:
        number = pc.index_in(tables.ids, value_set=pa.array(list(fewer), tables.ids.type))
        known = np.flatnonzero(number.is_valid().to_numpy(zero_copy_only=False))
        places[known] = np.array(list(fewer.values()))[number.drop_null().to_numpy()]
    return places


def _refuse_fewer(tables: PieceTables, places: Integers) -> None:
    lacking = np.maximum(places - tables.thoughts.count, 0)
    if not lacking.any():
        return
    first = int(lacking.argmax())
    raise UserError(
        f"document '{tables.name(first)}' has {tables.thoughts.count[first]} of {places[first]} thoughts, and all "
        f"documents together {tables.thoughts.size:,} of {places.sum():,}: make those that were given up "
        "(`megalit generate` with more --attempts, or --retry_refused true) and tokenize them into another folder, "
        f"or set data.incomplete to accept ({np.count_nonzero(lacking):,} of {tables.documents:,} documents lack some)"
    )


def _warn_of_fewer(tables: PieceTables) -> None:
    """Of stores that do not say how many thoughts there were to be, runs on earlier ones among them, which go on."""
    count = tables.thoughts.count
    most = int(count.max(initial=0))
    fewer = int(np.count_nonzero(count < most))
    if fewer:
        warnings.warn(
            f"{fewer:,} of {tables.documents:,} documents have fewer than {most} thoughts, and the mean is "
            f"{mean_thoughts(tables):.4g}: their store does not say whether these are too short for more or lack some",
            stacklevel=2,
        )
