"""Finding and reading the checkpoints of runs."""

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from torch.distributed.checkpoint.filesystem import FileSystemReader

from megalit.errors import UserError, reason
from megalit.modeling import hugging_face
from megalit.modeling.language_model import LanguageModel

# The names of checkpoints that are complete; what is being written has a hidden one that begins alike.
CHECKPOINTS = "step-*.ckpt"


def checkpoint_folder(run: Path) -> Path:
    """Where a run's checkpoints are."""
    return run / "checkpoints"


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None. Whatever has its final name is complete."""
    return max(checkpoint_folder(run).glob(CHECKPOINTS), default=None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU; one that was written in shards is put together.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if not path.is_dir():
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return state
        state = _load_distributed_checkpoint(path)
    except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): choose another checkpoint") from error
    names = sorted(key for key in state if key.startswith("optimizer_"))
    state["optimizer_states"] = [state.pop(name) for name in names]
    return state


def shards(checkpoint: Path) -> list[Path]:
    """The files of tensors that a sharded checkpoint consists of, by its own account."""
    metadata = FileSystemReader(checkpoint).read_metadata()
    return sorted({checkpoint / place.relative_path for place in metadata.storage_data.values()})


def find_checkpoint(path: Path) -> Path:
    """What a user means by a run's folder, or by a checkpoint, or by a folder in the Hugging Face format.

    Raises:
        UserError: there is none of these.
    """
    if path.suffix == ".ckpt" and path.exists():
        return path
    if (path / "config.json").exists():
        return path
    found = newest_checkpoint(path)
    if found is None:
        raise UserError(f"{path} holds no checkpoint: train it with `megalit fit`, or check the path")
    return found


@dataclass(frozen=True)
class Input:
    """What a model reads.

    Attributes:
        vocabulary_size: rows of its embedding.
        tokenizer: fingerprint of the tokenizer that made what it was trained on, or None where that is not known.
        context_length: tokens in the windows that it was trained on, or None where that is not known.
    """

    vocabulary_size: int
    tokenizer: str | None
    context_length: int | None


def input_of(path: Path) -> Input:
    """What a trained model reads, without loading its weights.

    Args:
        path: as for :func:`load_model`.

    Raises:
        UserError: nothing there, or not readable.
    """
    found = find_checkpoint(path)
    if (found / "config.json").exists():
        length = hugging_face.read_context_length(found)
        return Input(hugging_face.read_vocabulary_size(found), hugging_face.read_tokenizer(found), length)
    state = read_checkpoint(found)
    plan = plan_of(state)
    vocabulary_size = state["hyper_parameters"]["vocabulary_size"]
    return Input(vocabulary_size, plan["settings"].get("tokenizer"), plan.get("context_length"))


def load_model(path: Path, precision: str = "32-true") -> LanguageModel:
    """A trained model on the CPU, ready to be evaluated.

    Args:
        path: a run's folder (its newest checkpoint is taken), a checkpoint, or a folder in the Hugging Face format.
        precision: of the computation (Lightning's name), which decides the type of the weights.

    Raises:
        UserError: nothing there, or not readable.
    """
    found = find_checkpoint(path)
    if not (found / "config.json").exists():
        return model_of(read_checkpoint(found), precision)
    return in_precision(exported_model(found), precision)


def exported_model(folder: Path) -> LanguageModel:
    """The model of a folder in the Hugging Face format, on the CPU, which attends to what it did in training.

    Raises:
        UserError: it cannot be read.
    """
    model = LanguageModel(weights=str(folder), **hugging_face.read_attention(folder))
    model.configure_model()
    model.tokenizer = hugging_face.read_tokenizer(folder)
    return model.eval()


def model_of(state: dict[str, Any], precision: str = "32-true") -> LanguageModel:
    """The model of a checkpoint's state, on the CPU, ready to be evaluated."""
    model = LanguageModel(**state["hyper_parameters"])
    model.configure_model()
    model.on_load_checkpoint(state)
    model.load_state_dict(state["state_dict"])
    model.tokenizer = plan_of(state)["settings"].get("tokenizer")
    return in_precision(model, precision)


def in_precision(model: LanguageModel, precision: str) -> LanguageModel:
    """The model with weights of the type that a precision (Lightning's name) asks for, ready to be evaluated."""
    # Without autocast the weights' own type is that of the computation.
    return model.to(torch.bfloat16 if precision == "bf16-true" else torch.float32).eval()


def plan_of(state: dict[str, Any]) -> dict[str, Any]:
    """The data plan (as JSON) of a checkpoint's run."""
    # Lightning keeps the data module's state under its class's name.
    plans = (value["plan"] for value in state.values() if isinstance(value, dict) and "plan" in value)
    return next(plans, {"settings": {}})


def refuse_other_input(name: str, model: Input, others: Input, whose: str) -> None:
    """Refuse a model that cannot read ``whose`` windows.

    Raises:
        UserError: the vocabularies differ in size, or the tokenizers are known and differ, or the model knows shorter
            windows alone.
    """
    if model.vocabulary_size != others.vocabulary_size:
        raise UserError(
            f"{name} has a vocabulary of {model.vocabulary_size} tokens and {whose} of {others.vocabulary_size}: take "
            "models and token stores of one tokenizer"
        )
    if None not in (model.tokenizer, others.tokenizer) and model.tokenizer != others.tokenizer:
        raise UserError(
            f"{name} was trained with another tokenizer than {whose}: take models and token stores of one tokenizer"
        )
    known, asked = model.context_length, others.context_length
    if known is not None and asked is not None and known < asked:
        raise UserError(
            f"{name} was trained on windows of {known} tokens and {whose} has {asked}: "
            "set data.context_length to at most that, or take another model"
        )
