"""Training steps of transformers' Trainer; prints the seconds of each step as JSON. Runs in its own environment."""

import json
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = time.perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.began)
        self.began = now


class Windows(torch.utils.data.Dataset):
    def __init__(self, path: str) -> None:
        self.tokens = np.load(path)[:, :-1]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.from_numpy(self.tokens[index])
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    settings = json.loads(sys.argv[1])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings["vocabulary"],
            hidden_size=settings["hidden_size"],
            intermediate_size=settings["intermediate_size"],
            num_hidden_layers=settings["layers"],
            num_attention_heads=settings["heads"],
            num_key_value_heads=settings["kv_heads"],
            tie_word_embeddings=False,
        )
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=settings["batch"],
                max_steps=settings["steps"],
                learning_rate=3e-3,
                weight_decay=0.8,
                lr_scheduler_type="cosine",
                max_grad_norm=1.0,
                use_cpu=True,
                bf16=settings["precision"] == "bf16-mixed",
                torch_compile=settings["compile"],
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Windows(settings["windows"]),
            callbacks=[clock],
        ).train()
    print(json.dumps(clock.seconds))


if __name__ == "__main__":
    main()
