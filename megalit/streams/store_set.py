"""The stores of one folder, as one data set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megalit.errors import UserError
from megalit.streams.store import TokenStore


@dataclass(frozen=True)
class StoreSet:
    """The stores of one data set: real documents, held-out ones, generations, thoughts, samples.

    Attributes:
        real: the training documents.
        validation: held-out documents, or None.
        generations: segments of generations, by folder name.
        thoughts: thoughts, or None.
        samples: texts that were made from no document.
        tokenizer: the folder of the tokenizer that made them, or None.
    """

    folder: Path
    real: TokenStore
    validation: TokenStore | None
    generations: tuple[TokenStore, ...]
    thoughts: TokenStore | None
    samples: tuple[TokenStore, ...]
    tokenizer: Path | None

    @property
    def training(self) -> tuple[TokenStore, ...]:
        """All but the held-out documents."""
        return tuple(
            store for store in (self.real, *self.generations, self.thoughts, *self.samples) if store is not None
        )

    @property
    def all(self) -> tuple[TokenStore, ...]:
        return self.training if self.validation is None else (*self.training, self.validation)

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets of generations and samples, each of one or more segments."""
        return names_of_sets((*self.generations, *self.samples))

    def only(self, sets: Sequence[str]) -> "StoreSet":
        """Without the generations and samples of other sets, and these in the order of their names here.

        Raises:
            UserError: there is no set of that name.
        """
        for name in sets:
            if name not in self.sets:
                there = ", ".join(self.sets) or "no sets"
                raise UserError(f"data.sets names '{name}' and {self.folder} holds {there}: mend the name")

        def chosen(stores: tuple[TokenStore, ...]) -> tuple[TokenStore, ...]:
            return tuple(store for name in sets for store in stores if names_of_sets([store]) == (name,))

        return replace(self, generations=chosen(self.generations), samples=chosen(self.samples))

    @property
    def contents(self) -> dict[str, str]:
        """Content hash of each store, by name."""
        return {store.folder.name: store.manifest.content_hash for store in self.all}


def names_of_sets(stores: Iterable[TokenStore]) -> tuple[str, ...]:
    """Of the sets that these stores are segments of: ``rephrase.002`` is one of ``rephrase``."""
    return tuple(dict.fromkeys(store.folder.name.split(".")[0] for store in stores))


def open_stores(folder: Path) -> StoreSet:
    """Open all finished stores in ``folder``.

    Raises:
        UserError: no store of real documents there, or stores made by different tokenizers.
    """
    found: dict[str, list[TokenStore]] = {
        "real": [],
        "validation": [],
        "generations": [],
        "thoughts": [],
        "samples": [],
    }
    for path in sorted(folder.glob("[!.]*/manifest.json")):
        store = TokenStore(path.parent)
        found[store.manifest.kind].append(store)
    if not found["real"]:
        raise UserError(f"{folder} holds no token store of real documents: build it with `megalit tokenize`")
    for kind in ("real", "validation", "thoughts"):
        if len(found[kind]) > 1:
            names = " and ".join(store.folder.name for store in found[kind])
            raise UserError(f"{folder} holds several {kind} stores ({names}): keep one of them there")
    stores = StoreSet(
        folder=folder,
        real=found["real"][0],
        validation=next(iter(found["validation"]), None),
        generations=tuple(found["generations"]),
        thoughts=next(iter(found["thoughts"]), None),
        samples=tuple(found["samples"]),
        tokenizer=folder / "tokenizer" if (folder / "tokenizer").exists() else None,
    )
    for store in stores.all:
        if store.manifest.tokenizer != stores.real.manifest.tokenizer:
            raise UserError(
                f"{store.folder} and {stores.real.folder} were made by different tokenizers: "
                "build one of them again with the other's"
            )
    return stores
