"""Training steps of litgpt's ``pretrain``; prints the seconds of each step as JSON. Runs in its own environment.

A step's time goes from the end of the one before to its own end, as everywhere in ``train_step.py``. litgpt's own
``iter_time`` is that of the last micro-batch only, without fetching it and without logging.
"""

import csv
import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litgpt import Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.pretrain import setup


class Windows(DataModule):
    def __init__(self, path: str, batch: int) -> None:
        super().__init__()
        self.tokens = torch.from_numpy(np.load(path))
        self.batch = batch

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int = -1) -> None:
        pass

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.tokens, batch_size=self.batch)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.tokens[: self.batch], batch_size=self.batch)


def main() -> None:
    settings = json.loads(sys.argv[1])
    windows = Windows(settings["windows"], settings["micro_batch"])
    length = windows.tokens.shape[1] - 1
    config = Config(
        name="llama",
        block_size=length,
        vocab_size=settings["vocabulary"],
        padded_vocab_size=settings["vocabulary"],
        n_layer=settings["layers"],
        n_head=settings["heads"],
        n_query_groups=settings["kv_heads"],
        n_embd=settings["hidden_size"],
        intermediate_size=settings["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    batch, steps = settings["batch"], settings["steps"]
    with tempfile.TemporaryDirectory() as folder:
        setup(
            model_name="llama",
            model_config=config,
            out_dir=Path(folder),
            precision=settings["precision"],
            data=windows,
            train=TrainArgs(
                save_interval=None,
                log_interval=1,
                global_batch_size=batch,
                micro_batch_size=settings["micro_batch"],
                max_tokens=steps * batch * length,
                max_norm=1.0,
                min_lr=0.0,
                lr_warmup_steps=1,
            ),
            eval=EvalArgs(interval=10**9, max_iters=1),
            devices=1,
            logger_name="csv",
        )
        (log,) = Path(folder).rglob("metrics.csv")
        rows = list(csv.DictReader(log.open()))
    ends = [0.0, *(float(row["time"]) for row in rows if row.get("time"))]
    print(json.dumps([end - began for began, end in pairwise(ends)]))


if __name__ == "__main__":
    main()
