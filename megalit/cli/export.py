"""``megalit export``: a run's model in the Hugging Face format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from megalit.cli.commands import parse
from megalit.cli.console import console
from megalit.cli.run_folder import CONFIG
from megalit.corpus.tokenizers import Tokenizer
from megalit.errors import UserError
from megalit.evaluation.checkpoints import load_model, newest_checkpoint
from megalit.files import lock
from megalit.modeling import hugging_face
from megalit.streams.remote import local_stores
from megalit.streams.store_set import open_stores


@dataclass(frozen=True)
class ExportCommand:
    """Write a run's model as a Hugging Face folder, with its tokenizer, for transformers and vLLM.

    Attributes:
        run: folder of the run; its newest checkpoint is taken.
        output: folder to write; it must not be there yet.
        dtype: of the written weights.
    """

    run: str = "runs/default"
    output: str = "exported"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit export``."""
    command = parse(verb, ExportCommand, arguments)
    run, output = Path(command.run), Path(command.output)
    if output.exists():
        raise UserError(f"{output} is there already: choose another output, or move it away")
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run} holds no checkpoint: train it with `megalit fit`")
    model = load_model(checkpoint)
    settings: dict[str, Any] = yaml.safe_load((run / CONFIG).read_text())["data"]["init_args"]
    stores = open_stores(local_stores(settings["stores"]))
    manifest = stores.real.manifest
    tokenizer = Tokenizer(str(stores.tokenizer)) if stores.tokenizer is not None else None
    if tokenizer is None:
        console.print(f"{stores.folder} holds no tokenizer, so none is written")
    with lock(output):
        hugging_face.export(
            model,
            output,
            getattr(torch, command.dtype),
            settings["context_length"],
            manifest.bos,
            manifest.eos,
            tokenizer.save if tokenizer is not None else lambda folder: None,
        )
    print(output)
