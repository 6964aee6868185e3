"""A sharded training run on two CPU processes; started by test_sharding.py.

python sharded_training.py STORES FOLDER STOP_AT PRECISION FILES [TEACHER]

FILES is ``shards`` or ``whole``: how checkpoints are written.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from megalit.callbacks import AtomicCheckpointIO, Checkpoint, SelfDistillation
from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.shapes import Shape
from megalit.streams import StitchedStream

STEPS = 6


class StopAt(lightning.Callback):
    """Ends a run after a step, as a time limit would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


class TypesOfWeights(lightning.Callback):
    """Refuses a run that does not compute with weights of the types that it should."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        model: Any = pl_module
        mixed = model.device_mesh is not None and trainer.precision == "bf16-mixed"
        gathered = torch.bfloat16 if mixed else torch.float32
        for part in (model.transformer.layers[0].mlp.up_proj, model.lm_head):
            part.register_forward_pre_hook(lambda part, _: self.check(part, gathered))
        model.transformer.embed_tokens.register_forward_pre_hook(lambda part, _: self.check(part, torch.float32))

    @staticmethod
    def check(part: Any, expected: torch.dtype) -> None:
        assert part.weight.dtype == expected, f"{type(part).__name__} computes with {part.weight.dtype}"


def new_model() -> LanguageModel:
    return LanguageModel(Shape(32, 48, 2, 4, 2, qk_norm=True), micro_batch=1, learning_rate=0.01, seed=1)


def train(stores: str, folder: Path, stop_at: int, teacher: str | None = None, **trainer: Any) -> LanguageModel:
    data = StitchedStream(stores=stores, context_length=32, global_batch=4, generations=2, total_tokens=STEPS * 4 * 32)
    model = new_model()
    settings = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "num_sanity_val_steps": 0, **trainer}
    run = lightning.Trainer(
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        callbacks=[StopAt(stop_at), TypesOfWeights(), Checkpoint(), *([SelfDistillation(teacher)] if teacher else [])],
        **settings,
    )
    run.fit(model, data, ckpt_path=newest_checkpoint(folder), weights_only=True)
    assert run.global_step == stop_at
    if stop_at == STEPS and run.is_global_zero:
        loss = float(run.callback_metrics["validation/iid"])
        (folder / "validation.json").write_text(json.dumps(loss))
    return model


if __name__ == "__main__":
    stores, folder, stop_at, precision, files, *teachers = sys.argv[1:]
    sharded = ModelParallelStrategy(
        data_parallel_size=2,
        tensor_parallel_size=1,
        save_distributed_checkpoint=files == "shards",
        process_group_backend="gloo",
    )
    train(stores, Path(folder), int(stop_at), *teachers, devices=2, strategy=sharded, precision=precision)
