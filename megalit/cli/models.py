"""Models that were trained: from a run's folder, one of its checkpoints, or a folder that was exported."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import yaml

from megalit.cli.run_folder import CONFIG
from megalit.corpus.tokenizers import Tokenizer
from megalit.errors import UserError, reason
from megalit.evaluation.checkpoints import (
    CHECKPOINTS,
    exported_model,
    in_precision,
    model_of,
    newest_checkpoint,
    plan_of,
    read_checkpoint,
)
from megalit.evaluation.losses import check_vocabularies
from megalit.files import file_digest, fingerprint
from megalit.modeling.hugging_face import read_context_length
from megalit.modeling.language_model import LanguageModel
from megalit.scaling.records import FILE as RECORD
from megalit.scaling.records import precision_name, read_record
from megalit.streams.held_out import shared_documents
from megalit.streams.remote import local_stores, one_spelling, stores_at_hand
from megalit.streams.store import TokenStore
from megalit.streams.store_set import open_stores


@dataclass(frozen=True)
class TrainingDocuments:
    """Where the real documents lie that a model was trained on.

    Attributes:
        folders: of the token stores, the run's own first.
        contents: content hashes of the stores that were read: others may lie there by now.
        real_fraction: the share of the documents that took part.
    """

    folders: tuple[str, ...] = ()
    contents: frozenset[str] = frozenset()
    real_fraction: float = 1.0

    def among(self, suite: TokenStore) -> int:
        """How many of the documents of a suite the model was trained on, as far as the stores are still there."""
        found = set()
        for location in self.folders:
            folder = stores_at_hand(location)  # to fetch others may take longer than measuring
            with suppress(UserError):  # gone, or there in part: nothing can be said
                if suite.manifest.kind == "validation" and suite.folder.resolve().parent == folder.resolve():
                    continue  # held out from these
                real = open_stores(folder).real
                if real.manifest.content_hash in self.contents:
                    found.update(shared_documents(real, suite, self.real_fraction).to_pylist())
        return len(found)


@dataclass(frozen=True)
class TrainedModel:
    """A model and what measuring it needs to know.

    Attributes:
        folder: of the run, or of the exported model.
        checkpoint: the name of the file or folder that the weights came from.
        model: on the CPU, with weights of the type that the precision asks for.
        context_length: tokens in the windows that it was trained on.
        precision: that it is computed in (Lightning's name).
        tokenizer: fingerprint of its tokenizer, or None where that is not known.
        stores: folder or URL of the token stores that it was trained on, or None.
        separate: whether its validation documents each start a window.
        documents: that it was trained on; none are known of an exported model.
    """

    folder: Path
    checkpoint: str
    model: LanguageModel
    context_length: int
    precision: str
    tokenizer: str | None
    stores: str | None
    separate: bool
    documents: TrainingDocuments = TrainingDocuments()

    def tokenizer_folder(self) -> Path | None:
        """Where its tokenizer lies: in the exported folder, or beside the stores, staged where they are remote.

        Raises:
            UserError: the stores cannot be staged.
        """
        if self.stores is None:
            return self.folder.resolve() if _has_tokenizer(self.folder) else None
        folder = local_stores(self.stores) / "tokenizer"
        return folder.resolve() if folder.exists() else None


def training_documents(path: Path) -> TrainingDocuments:
    """What a finished run was trained on, by its record; nothing is known of an exported model.

    Args:
        path: the run's folder, or one of its checkpoints.
    """
    run = path.parent.parent if path.suffix == ".ckpt" else path
    if not (run / RECORD).exists():
        return TrainingDocuments()
    record = read_record(run)
    # A run that was trained in Python has no configuration.
    return _documents(record.config.get("data", {}).get("init_args", {}), record.plan)


def check_members(members: Sequence[TrainedModel]) -> None:
    """Refuse models that cannot be averaged.

    Raises:
        UserError: they read other tokens or windows than each other, or are computed in other precisions.
    """
    for one, other in combinations(members, 2):
        for name in ("tokenizer", "context_length", "precision"):
            values = getattr(one, name), getattr(other, name)
            if None not in values and values[0] != values[1]:
                raise UserError(
                    f"{one.folder} and {other.folder} differ in their {name} ({', '.join(map(str, values))}): take "
                    "members that agree" + (", or give `megalit evaluate` a --precision" if name == "precision" else "")
                )
    check_vocabularies([member.model for member in members])


def parse_device(name: str) -> torch.device:
    """The device of a name, nothing of which is used yet; ``auto`` is this process's GPU where there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _unusable(name, reason(error)) from error
    # Counting makes no context on a GPU, which would take memory from, or bar, the process that is to train there.
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise _unusable(name, f"there are {torch.cuda.device_count()} GPUs")
    return device


def named_device(name: str) -> torch.device:
    """The device of a name, as :func:`parse_device`, which can be used.

    Raises:
        UserError: it cannot be used here.
    """
    device = parse_device(name)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _unusable(name, reason(error)) from error
    return device


def _unusable(name: str, why: str) -> UserError:
    return UserError(f"device {name} cannot be used here ({why}): choose auto or cpu")


def open_model(path: Path, precision: str | None = None) -> TrainedModel:
    """Load a trained model: the newest checkpoint of a run's folder, a checkpoint, or an exported folder.

    Args:
        path: where it is.
        precision: of the computation, Lightning's name (default: as it was trained).

    Raises:
        UserError: none of these is there.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: name a run's folder, a checkpoint or an exported model")
    if (path / "config.json").exists():
        return _in_precision(_exported(path), precision)
    run, checkpoint = path, newest_checkpoint(path) if path.is_dir() else None
    if path.match(CHECKPOINTS):
        run, checkpoint = path.parent.parent, path
    if checkpoint is None or not (run / CONFIG).exists():
        raise UserError(f"{path} holds neither a checkpoint nor an exported model: train one with `megalit fit`")
    return _in_precision(_of_run(run, checkpoint), precision)


def _in_precision(trained: TrainedModel, precision: str | None) -> TrainedModel:
    """The model with the weights' type that a precision asks for."""
    precision = precision or trained.precision
    return replace(trained, model=in_precision(trained.model, precision), precision=precision)


def _of_run(run: Path, checkpoint: Path) -> TrainedModel:
    state = read_checkpoint(checkpoint)
    config: dict[str, Any] = yaml.safe_load((run / CONFIG).read_text())
    data = config["data"]["init_args"]
    plan = plan_of(state)
    precision = precision_name(config["trainer"].get("precision"))
    return TrainedModel(
        folder=run,
        checkpoint=checkpoint.name,
        model=model_of(state),
        context_length=int(plan["context_length"]),
        precision=precision,
        tokenizer=plan["settings"]["tokenizer"],
        stores=data.get("stores"),
        separate=bool(data.get("separate_validation")),
        documents=_documents(data, plan),
    )


def _documents(data: dict[str, Any], plan: dict[str, Any]) -> TrainingDocuments:
    """Of a run's own stores, and of those that streams of a mixture read the documents of."""
    others = [part.get("stores") for part in data.get("streams") or () if part.get("order") != "samples"]
    named = [data.get("stores"), *others]
    contents = frozenset(content for stores in plan["settings"].get("stores", ()) for content in stores.values())
    folders = tuple(dict.fromkeys(one_spelling(name) for name in named if name))
    return TrainingDocuments(folders, contents, float(data.get("real_fraction") or 1))


def _exported(folder: Path) -> TrainedModel:
    context_length = read_context_length(folder)
    if context_length is None:
        raise UserError(
            f"{folder}/config.json has no max_position_embeddings: add it, the tokens in the longest window"
        )
    return TrainedModel(
        folder=folder,
        checkpoint=_name_of_weights(folder),
        model=exported_model(folder),
        context_length=context_length,
        precision="32-true",
        tokenizer=Tokenizer(str(folder.resolve())).fingerprint if _has_tokenizer(folder) else None,
        stores=None,
        separate=False,
    )


def _name_of_weights(folder: Path) -> str:
    """Tells weights from those that were in the folder before, where a name alone would not."""
    files = sorted(folder.glob("*.safetensors"))
    key = fingerprint([[file.name, file_digest(file)] for file in files])
    return f"model.safetensors ({key})"


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").exists()
