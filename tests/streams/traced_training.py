"""A training run that writes down every window it trains on; started by test_killed_training.py.

python traced_training.py STORES FOLDER DEVICES WORKERS MICRO_BATCH STEPS
"""

import sys
from pathlib import Path
from typing import Any

import lightning

from megalit.callbacks import AtomicCheckpointIO, Checkpoint
from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.modeling.language_model import LanguageModel
from megalit.streams import StitchedStream

GLOBAL_BATCH, CONTEXT = 4, 16


def data_module(stores: str, steps: int, workers: int = 0) -> StitchedStream:
    return StitchedStream(
        stores=stores,
        context_length=CONTEXT,
        global_batch=GLOBAL_BATCH,
        generations=3,
        total_tokens=steps * GLOBAL_BATCH * CONTEXT,
        num_workers=workers,
    )


class Trace(lightning.Callback):
    """Appends 'step sample:stream:epoch:window ...' to a file of its own rank, one write for each step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        windows = " ".join(":".join(map(str, row)) for row in batch["provenance"].tolist())
        with (self.folder / f"trace-{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{trainer.global_step} {windows}\n")


def main() -> None:
    stores, folder, devices, workers, micro_batch, steps = sys.argv[1:]
    run = Path(folder)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=int(devices),
        strategy="ddp" if int(devices) > 1 else "auto",
        max_epochs=1,
        use_distributed_sampler=False,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run,
        plugins=[AtomicCheckpointIO()],
        callbacks=[Checkpoint(every_n_steps=3), Trace(run)],
    )
    model = LanguageModel("nano", micro_batch=int(micro_batch), seed=1)
    data = data_module(stores, int(steps), int(workers))
    trainer.fit(model, data, ckpt_path=newest_checkpoint(run), weights_only=True)
    assert trainer.global_step == int(steps)


if __name__ == "__main__":
    main()
