"""A run of a few steps on a small data set, for tests of what training does."""

from pathlib import Path
from typing import Any

import lightning
import torch
from data_sets import DataSet
from sharded_training import StopAt

from megalit.callbacks import AtomicCheckpointIO, Checkpoint
from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.modeling.language_model import LanguageModel
from megalit.streams import StitchedStream

STEPS = 8


def train(
    data_set: DataSet,
    folder: Path,
    stop_at: int = STEPS,
    callbacks: tuple[Any, ...] = (),
    accelerator: str = "cpu",
    precision: Any = "32-true",
    validate_every: int | None = None,
    **settings: Any,
) -> LanguageModel:
    data = StitchedStream(
        stores=str(data_set.folder), context_length=32, global_batch=4, generations=2, total_tokens=STEPS * 4 * 32
    )
    model = LanguageModel(**{"shape": "nano", "seed": 1, "learning_rate": 0.01, **settings})
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator=accelerator,
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1.0 if validate_every else 0,
        val_check_interval=validate_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        callbacks=[*callbacks, StopAt(stop_at), Checkpoint()],
    )
    trainer.fit(model, data, ckpt_path=newest_checkpoint(folder), weights_only=True)
    assert trainer.global_step == stop_at
    return model


def final(folder: Path) -> dict[str, Any]:
    newest = newest_checkpoint(folder)
    assert newest is not None
    checkpoint: dict[str, Any] = torch.load(newest, weights_only=True)
    return checkpoint
