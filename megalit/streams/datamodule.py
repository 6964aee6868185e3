"""The LightningDataModule over a mixture of streams."""

from abc import abstractmethod
from fractions import Fraction
from math import inf
from typing import Any

import lightning

from megalit.errors import UserError
from megalit.seeds import seed_or_global
from megalit.streams.agreement import refuse_other_plans
from megalit.streams.inspection import window_of_sample
from megalit.streams.loading import (
    BatchLoader,
    GlobalBatchSampler,
    ScheduledWindows,
    SuiteSampler,
    SuiteWindows,
)
from megalit.streams.mixture import Mixture
from megalit.streams.orderings import Real
from megalit.streams.plan import RunPlan
from megalit.streams.remote import one_spelling
from megalit.streams.run_length import Component, DocumentOrder, MixtureSettings
from megalit.streams.store_set import StoreSet
from megalit.streams.stream import EpochOrder


class StreamDataModule(lightning.LightningDataModule):
    """What all streams share: stores, windows, schedule, loaders, resume.

    Args:
        stores: folder of the token stores, or its URL (``s3://``, ``gs://``), staged to ``$MEGALIT_CACHE`` first
            (default: those that ``prepare`` builds).
        context_length: tokens in a window.
        global_batch: windows per optimizer step, over all devices.
        global_batch_tokens: the same in tokens, so that context lengths can be compared at equal batch; it
            takes the place of ``global_batch``.
        real_epochs: run length: how often the separate real stream is read. Exactly one of ``real_epochs``
            and ``total_tokens`` is given.
        total_tokens: run length in tokens of all streams, rounded up to a whole batch.
        epoch_order: ``documents`` (documents and windows permuted anew every epoch), ``windows`` (packed
            once, windows permuted every epoch), ``sequential`` (documents permuted anew, windows in order)
            or ``paper`` (as the megadocs paper's code: one order for all epochs, remainders dropped, mixing
            exact in blocks of 2,048 windows).
        sets: names of the sets of generations (or samples) that take part, those of the first one first (default: all
            that lie with the stores; ``generations`` counts over all of them together).
        real_fraction: share of the real documents to train on; each subset lies inside every larger one.
        separate_validation: start a window with each validation document, instead of packing them.
        document_order: documents and megadocs ``permuted``, or ``related`` ones side by side, along a path from
            nearest neighbour to nearest neighbour (in-context pre-training, arXiv 2310.10638).
        embeddings: for related documents: Parquet file with ``id`` and ``embedding`` (default: TF-IDF over tokens).
        seed: fixes the order of the data (default: ``seed_everything``).
        num_workers: loader processes; 0 reads in the training process.
        ignore_plan: continue a checkpoint of another data plan from its count of samples all the same.

    Raises:
        UserError: a setting that cannot work, named with its remedy.
    """

    def __init__(
        self,
        stores: str | None = None,
        context_length: int = 1024,
        global_batch: int = 64,
        global_batch_tokens: int | None = None,
        real_epochs: float | None = None,
        total_tokens: int | None = None,
        epoch_order: EpochOrder = "documents",
        sets: list[str] | None = None,
        real_fraction: float = 1.0,
        separate_validation: bool = False,
        document_order: DocumentOrder = "permuted",
        embeddings: str | None = None,
        seed: int | None = None,
        num_workers: int = 0,
        ignore_plan: bool = False,
    ) -> None:
        super().__init__()
        self.stores = stores
        self.context_length = _at_least_one("context_length", context_length)
        self.global_batch = _at_least_one("global_batch", global_batch)
        if global_batch_tokens is not None:
            self.global_batch, rest = divmod(global_batch_tokens, context_length)
            if rest or self.global_batch < 1:
                raise UserError(
                    f"data.global_batch_tokens is {global_batch_tokens} and no multiple of data.context_length "
                    f"{context_length}: choose a multiple"
                )
        if (real_epochs is None) == (total_tokens is None):
            raise UserError("the run's length is not clear: give exactly one of data.real_epochs and data.total_tokens")
        for name, value in (("real_epochs", real_epochs), ("total_tokens", total_tokens)):
            if value is not None and not 0 < value < inf:
                raise UserError(f"data.{name} is {value}: choose a positive value")
        for name, value in (("seed", seed), ("num_workers", num_workers)):
            if value is not None and value < 0:
                raise UserError(f"data.{name} is {value}: choose 0 or more")
        if not 0 < real_fraction <= 1:
            raise UserError(f"data.real_fraction is {real_fraction}: choose a value in (0, 1]")
        self.real_epochs = real_epochs
        self.total_tokens = total_tokens
        self.epoch_order: EpochOrder = epoch_order
        self.sets = sets
        self.real_fraction = real_fraction
        self.separate_validation = separate_validation
        self.document_order: DocumentOrder = document_order
        self.embeddings = embeddings
        if embeddings is not None and document_order != "related":
            raise UserError("data.embeddings are given and not used: set data.document_order to related")
        self.seed = seed
        self.num_workers = num_workers
        self.ignore_plan = ignore_plan
        self._start_samples = 0
        self._start_step = 0
        self._start_tokens = 0
        self._mixture: Mixture | None = None

    @abstractmethod
    def components(self) -> tuple[list[Component], list[Fraction]]:
        """The streams with their shares in each phase, and each phase's share of the run."""

    def markers(self, stores: StoreSet) -> tuple[list[int], list[int], list[int]]:
        """Tokens before and behind a thought, and of the separator; most streams need none."""
        return [], [], []

    @property
    def settings(self) -> MixtureSettings:
        """What all streams of this run share."""
        return MixtureSettings(
            stores=one_spelling(self.stores) if self.stores else "",
            context_length=self.context_length,
            global_batch=self.global_batch,
            real_epochs=self.real_epochs,
            total_tokens=self.total_tokens,
            epoch_order=self.epoch_order,
            seed=seed_or_global(self.seed),
            real_fraction=self.real_fraction,
            separate_validation=self.separate_validation,
            document_order=self.document_order,
            embeddings=self.embeddings,
            sets=tuple(self.sets) if self.sets is not None else None,
        )

    @property
    def mixture(self) -> Mixture:
        """Streams, schedule and suites; opens the stores on first use."""
        if self._mixture is None:
            if self.stores is None:
                raise UserError("no token stores are named: set data.stores, or prepare.folder to build them")
            self._mixture = Mixture(self.settings, *self.components(), self.markers)
        return self._mixture

    @property
    def plan(self) -> RunPlan:
        """What this run reads."""
        return self.mixture.plan

    @property
    def suites(self) -> dict[str, SuiteWindows]:
        """Validation suites by name."""
        return self.mixture.suites

    @property
    def held_out(self) -> str | None:
        """Content hash of the validation documents."""
        store = self.mixture.stores.validation
        return None if store is None else store.manifest.content_hash

    def windows_seen(self) -> dict[str, int]:
        """Windows of each stream that the model has trained on; of a run that went on with other data, as if it had
        been on these from the start."""
        return self.mixture.windows_seen(self.consumed_samples)

    def documents_of(self, sample: int) -> list[str]:
        """Ids of the documents in the window of one sample of the run."""
        pieces = window_of_sample(self.mixture, sample)[-1]
        return list(dict.fromkeys(piece.name for piece in pieces if not piece.literal))

    # Lightning -------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.global_batch % self._world_size:
            raise UserError(
                f"data.global_batch is {self.global_batch} windows and does not divide among "
                f"{self._world_size} devices: choose a multiple"
            )
        plan = self.plan
        if stage == "fit":
            refuse_other_plans(plan)

    def train_dataloader(self) -> BatchLoader:
        sampler = GlobalBatchSampler(
            self.plan.steps, self.global_batch, self._rank, self._world_size, self._start_samples, self._start_step
        )
        return BatchLoader(ScheduledWindows(self.mixture.streams, self.mixture.schedule), sampler, self.num_workers)

    def val_dataloader(self) -> list[BatchLoader]:
        batch = max(1, self.global_batch // self._world_size)
        return [
            BatchLoader(suite, SuiteSampler(suite.windows, batch, self._rank, self._world_size))
            for suite in self.suites.values()
        ]

    def test_dataloader(self) -> list[BatchLoader]:
        return self.val_dataloader()

    def teardown(self, stage: str) -> None:
        # A folder of plans for each run, or for each measurement of one, would fill a node's temporary space.
        self.mixture.forget_plans()

    def state_dict(self) -> dict[str, Any]:
        return {
            "consumed_samples": self.consumed_samples,
            "consumed_tokens": self.consumed_tokens,
            "steps": self._steps_done,
            "plan": self.plan.to_json(),
            "fingerprint": self.plan.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a checkpoint stands.

        Raises:
            UserError: it was made under another plan; the message names the first difference.
        """
        if state["fingerprint"] != self.plan.fingerprint and not self.ignore_plan:
            difference = self.plan.first_difference(self.mixture.without_unread(state["plan"]))
            if difference is not None:
                raise UserError(
                    f"the checkpoint belongs to another data plan ({difference}): use another run folder, "
                    "or set data.ignore_plan to go on from its count of samples"
                )
        self._start_samples = int(state["consumed_samples"])
        self._start_step = int(state["steps"])
        # Under another plan the windows before may have had another length.
        self._start_tokens = int(
            state.get("consumed_tokens", self._start_samples * int(state["plan"]["context_length"]))
        )

    @property
    def consumed_samples(self) -> int:
        """Samples that the model has trained on, not what loader processes have fetched ahead."""
        # Counted from where this run began: under another plan the steps before had another size.
        return self._start_samples + (self._steps_done - self._start_step) * self.global_batch

    @property
    def consumed_tokens(self) -> int:
        """Tokens of these samples."""
        return self._start_tokens + (self._steps_done - self._start_step) * self.global_batch * self.context_length

    @property
    def _steps_done(self) -> int:
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(progress.processed)

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise UserError(f"data.{name} is {value}: choose at least 1")
    return value


class RealStream(StreamDataModule):
    """The real documents alone: the baseline that synthetic data is measured against."""

    def components(self) -> tuple[list[Component], list[Fraction]]:
        return [Component(Real(), (Fraction(1),))], [Fraction(1)]
