"""LightningDataModules over a mixture of streams: the real documents and a synthetic stream.

The synthetic stream's share of windows is ``synthetic_fraction``; the rest comes from a separate
stream of the real documents. (A simple or stitched stream holds each real document once itself, as
in the paper; the plan says the true share of synthetic tokens.)
"""

from abc import abstractmethod
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
from torch.utils.data import DataLoader

from megalit.errors import UserError
from megalit.streams import pieces
from megalit.streams.loading import (
    Batch,
    GlobalBatchSampler,
    ResumableLoader,
    ScheduledWindows,
    SuiteSampler,
    SuiteWindows,
)
from megalit.streams.orderings import (
    LatentThoughts,
    Literals,
    Ordering,
    Real,
    RealDocument,
    Simple,
    Stitched,
)
from megalit.streams.packing import PackedTokens, TokenSource
from megalit.streams.plan import RunPlan, StreamPlan
from megalit.streams.schedule import Schedule, exact
from megalit.streams.store import StoreSet, TokenStore, open_stores
from megalit.streams.stream import EpochOrder, Stream


class StreamDataModule(lightning.LightningDataModule):
    """What the named streams share: stores, windows, schedule, loaders, resume.

    Args:
        stores: folder of the token stores (default: those that ``prepare`` builds).
        context_length: tokens in a window.
        global_batch: windows per optimizer step, over all devices.
        real_epochs: run length: how often the separate real stream is read. Exactly one of
            ``real_epochs`` and ``total_tokens`` is given.
        total_tokens: run length in tokens of all streams, rounded up to a whole batch.
        epoch_order: ``documents`` (documents and windows permuted anew every epoch), ``windows``
            (packed once, windows permuted every epoch) or ``sequential`` (documents permuted anew,
            windows in order).
        seed: fixes the order of the data (default: ``seed_everything``).
        num_workers: loader processes; 0 reads in the training process.

    Raises:
        UserError: a setting that cannot work, named with its remedy.
    """

    synthetic_fraction: float = 0.0

    def __init__(
        self,
        stores: str | None = None,
        context_length: int = 1024,
        global_batch: int = 64,
        real_epochs: float | None = None,
        total_tokens: int | None = None,
        epoch_order: EpochOrder = "documents",
        seed: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.stores = stores
        self.context_length = context_length
        self.global_batch = global_batch
        self.real_epochs = real_epochs
        self.total_tokens = total_tokens
        self.epoch_order = epoch_order
        self.seed = seed
        self.num_workers = num_workers
        self._start_samples = 0
        self._resumed_plan: dict[str, Any] | None = None
        self._streams: list[Stream] = []
        self._suites: dict[str, SuiteWindows] = {}
        self._schedule: Schedule | None = None
        self._plan: RunPlan | None = None
        self._check_settings()

    @abstractmethod
    def synthetic_ordering(self, literals: Literals) -> Ordering | None:
        """The synthetic stream's order, or None where there is no such stream."""

    def markers(self, stores: StoreSet) -> tuple[list[int], list[int]]:
        """Tokens around a thought; streams without thoughts need none."""
        return [], []

    def _check_settings(self) -> None:
        for name in ("context_length", "global_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}: choose at least 1")
        if (self.real_epochs is None) == (self.total_tokens is None):
            raise UserError("the run's length is not clear: give exactly one of data.real_epochs and data.total_tokens")
        for name in ("real_epochs", "total_tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"data.{name} is {value}: choose a positive value")
        if not 0 <= self.synthetic_fraction <= 1:
            raise UserError(f"data.synthetic_fraction is {self.synthetic_fraction}: choose a value in [0, 1]")
        if self.synthetic_fraction == 1 and self.real_epochs is not None:
            raise UserError(
                "data.synthetic_fraction is 1, so the real stream is never read and real_epochs has no meaning: "
                "give data.total_tokens instead"
            )

    # The plan --------------------------------------------------------------------------------------

    @property
    def plan(self) -> RunPlan:
        """What this run reads; opens the stores on first use."""
        if self._plan is None:
            self._open()
        return cast(RunPlan, self._plan)

    @property
    def vocabulary_size(self) -> int:
        """Every token id of the stores is smaller."""
        return self.plan.vocabulary_size

    @property
    def suites(self) -> dict[str, SuiteWindows]:
        """Validation suites by name."""
        _ = self.plan
        return self._suites

    @property
    def suite_bytes(self) -> dict[str, int]:
        """Bytes of text behind each validation suite, for losses in bits per byte."""
        _ = self.plan
        return dict.fromkeys(self._suites, self._validation_bytes)

    def _open(self) -> None:
        if self.stores is None:
            raise UserError("no token stores are named: set data.stores, or prepare.folder to build them")
        stores = open_stores(Path(self.stores))
        sources = [stores.real, *stores.generations, *([stores.thoughts] if stores.thoughts else [])]
        tables = pieces.join(stores, sources)
        manifest = stores.real.manifest
        start, end = self.markers(stores)
        literals = Literals(manifest.bos, manifest.eos, tuple(start), tuple(end))
        readers: list[TokenSource] = [literals, *sources]
        components = self._components(stores, literals)
        seed = self.seed or 0
        self._streams = [
            Stream(ordering, tables, readers, self.context_length, self.epoch_order, seed) for ordering, _ in components
        ]
        real_tokens = manifest.tokens + 2 * manifest.items
        if real_tokens <= self.context_length:
            raise UserError(
                f"data.context_length is {self.context_length} and the real documents have {real_tokens} tokens: "
                "lower it or add documents"
            )
        self._schedule = Schedule([share for _, share in components])
        self._suites = self._open_suites(stores, literals)
        self._plan = self._make_plan(stores, real_tokens, seed)

    def _components(self, stores: StoreSet, literals: Literals) -> list[tuple[Ordering, Fraction]]:
        fraction = exact(self.synthetic_fraction)
        components: list[tuple[Ordering, Fraction]] = [(Real(), 1 - fraction)]
        synthetic = self.synthetic_ordering(literals)
        if fraction and synthetic is not None:
            components.append((synthetic, fraction))
            self._check_available(stores)
        return [(ordering, share) for ordering, share in components if share]

    def _check_available(self, stores: StoreSet) -> None:
        if not stores.generations:
            raise UserError(
                f"data.synthetic_fraction is {self.synthetic_fraction} and {stores.folder} holds no generations: "
                "tokenize a corpus with generations, or train on RealStream"
            )

    def _open_suites(self, stores: StoreSet, literals: Literals) -> dict[str, SuiteWindows]:
        if stores.validation is None:
            return {}
        counts = stores.validation.items(["tokens"])["tokens"].to_numpy()
        spans = np.zeros((len(counts), 3, 4), dtype=np.int32)
        spans[:, 0] = (0, 0, 0, 1)
        spans[:, 1] = np.stack([np.ones_like(counts), np.arange(len(counts)), 0 * counts, counts], axis=1)
        spans[:, 2] = (0, 0, 1, 2)
        self._validation_bytes = stores.validation.manifest.bytes
        packed = PackedTokens.of(spans.reshape(-1, 4))
        return {"iid": SuiteWindows(packed, self.context_length, [literals, stores.validation])}

    def _make_plan(self, stores: StoreSet, real_tokens: int, seed: int) -> RunPlan:
        assert self._schedule is not None
        if self.total_tokens is not None:
            windows = Fraction(ceil(self.total_tokens), self.context_length)
        else:
            assert self.real_epochs is not None
            windows = self._streams[0].windows * exact(self.real_epochs) / self._schedule.shares[0]
        steps = ceil(windows / self.global_batch)
        counts = self._schedule.counts(steps * self.global_batch)
        parts = [
            StreamPlan(
                name=stream.name,
                share=float(share),
                unique_tokens=stream.tokens,
                synthetic_fraction=stream.synthetic_tokens / stream.tokens,
                windows_per_epoch=stream.windows,
                windows=int(count),
            )
            for stream, share, count in zip(self._streams, self._schedule.shares, counts, strict=True)
        ]
        settings = {
            "stores": {store.folder.name: store.manifest.content_hash for store in stores.all},
            "orderings": [_settings(stream.ordering) for stream in self._streams],
            "epoch_order": self.epoch_order,
            "seed": seed,
        }
        return RunPlan(
            streams=tuple(parts),
            context_length=self.context_length,
            global_batch=self.global_batch,
            steps=steps,
            vocabulary_size=max(store.manifest.vocabulary_size for store in stores.all),
            unique_real_tokens=real_tokens,
            settings=settings,
        )

    # Lightning -------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the plan against the one that a checkpoint was made under."""
        if stage == "fit" and self.global_batch % self._world_size:
            raise UserError(
                f"data.global_batch is {self.global_batch} windows and does not divide among "
                f"{self._world_size} devices: choose a multiple"
            )
        _ = self.plan

    def train_dataloader(self) -> ResumableLoader:
        assert self._schedule is not None
        sampler = GlobalBatchSampler(
            self.plan.steps, self.global_batch, self._rank, self._world_size, self._start_samples
        )
        return ResumableLoader(
            ScheduledWindows(self._streams, self._schedule),
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        batch = max(1, self.global_batch // self._world_size)
        return [
            DataLoader(suite, sampler=SuiteSampler(suite.windows, batch, self._rank, self._world_size), batch_size=None)
            for suite in self.suites.values()
        ]

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        # What the model has trained on, not what loader processes have fetched ahead.
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {
            "consumed_samples": progress.processed * self.global_batch,
            "plan": self.plan.to_json(),
            "fingerprint": self.plan.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a checkpoint stands.

        Raises:
            UserError: it was made under another plan; the message names the first difference.
        """
        if state["fingerprint"] != self.plan.fingerprint:
            difference = self.plan.first_difference(state["plan"])
            raise UserError(f"the checkpoint belongs to another data plan ({difference}): use another run folder")
        self._start_samples = int(state["consumed_samples"])

    @property
    def consumed_samples(self) -> int:
        """Windows that were trained on when this process took over."""
        return self._start_samples

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1


def _settings(ordering: Ordering) -> dict[str, Any]:
    return {key: _plain(value) for key, value in vars(ordering).items()}


def _plain(value: Any) -> Any:
    return vars(value) if isinstance(value, Literals) else value


class RealStream(StreamDataModule):
    """The real documents alone: the baseline that synthetic data is measured against."""

    def synthetic_ordering(self, literals: Literals) -> Ordering | None:
        return None


class SimpleStream(StreamDataModule):
    """Generations and real documents, each a document of its own, all permuted together.

    Args:
        generations: how many of each document's generations take part.
        synthetic_fraction: share of windows that come from the synthetic stream.
    """

    def __init__(self, generations: int = 4, synthetic_fraction: float = 0.75, **settings: Any) -> None:
        self.generations = _positive(generations)
        self.synthetic_fraction = synthetic_fraction
        super().__init__(**settings)

    def synthetic_ordering(self, literals: Literals) -> Ordering | None:
        return Simple(self.generations)


class StitchedStream(StreamDataModule):
    """Megadocs: each document's generations and the document itself, side by side.

    Args:
        generations: how many of each document's generations take part.
        synthetic_fraction: share of windows that come from the synthetic stream.
        real_document: where the real document stands in its megadoc.
    """

    def __init__(
        self,
        generations: int = 4,
        synthetic_fraction: float = 0.75,
        real_document: RealDocument = "last",
        **settings: Any,
    ) -> None:
        self.generations = _positive(generations)
        self.synthetic_fraction = synthetic_fraction
        self.real_document: RealDocument = real_document
        super().__init__(**settings)

    def synthetic_ordering(self, literals: Literals) -> Ordering | None:
        return Stitched(self.generations, self.real_document)


class LatentThoughtStream(StreamDataModule):
    """Megadocs: each document stretched by the thoughts that stand in the corpus.

    Args:
        synthetic_fraction: share of windows that come from the synthetic stream.
        thought_start: marker before each thought.
        thought_end: marker behind each thought.
    """

    def __init__(
        self,
        synthetic_fraction: float = 0.75,
        thought_start: str = "<think>",
        thought_end: str = "</think>",
        **settings: Any,
    ) -> None:
        self.synthetic_fraction = synthetic_fraction
        self.thought_start = thought_start
        self.thought_end = thought_end
        super().__init__(**settings)

    def markers(self, stores: StoreSet) -> tuple[list[int], list[int]]:
        from megalit.corpus.tokenizers import Tokenizer

        if stores.tokenizer is None:
            raise UserError(f"{stores.folder} holds no tokenizer to encode the thought markers: tokenize again")
        tokenizer = Tokenizer(str(stores.tokenizer))
        start, end = (tokenizer.encode_marker(marker) for marker in (self.thought_start, self.thought_end))
        return start.tolist(), end.tolist()

    def synthetic_ordering(self, literals: Literals) -> Ordering | None:
        return LatentThoughts(literals)

    def _check_available(self, stores: StoreSet) -> None:
        if stores.thoughts is None:
            raise UserError(
                f"data.synthetic_fraction is {self.synthetic_fraction} and {stores.folder} holds no thoughts: "
                "tokenize a corpus whose rows have 'thoughts', or train on another stream"
            )


def _positive(generations: int) -> int:
    if generations < 1:
        raise UserError(f"data.generations is {generations}: ask for at least 1, or train on RealStream")
    return generations


__all__ = [
    "LatentThoughtStream",
    "RealStream",
    "SimpleStream",
    "StitchedStream",
    "StreamDataModule",
    "TokenStore",
]
