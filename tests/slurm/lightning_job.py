"""A plain Lightning training of two ranks, with Lightning's handlers of signals or with ours.

python lightning_job.py FOLDER lightning|ours RANKS

In the first start of the job, after step PARKED, both ranks write a file ``parked-RANK``. Then RANKS (``0``, ``01``)
wait in Python for the signal, and others go on into the all-reduce of the backward pass, where they wait for them.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch

from megalit.callbacks import Checkpoint, Preemption
from megalit.evaluation.checkpoints import newest_checkpoint

STEPS, PARKED = 40, 10
FOLDER = Path(sys.argv[1])
FIRST = "SLURM_RESTART_COUNT" not in os.environ
RANK = int(os.environ["SLURM_PROCID"])


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return ((self.layer(batch[0]) - batch[0].sum(1, keepdim=True)) ** 2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Park(lightning.Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if FIRST and trainer.global_step == PARKED:
            (FOLDER / f"parked-{RANK}").touch()
            if str(RANK) in sys.argv[3]:
                while not (FOLDER / "signalled").exists():
                    time.sleep(0.05)
                time.sleep(1)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        (FOLDER / f"start-{os.environ.get('SLURM_RESTART_COUNT', '0')}-{RANK}").write_text(str(trainer.global_step))

    def on_train_end(self, trainer: Any, module: Any) -> None:
        (FOLDER / f"end-{RANK}").write_text(str(trainer.global_step))


def main() -> None:
    lightning.seed_everything(0)
    data = torch.utils.data.TensorDataset(torch.randn(4 * 2 * STEPS, 8))
    ours = sys.argv[2] == "ours"
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        num_nodes=2,
        strategy="ddp",
        max_steps=STEPS,
        max_epochs=-1,
        default_root_dir=FOLDER,
        logger=False,
        enable_checkpointing=ours,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Park(), Checkpoint(), Preemption(every_n_steps=1)] if ours else [Park()],
    )
    newest = newest_checkpoint(FOLDER) if ours else None
    trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=newest)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
