"""Scaling-law logging: one record file per run, written at each validation and at the end."""

import time
from pathlib import Path
from typing import Any

import lightning
import torch

from megalit.errors import UserError
from megalit.scaling.devices import peak_flops
from megalit.scaling.records import CurvePoint, RunRecord, bits_per_byte, environment
from megalit.seeds import seed_or_global


class ScalingLaw(lightning.Callback):
    """Keeps the curves of a run and writes its record (:mod:`megalit.scaling.records`).

    The curves travel in the checkpoint, so an interrupted run's record reads as if it had not been.

    Args:
        every_n_steps: optimizer steps between points of the training curve; each is the mean since
            the one before.

    Raises:
        UserError: a distance below 1.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise UserError(f"record.every_n_steps is {every_n_steps}: choose at least 1")
        self.every_n_steps = every_n_steps
        self.config: dict[str, Any] = {}
        self._training: list[CurvePoint] = []
        self._validation: list[CurvePoint] = []
        self._pending: list[torch.Tensor] = []
        self._earlier_seconds = 0.0
        # None, where a part of the run was trained by a version that did not count devices.
        self._earlier_device_seconds: float | None = 0.0
        self._began = time.monotonic()
        self._world_size = 1

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._began = time.monotonic()
        self._world_size = trainer.world_size

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # What is minimized may have other terms, and could not be compared with a validation.
        self._pending.append(outputs["cross_entropy"])
        if trainer.global_step % self.every_n_steps == 0 or batch_idx + 1 == trainer.num_training_batches:
            # What came with a checkpoint is on the CPU.
            device = outputs["cross_entropy"].device
            mean = float(torch.stack([loss.to(device) for loss in self._pending]).mean())
            self._pending.clear()
            self._training.append(CurvePoint(trainer.global_step, self._tokens(trainer), {"train": mean}))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        losses = {
            name.removeprefix("validation/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("validation/", "ensemble/"))
        }
        self._add(CurvePoint(trainer.global_step, self._tokens(trainer), losses))
        self.write(trainer, pl_module)

    def finish(self, trainer: lightning.Trainer, model: Any, losses: dict[str, float]) -> RunRecord:
        """Write the record of a run that is over, with the losses of its last weights."""
        self._add(CurvePoint(trainer.global_step, self._tokens(trainer), losses))
        return self.write(trainer, model, finished=True)

    def write(self, trainer: lightning.Trainer, model: Any, finished: bool = False) -> RunRecord:
        """Write ``record.json`` into the run folder (on the first rank) and return the record."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        plan = data.plan
        seen = data.windows_seen()
        total, inner = model.parameter_counts()
        latest = self._validation[-1].losses if self._validation else {}
        seconds, device_seconds = self._seconds()
        record = RunRecord(
            status="finished" if finished else "running",
            measured_whole=finished,
            held_out=data.held_out,
            config=self.config,
            parameters={"total": total, "non_embedding": inner},
            plan=plan.to_json(),
            tokens_seen={name: windows * plan.context_length for name, windows in seen.items()},
            epochs={s.name: seen[s.name] / s.windows_per_epoch for s in plan.streams},
            unique_real_tokens=plan.unique_real_tokens,
            synthetic_share=plan.synthetic_share,
            flops=model.flops_per_token(plan.context_length) * data.consumed_tokens,
            losses={
                suite: {
                    "nats_per_token": loss,
                    "bits_per_byte": bits_per_byte(loss, data.suites[suite].targets, data.suites[suite].text_bytes),
                }
                for suite, loss in latest.items()
                if suite in data.suites
            },
            ensemble=_by_members(latest),
            wall_seconds=seconds,
            device_seconds=device_seconds,
            environment=environment(_devices(trainer)) | {"peak_flops": peak_flops(_devices(trainer))},
            seeds={"model": seed_or_global(model.seed), "data": seed_or_global(data.seed)},
            steps=trainer.global_step,
            training_curve=self._training,
            validation_curve=self._validation,
        )
        if trainer.is_global_zero:
            record.write(Path(trainer.default_root_dir))
        return record

    def state_dict(self) -> dict[str, Any]:
        seconds, device_seconds = self._seconds()
        return {
            "training": [vars(point) for point in self._training],
            "validation": [vars(point) for point in self._validation],
            "pending": [float(loss) for loss in self._pending],
            "seconds": seconds,
            "device_seconds": device_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._training = [CurvePoint(**point) for point in state_dict["training"]]
        self._validation = [CurvePoint(**point) for point in state_dict["validation"]]
        self._pending = [torch.tensor(loss) for loss in state_dict["pending"]]
        self._earlier_seconds = state_dict["seconds"]
        self._earlier_device_seconds = state_dict.get("device_seconds")

    def _add(self, point: CurvePoint) -> None:
        self._validation = [old for old in self._validation if old.step != point.step] + [point]

    def _seconds(self) -> tuple[float, float | None]:
        """Time of all starts together, and each one's times its devices."""
        own, earlier = time.monotonic() - self._began, self._earlier_device_seconds
        return self._earlier_seconds + own, None if earlier is None else earlier + own * self._world_size

    @staticmethod
    def _tokens(trainer: lightning.Trainer) -> int:
        # Not steps times a batch: a run that goes on with other data may have taken other steps before.
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return int(data.consumed_tokens)


def _by_members(losses: dict[str, float]) -> dict[str, list[float]]:
    """What :class:`~megalit.callbacks.Ensemble` has logged, as ``ensemble/SUITE/K``: K = 1 … n by suite."""
    curves: dict[str, dict[int, float]] = {}
    for name, loss in losses.items():
        if name.startswith("ensemble/"):
            suite, members = name.removeprefix("ensemble/").rsplit("/", 1)
            curves.setdefault(suite, {})[int(members)] = loss
    return {suite: [curve[members] for members in sorted(curve)] for suite, curve in curves.items()}


def _devices(trainer: lightning.Trainer) -> str:
    if torch.cuda.is_available() and trainer.strategy.root_device.type == "cuda":
        name = torch.cuda.get_device_name(trainer.strategy.root_device)
    else:
        name = trainer.strategy.root_device.type
    return f"{trainer.world_size} x {name}"
