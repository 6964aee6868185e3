"""How fast a run is: tokens per second, seconds per step, MFU, memory."""

import time
from typing import Any

import lightning
import torch

from megalit.scaling.devices import mfu


class Throughput(lightning.Callback):
    """Logs speed and memory every ``log_every_n_steps`` steps, over the steps since the last time.

    Validation and checkpoints do not count. Logged are ``throughput/tokens_per_second`` (all devices),
    ``throughput/seconds_per_step``, ``throughput/mfu`` (where the device's peak is known) and ``throughput/memory_gb``
    (largest on this device so far).
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._steps = 0
        self._began = 0.0
        self._device = ""
        self._saving = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        device = trainer.strategy.root_device
        self._device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        # From the end of the step before to the end of this one: waiting for data counts.
        self._seconds += now - self._began
        self._steps += 1
        self._began = now
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (batch_idx + 1) % every:
            return
        windows, length = batch["tokens"].shape
        rate = windows * length * trainer.world_size * self._steps / self._seconds
        values = {
            "throughput/tokens_per_second": rate,
            "throughput/seconds_per_step": self._seconds / self._steps,
        }
        model: Any = pl_module
        used = mfu(model.flops_per_token(length), rate, self._device, trainer.world_size)
        if used is not None:
            values["throughput/mfu"] = used
        if trainer.strategy.root_device.type == "cuda":
            values["throughput/memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        pl_module.log_dict(values)
        self._seconds, self._steps = 0.0, 0

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # What follows until the next batch starts is the checkpoint's writing.
        self._saving = True

    def on_train_batch_start(self, *_: Any) -> None:
        if self._saving:
            self._saving, self._began = False, time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._began = time.perf_counter()
