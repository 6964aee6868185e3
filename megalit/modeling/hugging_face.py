"""To and from the Hugging Face format: safetensors and config.json, as transformers and vLLM read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors.torch import load_file, save_file
from torch import Tensor

from megalit.errors import UserError
from megalit.files import new_folder, read_json, write_json
from megalit.modeling.shapes import Shape
from megalit.modeling.trainer_checks import refuse_to_begin

# Qwen3 is Llama with normalized queries and keys.
_ARCHITECTURES = {False: ("LlamaForCausalLM", "llama"), True: ("Qwen3ForCausalLM", "qwen3")}
# Keys of ours, which transformers keeps and does not look at.
_TOKENIZER = "megalit_tokenizer"
_CROSS_DOCUMENT_ATTENTION = "megalit_cross_document_attention"
_FIRST_TOKEN = "megalit_first_token_of_documents"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def export(
    model: Any,
    folder: Path,
    dtype: torch.dtype,
    context_length: int,
    bos: int | None = None,
    eos: int | None = None,
    beside: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Write a model's weights and configuration to ``folder``, which appears as a whole.

    Args:
        model: a :class:`megalit.modeling.decoder.Decoder` whose weights are built.
        folder: must not be there yet.
        dtype: of the stored weights.
        context_length: the longest context that the model is for, in tokens.
        bos, eos: token ids around a document.
        beside: puts more files into the folder, those of a tokenizer for example.
    """
    with new_folder(folder) as temporary:
        beside(temporary)
        weights = {name: value.detach().to(dtype).contiguous() for name, value in to_hugging_face(model).items()}
        save_file(weights, temporary / _WEIGHTS, metadata={"format": "pt"})
        config = configuration(model.shape, model.vocabulary_size, dtype, context_length)
        config |= {"bos_token_id": bos, "eos_token_id": eos, _TOKENIZER: model.tokenizer}
        if not model.cross_document_attention:
            config |= {_CROSS_DOCUMENT_ATTENTION: False, _FIRST_TOKEN: bos if model.bos is None else model.bos}
        write_json(temporary / "config.json", config)


def configuration(shape: Shape, vocabulary_size: int, dtype: torch.dtype, context_length: int) -> dict[str, Any]:
    """The content of ``config.json``."""
    architecture, kind = _ARCHITECTURES[shape.qk_norm]
    return {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": vocabulary_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        # transformers 5 reads the second, what is older the first.
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": shape.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": context_length,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def to_hugging_face(model: Any) -> dict[str, Tensor]:
    """The weights under transformers' names; a tied head is left out, as transformers does."""
    weights = {f"model.{name}": value for name, value in model.transformer.state_dict().items()}
    if not model.shape.tie_embeddings:
        weights["lm_head.weight"] = model.lm_head.weight
    return weights


def read_shape(folder: Path) -> Shape:
    """The shape of the model in a folder.

    Raises:
        UserError: no model there, or one that this transformer is not.
    """
    config = _config(folder)
    qk_norm = {kind: norm for norm, (_, kind) in _ARCHITECTURES.items()}.get(config.get("model_type", ""))
    if qk_norm is None:
        raise UserError(f"{folder} holds a model of type {config.get('model_type')!r}: start from a llama or qwen3")
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    unknown = {
        "rope_scaling": rope.get("rope_type", "default") != "default" or bool(scaling),
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "head_dim": config.get("head_dim") not in (None, config["hidden_size"] // config["num_attention_heads"]),
    }
    for name, differs in unknown.items():
        if differs:
            raise UserError(f"{folder} holds a model with {name} {config.get(name)!r}: this is not supported")
    return Shape(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=qk_norm,
    )


def read_vocabulary_size(folder: Path) -> int:
    """Rows of the embedding of the model in a folder."""
    return int(_config(folder)["vocab_size"])


def read_tokenizer(folder: Path) -> str | None:
    """Fingerprint of the tokenizer whose tokens the model in a folder was trained on, where megalit has written it."""
    fingerprint: str | None = _config(folder).get(_TOKENIZER)
    return fingerprint


def read_attention(folder: Path) -> dict[str, Any]:
    """The settings of the model in a folder that say which documents of a window it attends to, as a decoder takes
    them; none for a model that megalit has not written."""
    config = _config(folder)
    if config.get(_CROSS_DOCUMENT_ATTENTION, True):
        return {}
    return {"cross_document_attention": False, "bos": config[_FIRST_TOKEN]}


def read_context_length(folder: Path) -> int | None:
    """Tokens in the longest window that the model in a folder is for, where it says so."""
    length: int | None = _config(folder).get("max_position_embeddings")
    return length


def check_input(folder: Path, tokenizer: str | None, context_length: int, continues: bool = False) -> None:
    """Refuse to start from a model of other tokens, where that is known, and warn where its windows were shorter.

    Args:
        folder: of the model.
        tokenizer: fingerprint of that whose tokens it is to read, or None where that is not known.
        context_length: tokens in the windows that it is to read.
        continues: a run that was begun with it is to go on, and is warned only.

    Raises:
        UserError: the model was trained on the tokens of another tokenizer.
    """
    known = read_tokenizer(folder)
    if None not in (known, tokenizer) and known != tokenizer:
        refuse_to_begin(
            f"model.weights {folder} were trained on another tokenizer's tokens than those of the token stores",
            "tokenize the documents with the one in that folder, or start from other weights",
            continues,
        )
    length = read_context_length(folder)
    if length is not None and length < context_length:
        rank_zero_warn(
            f"model.weights {folder} are for windows of {length} tokens and data.context_length is {context_length}: "
            "positions beyond are new to them"
        )


def load_weights(model: Any, folder: Path) -> None:
    """Fill a model with the weights of a folder; rows of the embedding beyond its vocabulary stay as they are.

    Raises:
        UserError: files are missing, or a tensor is missing or has another shape; the message names it.
    """
    found = _tensors(folder)
    for name, value in to_hugging_face(model).items():
        if name not in found:
            raise UserError(f"{folder} holds no tensor {name}: export the model again")
        source = found.pop(name)
        is_vocabulary = name in ("model.embed_tokens.weight", "lm_head.weight")
        rows = len(source) if is_vocabulary and len(source) <= len(value) else len(value)
        if source.shape != (rows, *value.shape[1:]):
            raise UserError(
                f"{folder} holds {name} with the shape {tuple(source.shape)} and the model needs {tuple(value.shape)}: "
                "set model.vocabulary_size and model.shape to those of the folder"
            )
        value.data[:rows].copy_(source)


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        raise UserError(
            f"model.weights {folder} holds no config.json: name a folder in the Hugging Face format "
            "(`megalit export` makes one from a run)"
        )
    config: dict[str, Any] = read_json(folder / "config.json")
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / _INDEX).exists():
        names = sorted(set(json.loads((folder / _INDEX).read_text())["weight_map"].values()))
    else:
        names = [_WEIGHTS]
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder} holds no {name}: download or export the model again")
        tensors.update(load_file(folder / name))
    return tensors
