"""A mixture: streams, their shares in each phase of the run, and the plan that follows."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from megalit.errors import UserError
from megalit.files import file_digest, fingerprint
from megalit.streams.held_out import shared_documents, shared_ids
from megalit.streams.loading import SuiteWindows
from megalit.streams.mapped_tables import MappedTables
from megalit.streams.orderings import LatentThoughts, Ordering, Real, Samples, describe, describe_generations
from megalit.streams.pieces import Integers, Literals, PieceTables
from megalit.streams.plan import RunPlan
from megalit.streams.plan_arrays import Arrays, PlanArrays
from megalit.streams.related import related_order
from megalit.streams.remote import local_stores
from megalit.streams.run_length import Component, MixtureSettings, describe_blocks, schedule_of, steps_of, stream_plans
from megalit.streams.sets import describe_segments, warn_of_unread, warn_of_unsaid
from megalit.streams.store import TokenStore
from megalit.streams.store_set import StoreSet, names_of_sets, open_stores
from megalit.streams.stream import Stream
from megalit.streams.suites import suite_of
from megalit.streams.thoughts import check_thoughts, describe_thoughts


@dataclass(frozen=True)
class _Opened:
    """A data set that streams of the mixture read: its stores, and its pieces with their key."""

    stores: StoreSet
    literals: Literals
    mapped: MappedTables
    tables: PieceTables
    key: str

    @property
    def real_tokens(self) -> int:
        """Tokens of the real documents, BOS and EOS included."""
        group = self.tables.real
        lengths = self.tables.table.length[group.first : group.first + group.size]
        return int(lengths.sum(dtype=np.int64)) + 2 * group.size


Markers = Callable[[StoreSet], tuple[list[int], list[int], list[int]]]


class Mixture:
    """Streams and their schedule.

    Args:
        settings: what the streams share.
        components: the streams.
        phases: share of the run's steps in each phase.
        markers: gives the tokens of the thought markers and the separator.

    Raises:
        UserError: stores that are not there or do not go together, or lengths that cannot work.
    """

    def __init__(
        self,
        settings: MixtureSettings,
        components: Sequence[Component],
        phases: Sequence[Fraction],
        markers: Markers,
    ) -> None:
        self.settings = settings
        self._markers = markers
        self._opened: dict[str, _Opened] = {}
        # By content: a file of another name may be the same, and one of the same name another.
        self._embeddings = _file_digest(settings.embeddings)
        self.streams = [self._stream(component) for component in components]
        own = self._open(settings.stores)
        self._check_held_out(own.stores, components)
        real_tokens = own.real_tokens
        if real_tokens <= settings.context_length:
            raise UserError(
                f"data.context_length is {settings.context_length} and the real documents have {real_tokens} tokens: "
                "lower it or add documents"
            )
        self.suites = self._suites(own.stores)
        windows = [stream.windows for stream in self.streams]
        steps = steps_of(settings, components, phases, windows, real_tokens)
        self.schedule = schedule_of(settings, components, phases, steps)
        self._contents = {folder: self._read(folder, components) for folder in self._opened}
        if settings.sets is not None:
            warn_of_unread(settings.sets, chain(*self._made(settings.stores)))
        self.plan = self._plan(components, phases, steps, real_tokens)

    @property
    def stores(self) -> StoreSet:
        """The mixture's own stores."""
        return self._opened[self.settings.stores].stores

    @property
    def all_stores(self) -> tuple[TokenStore, ...]:
        """The stores of every folder that streams read, the mixture's own first."""
        others = [opened.stores for opened in self._opened.values() if opened.stores is not self.stores]
        return tuple(store for stores in (self.stores, *others) for store in stores.all)

    @property
    def all_tables(self) -> list[PieceTables]:
        """The pieces of each folder that streams read."""
        return [opened.tables for opened in self._opened.values()]

    def windows_seen(self, samples: int) -> dict[str, int]:
        """Windows of each stream among the first ``samples`` of the run."""
        counts = self.schedule.counts(samples)
        return {stream.name: int(count) for stream, count in zip(self.streams, counts, strict=True)}

    def forget_plans(self) -> None:
        """Remove the streams' plans from this node's disk; they are made again when they are needed."""
        for stream in self.streams:
            stream.forget()
        for opened in self._opened.values():
            opened.mapped.forget()

    def without_unread(self, plan: dict[str, Any]) -> dict[str, Any]:
        """A plan, as JSON, without the stores that lie here and that no stream reads: earlier plans name these, too."""
        settings: dict[str, Any] = plan.get("settings", {})
        there = [opened.stores.contents for opened in self._opened.values()]
        if len(settings.get("stores", ())) != len(there):
            return plan
        stores = [
            {name: content for name, content in named.items() if name in read or here.get(name) != content}
            for named, read, here in zip(settings["stores"], self._contents.values(), there, strict=True)
        ]
        return {**plan, "settings": {**settings, "stores": stores}}

    def _read(self, folder: str, components: Sequence[Component]) -> dict[str, str]:
        """Content hash of each store in a folder that counts: of the documents, and what the streams take of others."""
        opened = self._opened[folder]
        counted = [opened.stores.real, opened.stores.validation]
        for component in components:
            if (component.stores or self.settings.stores) == folder:
                counted += component.ordering.sources(opened.tables)
        names = {store.folder.name for store in counted if store is not None}
        return {name: content for name, content in opened.stores.contents.items() if name in names}

    def _made(self, folder: str) -> list[list[TokenStore]]:
        """The generations and the samples in a folder that streams take something of, as they follow each other."""
        stores, read = self._opened[folder].stores, self._contents[folder]
        return [[store for store in made if store.folder.name in read] for made in (stores.generations, stores.samples)]

    @property
    def _order_of_sets(self) -> list[str] | None:
        """The sets that are read of the mixture's own stores, where some do not stand in the order of their names."""
        orders = [list(names_of_sets(made)) for made in self._made(self.settings.stores)]
        return [name for order in orders for name in order] if any(order != sorted(order) for order in orders) else None

    @property
    def _unsaid(self) -> list[list[TokenStore]]:
        """What streams read of folders whose sets no setting puts in order."""
        said = self.settings.stores if self.settings.sets is not None else None
        return [made for folder in self._opened if folder != said for made in self._made(folder)]

    def _open(self, folder: str) -> "_Opened":
        if folder not in self._opened:
            stores = open_stores(local_stores(folder))
            if self.settings.sets is not None and folder == self.settings.stores:
                stores = stores.only(self.settings.sets)
            start, end, separator = self._markers(stores)
            manifest = stores.real.manifest
            literals = Literals(manifest.bos, manifest.eos, tuple(start), tuple(end), tuple(separator))
            first = next(iter(self._opened.values()), None)
            if first is not None and first.stores.real.manifest.tokenizer != manifest.tokenizer:
                raise UserError(f"{folder} and {self.settings.stores} were made by different tokenizers")
            mapped = MappedTables(stores, literals, self.settings.real_fraction)
            tables, key = mapped.tables, mapped.key
            if self.settings.document_order == "related":
                tables = replace(tables, path=self._path(mapped))
                key = fingerprint([key, self._related()])
            self._opened[folder] = _Opened(stores, literals, mapped, tables, key)
        return self._opened[folder]

    def _check_held_out(self, own: StoreSet, components: Sequence[Component]) -> None:
        """Refuse to replay a document that the mixture's own corpus holds out: another one may not have done so."""
        if own.validation is None:
            return
        replayed = {component.stores for component in components if not isinstance(component.ordering, Samples)}
        for folder, opened in self._opened.items():
            if opened.stores is own or folder not in replayed:
                continue
            found = len(shared_documents(opened.stores.real, own.validation))
            if found:
                raise UserError(
                    f"{folder} has {found:,} documents that {own.folder} holds out: build both with the same ids and "
                    "validation_fraction, or without the documents that they share"
                )
            if same := shared_ids(opened.stores.real, own.validation):
                warnings.warn(
                    f"{folder} has {same:,} documents with the ids of others that {own.folder} holds out: if they are "
                    "these in another version, they teach what is measured; if not, a corpus with prefix_ids says so",
                    stacklevel=3,
                )

    def _path(self, mapped: MappedTables) -> Integers:
        """The path over related documents, found once per node."""
        arrays = PlanArrays(fingerprint(["related", mapped.key, self._related()]), lambda _: self._find_path(mapped))
        path: Integers = arrays[0]["path"]
        return path

    def _find_path(self, mapped: MappedTables) -> Arrays:
        embeddings = Path(self.settings.embeddings) if self.settings.embeddings is not None else None
        return {"path": related_order(mapped.tables, embeddings, self.settings.seed)}

    def _related(self) -> list[Any]:
        """What a path depends on, apart from the pieces."""
        return [self._embeddings, self.settings.seed]

    def _stream(self, component: Component) -> Stream:
        opened = self._open(component.stores or self.settings.stores)
        stores = opened.stores
        if isinstance(component.ordering, LatentThoughts):
            check_thoughts(stores, opened.tables, component.ordering)
        elif isinstance(component.ordering, Samples):
            if not stores.samples:
                raise UserError(
                    f"samples are asked for and {stores.folder} holds none: draw some with `megalit generate` "
                    "(configs/generate/self_distillation.yaml) and tokenize them, or train on another stream"
                )
        elif not isinstance(component.ordering, Real) and not stores.generations:
            raise UserError(
                f"synthetic data is asked for and {stores.folder} holds no generations: "
                "tokenize a corpus with generations, or train on RealStream"
            )
        settings = self.settings
        is_own = component.stores in (None, settings.stores)
        if not is_own or settings.sets is None:
            warn_of_unsaid(component.ordering, opened.tables, is_own)
        stream = Stream(
            component.ordering,
            opened.tables,
            settings.context_length,
            settings.epoch_order,
            settings.seed,
            opened.key,
        )
        if not stream.windows:
            raise UserError(
                f"data.context_length is {settings.context_length} and the stream '{stream.name}' has {stream.tokens} "
                "tokens: lower it or add documents"
            )
        return stream

    def _suites(self, stores: StoreSet) -> dict[str, SuiteWindows]:
        if stores.validation is None:
            return {}
        settings = self.settings
        return {"iid": suite_of(stores.validation, settings.context_length, settings.separate_validation)}

    def _plan(
        self, components: Sequence[Component], phases: Sequence[Fraction], steps: int, real_tokens: int
    ) -> RunPlan:
        settings = {
            **asdict(self.settings),
            "sets": self._order_of_sets,
            "embeddings": self._embeddings,
            "stores": list(self._contents.values()),
            "tokenizer": self.stores.real.manifest.tokenizer,
            "literals": [opened.literals.parts for opened in self._opened.values()],
            "streams": [
                {
                    **describe(component.ordering),
                    **describe_generations(component.ordering, stream.tables),
                    **describe_thoughts(component.ordering, stream.tables),
                    **_drawn(component.ordering),
                    "shares": [str(share) for share in component.shares],
                }
                for component, stream in zip(components, self.streams, strict=True)
            ],
            "phases": [str(phase) for phase in phases],
            **describe_blocks(self.settings, components),
            **describe_segments(self._unsaid),
        }
        return RunPlan(
            streams=stream_plans(self.streams, self.schedule),
            context_length=self.settings.context_length,
            global_batch=self.settings.global_batch,
            steps=steps,
            vocabulary_size=max(store.manifest.vocabulary_size for store in self.all_stores),
            bos=self.stores.real.manifest.bos,
            unique_real_tokens=real_tokens,
            settings=settings,
        )


def _drawn(ordering: Ordering) -> dict[str, str]:
    """Tells runs from those of before streams of all names drew the same generations."""
    drawn = getattr(ordering, "draw", None) == "drawn" and ordering.name != "stitched"
    return {"drawn": "alike in all streams"} if drawn else {}


def _file_digest(name: str | None) -> str | None:
    """Hash of a file's content; None where none is named, or where it is missing, which its reader reports."""
    if name is None or not Path(name).is_file():
        return None
    return file_digest(Path(name))
