"""Validation suites that are named on the command line: finding their stores, and what may be measured on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalit.cli.console import console
from megalit.cli.models import TrainedModel, TrainingDocuments
from megalit.errors import UserError
from megalit.streams.loading import SuiteWindows
from megalit.streams.remote import is_remote, local_stores
from megalit.streams.store import TokenStore, exists
from megalit.streams.store_set import open_stores
from megalit.streams.suites import suite_of


@dataclass(frozen=True)
class Cutting:
    """How suites are cut into windows.

    Attributes:
        context_length: tokens in a window (default: as the model was trained).
        stride: slide the window, so that each but a document's first predicts so many tokens.
        separate: start a window with each document (default: with a stride, or where the run was validated so).
    """

    context_length: int | None = None
    stride: int | None = None
    separate: bool | None = None

    def of(self, model: TrainedModel) -> "Cutting":
        """The same with the model's values for what is left open.

        Raises:
            UserError: windows longer than the model allows, or a stride that leaves tokens out.
        """
        length = self.context_length or model.context_length
        if not 1 <= length <= model.context_length:
            raise UserError(
                f"context_length is {length} and {model.folder} was trained on windows of {model.context_length} "
                "tokens: choose at most that"
            )
        if self.stride is not None and not 1 <= self.stride <= length:
            raise UserError(f"stride is {self.stride} and a window has {length} tokens: choose 1 to {length}")
        separate = self.separate if self.separate is not None else self.stride is not None or model.separate
        return Cutting(length, self.stride, separate)

    def windows(self, store: TokenStore) -> Callable[[int], SuiteWindows]:
        """A store's windows of any length; the stride keeps its share of the window."""
        whole = self.context_length
        assert whole is not None

        def at(length: int) -> SuiteWindows:
            stride = None if self.stride is None else max(1, self.stride * length // whole)
            return suite_of(store, length, bool(self.separate), stride)

        return at


def suite_store(name: str, location: str | None, models: Sequence[TrainedModel]) -> TokenStore:
    """The store of a suite: one that is named, the held-out documents of a folder of stores, or the first run's own.

    Raises:
        UserError: no such store, one that another tokenizer made, or held-out documents that a model was trained on.
    """
    model = models[0]
    own = model.stores if location is None else location
    if own is None:
        raise UserError(f"suite {name}: {model.folder} names no token stores: name them in suites")
    if not is_remote(own) and not Path(own).exists():
        raise UserError(f"suite {name}: {own} does not exist: name a store, or a folder of stores, in suites")
    if not is_remote(own) and exists(Path(own)):
        store: TokenStore | None = TokenStore(Path(own))
    else:
        store = open_stores(local_stores(own)).validation
    if store is None:
        raise UserError(f"suite {name}: {own} holds no held-out documents: name one of its stores, such as {own}/real")
    manifest = store.manifest
    if model.tokenizer is not None and manifest.tokenizer != model.tokenizer:
        raise UserError(
            f"suite {name}: {store.folder} was made by another tokenizer than {model.folder} was trained with: "
            "tokenize the suite with the model's (tokenizer.name)"
        )
    if manifest.vocabulary_size > int(model.model.vocabulary_size or 0):
        raise UserError(
            f"suite {name}: {store.folder} has a vocabulary of {manifest.vocabulary_size} tokens and {model.folder} of "
            f"{model.model.vocabulary_size}: name a suite that was tokenized for this model"
        )
    for trained in models:
        check_unseen(name, store, trained.folder, trained.documents)
    return store


def check_unseen(name: str, store: TokenStore, folder: Path, documents: TrainingDocuments) -> None:
    """Refuse a suite of held-out documents that a model was trained on: another split holds out others.

    A store of anything else is measured, because it was named on purpose, and the same is said.

    Args:
        name: of the suite.
        store: the suite.
        folder: of the model.
        documents: that the model was trained on.

    Raises:
        UserError: some of the held-out documents are in the model's training stores.
    """
    found = documents.among(store)
    if not found:
        return
    said = f"suite {name}: {folder} was trained on {found:,} of the documents of {store.folder}"
    if store.manifest.kind == "validation":
        raise UserError(
            f"{said}: name a suite of documents that no model was trained on, or take runs with the same "
            "held-out documents"
        )
    console.print(f"{said}, so its loss there is one of training")


def conditions(store: TokenStore, cutting: Cutting, **others: Any) -> dict[str, Any]:
    """What a result depends on, besides the model."""
    return {"store": store.manifest.content_hash, **vars(cutting), **others}
