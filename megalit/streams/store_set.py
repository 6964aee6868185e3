"""The stores of one folder, as one data set."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megalit.errors import UserError
from megalit.streams.store import TokenStore

# What a store consists of; copying programs begin such files under hidden names with an ending of their own.
_PARTS = re.compile(r"\.?(index\.json|items\.parquet|chunk-.+\.bin)(\..+)?")


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


def set_of(name: str) -> tuple[str, int]:
    """The set of a store of that name, and its place there: ``rephrase.002`` is the second of ``rephrase``.

    Sets may be named by models, which have dots in their names.
    """
    segment = re.fullmatch(r"(.+)\.(\d{3,})", name)
    # As segments are named; two stores in one place would stand in the order of the file system.
    if segment and int(segment[2]) > 1 and segment[2] == f"{int(segment[2]):03}":
        return segment[1], int(segment[2])
    return name, 1


def names_of_sets(stores: Iterable[TokenStore]) -> tuple[str, ...]:
    """Of the sets that these stores are segments of."""
    return tuple(dict.fromkeys(set_of(store.folder.name)[0] for store in stores))


def is_part_of_store(files: Iterable[str]) -> bool:
    """Whether a folder without a manifest holds what copying leaves that was interrupted; builds have hidden names."""
    return any(map(_PARTS.fullmatch, files))


def in_part(store: str) -> UserError:
    """The error for such a folder."""
    return UserError(f"{store} is a token store that is there in part: copy it again, or move it away")


def _finished(folder: Path) -> list[Path]:
    """The folders of the stores, set by set.

    Raises:
        UserError: a store, or a set, is there in part, as copying leaves it that was interrupted.
    """
    found = []
    places: dict[str, set[int]] = {}
    for path in folder.glob("[!.]*/"):
        files = {file.name for file in path.glob("*")}
        if "manifest.json" in files:
            found.append(path)
            name, place = set_of(path.name)
            places.setdefault(name, set()).add(place)
        elif is_part_of_store(files):
            raise in_part(str(path))
    for name, there in places.items():
        for place in sorted(there):
            if place > 1 and place - 1 not in there:
                before = name if place == 2 else f"{name}.{place - 1:03}"
                raise UserError(
                    f"{folder} holds {name}.{place:03} and not {before}, which it continues: copy that there too, move "
                    "this one away, or, if it continues nothing, give it another name"
                )
    return sorted(found, key=lambda path: set_of(path.name))


def open_stores(folder: Path) -> StoreSet:
    """Open all finished stores in ``folder``.

    Raises:
        UserError: no store of real documents there, one that is there in part, or stores made by different tokenizers.
    """
    found: dict[str, list[TokenStore]] = {
        "real": [],
        "validation": [],
        "generations": [],
        "thoughts": [],
        "samples": [],
    }
    for path in _finished(folder):
        store = TokenStore(path)
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
