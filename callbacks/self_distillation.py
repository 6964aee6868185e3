"""Self-distillation: the student learns the soft labels of teachers beside the data's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from megalit.errors import UserError
from megalit.evaluation.checkpoints import Input, input_of, load_model, refuse_other_input
from megalit.modeling.decoder import Decoder
from megalit.modeling.distillation import Average, Distillation, follow, frozen_copy
from megalit.modeling.head import IGNORED, Weighted
from megalit.modeling.out_of_memory import no_room, told_out_of_memory
from megalit.scaling.records import refuse_unfinished

AVERAGE_OF_STUDENT = "ema"


class SelfDistillation(lightning.Callback):
    """Mixes the data's loss with the divergence from teachers: ``(1 - weight) * cross entropy + weight * KL``.

    Teachers are frozen models, or an exponential moving average of the student's own weights (Mean teachers, arXiv
    1703.01780). They lie outside the model: not in its state dict, not in its optimizer. Logged are, beside the loss,
    ``train/cross_entropy`` and ``train/distillation`` without their weights, and ``train/teacher_cross_entropy``, the
    teachers' own loss on the same tokens. The record's training loss is the cross entropy.

    Args:
        teachers: run folders, checkpoints or folders in the Hugging Face format, averaged where there are several; or
            ``ema``.
        weight: share of the distillation in the loss, at the start of the run.
        final_weight: the same at its end, reached linearly (default: as at the start).
        temperature: softens student and teachers in the divergence.
        average: of several teachers, their ``probabilities`` or ``logits``.
        decay: for ``ema``: how much of the average stays at each step.

    Raises:
        UserError: a setting that cannot work.
    """

    def __init__(
        self,
        teachers: str | Sequence[str],
        weight: float = 0.5,
        final_weight: float | None = None,
        temperature: float = 1.0,
        average: Average = "probabilities",
        decay: float = 0.999,
    ) -> None:
        self.teachers = [teachers] if isinstance(teachers, str) else list(teachers)
        self.weight = weight
        self.final_weight = weight if final_weight is None else final_weight
        self.temperature = temperature
        self.average: Average = average
        self.decay = decay
        self._distillation: Distillation | None = None
        self._saved_average: dict[str, Tensor] | None = None
        if not self.teachers:
            raise UserError("SelfDistillation has no teachers: name run folders or checkpoints, or ema")
        if AVERAGE_OF_STUDENT in self.teachers and len(self.teachers) > 1:
            raise UserError("SelfDistillation.teachers has ema beside others: choose ema alone, or the others")
        for name, value in (("weight", weight), ("final_weight", self.final_weight)):
            if not 0 <= value <= 1:
                raise UserError(f"SelfDistillation.{name} is {value}: choose a value in [0, 1]")
        if not temperature > 0:  # NaN is refused, too
            raise UserError(f"SelfDistillation.temperature is {temperature}: choose a positive value")
        if not 0 <= decay < 1:
            raise UserError(f"SelfDistillation.decay is {decay}: choose a value in [0, 1)")

    @property
    def earlier_models(self) -> Sequence[str]:
        """The teachers that are models of earlier runs."""
        return [] if self._follows_student else self.teachers

    def check(self, model: Any, plan: Any) -> None:
        """Look for the teachers, before a run is begun.

        Raises:
            UserError: one is not there or not finished, or has another vocabulary or tokenizer, or shorter windows.
        """
        students = Input(model.vocabulary_size or plan.vocabulary_size, plan.tokenizer, plan.context_length)
        for name in self.earlier_models:
            refuse_unfinished(f"the teacher {name}", Path(name))
            refuse_other_input(f"the teacher {name}", input_of(Path(name)), students, "the student")

    @property
    def _follows_student(self) -> bool:
        return self.teachers == [AVERAGE_OF_STUDENT]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Bring the teachers to the device and put their term into the loss.

        Raises:
            UserError: see :meth:`check`; or the student cannot be averaged because it is sharded.
        """
        model: Any = pl_module
        if self._follows_student:
            if model.device_mesh is not None:
                raise UserError(
                    "SelfDistillation.teachers is ema and the model is sharded, so no device holds the weights to "
                    "average: use DDP, or teachers from checkpoints"
                )
            teachers = [frozen_copy(model)]
            if self._saved_average is not None:
                teachers[0].load_state_dict(self._saved_average)
                self._saved_average = None
        else:
            self.check(model, trainer.datamodule.plan)  # type: ignore[attr-defined]
            teachers = [self._load(name, trainer) for name in self.teachers]
        self._distillation = Distillation(teachers, self.temperature, self.average)
        self._data, self._soft = Weighted(model.terms[0], 1 - self.weight), Weighted(self._distillation, self.weight)
        model.terms[0] = self._data
        model.terms.append(self._soft)
        model.row_sources.append(self._distillation.rows)

    @staticmethod
    def _load(name: str, trainer: lightning.Trainer) -> Decoder:
        teacher = load_model(Path(name), str(trainer.precision)).requires_grad_(False)
        with told_out_of_memory(no_room(f"the teacher {name}", "take fewer or smaller teachers, or a larger GPU")):
            return teacher.to(trainer.strategy.root_device)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._distillation is not None
        progress = batch_idx / max(1, int(trainer.num_training_batches) - 1)
        weight = self.weight + (self.final_weight - self.weight) * min(1.0, progress)
        self._data.weight.fill_(1 - weight)
        self._soft.weight.fill_(weight)
        self._distillation.teacher_nats = torch.zeros((), device=pl_module.device)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._distillation is not None
        model: Any = pl_module
        if self._follows_student:
            follow(self._distillation.teachers[0], model, self.decay)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            sums = torch.stack([self._distillation.teacher_nats, (batch["targets"] != IGNORED).sum()])
            if trainer.world_size > 1:
                torch.distributed.all_reduce(sums)
            pl_module.log("train/teacher_cross_entropy", sums[0] / sums[1])

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # The loss is the model's own again, and the teachers' memory is free.
        model: Any = pl_module
        assert self._distillation is not None
        model.terms[0] = self._data.term
        model.terms.remove(self._soft)
        model.row_sources.remove(self._distillation.rows)
        self._distillation = None

    def state_dict(self) -> dict[str, Any]:
        if self._distillation is None or not self._follows_student:
            return {}
        return {"average": self._distillation.teachers[0].state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved_average = state_dict.get("average")
