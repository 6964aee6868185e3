"""Finding and reading the checkpoints of runs."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint

from megalit.errors import UserError
from megalit.modeling.decoder import Decoder
from megalit.modeling.language_model import LanguageModel

_PATTERN = "step-*.ckpt"


def checkpoint_folder(run: Path) -> Path:
    """Where a run's checkpoints are."""
    return run / "checkpoints"


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None. Whatever has its final name is complete."""
    return max(checkpoint_folder(run).glob(_PATTERN), default=None)


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
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): choose another checkpoint") from error
    names = sorted(key for key in state if key.startswith("optimizer_"))
    state["optimizer_states"] = [state.pop(name) for name in names]
    return state


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


def load_model(path: Path) -> LanguageModel:
    """A trained model on the CPU, ready to be evaluated.

    Args:
        path: a run's folder (its newest checkpoint is taken), a checkpoint, or a folder in the Hugging Face format.

    Raises:
        UserError: nothing there, or not readable.
    """
    found = find_checkpoint(path)
    if (found / "config.json").exists():
        model = LanguageModel(weights=str(found))
        model.configure_model()
        return model.eval()
    return model_of(read_checkpoint(found))


def model_of(state: dict[str, Any]) -> LanguageModel:
    """The model of a checkpoint's state, ready to be evaluated."""
    model = LanguageModel(**state["hyper_parameters"])
    model.configure_model()
    model.on_load_checkpoint(state)
    model.load_state_dict(state["state_dict"])
    model.tokenizer = plan_of(state)["settings"].get("tokenizer")
    return model.eval()


def plan_of(state: dict[str, Any]) -> dict[str, Any]:
    """The data plan (as JSON) of a checkpoint's run."""
    # Lightning keeps the data module's state under its class's name.
    plans = (value["plan"] for value in state.values() if isinstance(value, dict) and "plan" in value)
    return next(plans, {"settings": {}})


def refuse_other_tokens(name: str, model: Decoder, vocabulary_size: int, tokenizer: str | None, whose: str) -> None:
    """Refuse a model whose token ids mean something else than those of ``whose`` vocabulary and tokenizer.

    Raises:
        UserError: the vocabularies differ in size, or the tokenizers are known and differ.
    """
    if model.vocabulary_size != vocabulary_size:
        raise UserError(
            f"{name} has a vocabulary of {model.vocabulary_size} tokens and {whose} of {vocabulary_size}: take models "
            "and token stores of one tokenizer"
        )
    if None not in (model.tokenizer, tokenizer) and model.tokenizer != tokenizer:
        raise UserError(
            f"{name} was trained with another tokenizer than {whose}: take models and token stores of one tokenizer"
        )
