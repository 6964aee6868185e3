"""The LightningModule that trains: one Lightning batch is one optimizer step.

Optimization is manual: accumulation over micro-batches happens inside ``training_step``, so a
checkpoint or a preemption never falls between micro-batches and resuming does not depend on them.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from megalit.errors import UserError
from megalit.modeling import hugging_face, sharding
from megalit.modeling.attention import Backend
from megalit.modeling.decoder import Decoder, TrainingPlan
from megalit.modeling.head import IGNORED, CrossEntropy, LossTerm, Weighted, ZLoss
from megalit.modeling.micro_batch import find_micro_batch
from megalit.modeling.nonfinite import culprits
from megalit.modeling.optimizers import OptimizerSettings, Schedule, make_optimizer
from megalit.modeling.out_of_memory import no_room, told_out_of_memory
from megalit.modeling.shapes import Shape
from megalit.modeling.trainer_checks import check_settings, check_shapes, check_trainer
from megalit.modeling.transformer import Regularization
from megalit.modeling.weight_averages import follow_until_begun
from megalit.seeds import seed_or_global

_NO_ROOM_FOR_OPTIMIZER = no_room(
    "the optimizer, which keeps two numbers more for each weight",
    "shard the model over several GPUs (trainer.strategy), or choose a smaller model.shape",
)


class LanguageModel(Decoder):
    """A Llama and its training; the defaults are the megadocs paper's (arXiv 2603.18534).

    Args:
        shape: a name (see :data:`megalit.modeling.shapes.SHAPES`) or sizes.
        vocabulary_size: rows of the embedding (default: what the data needs).
        weights: folder in the Hugging Face format to start from, such as ``megalit export`` writes; its shape
            takes the place of ``shape``.
        learning_rate: peak learning rate.
        weight_decay: decay of matrices, multiplied by the learning rate.
        final_weight_decay: the decay at the end of the run, reached linearly (default: as at the start).
        schedule: how the learning rate changes over the run, whose length comes from the data.
        optimizer: the rule of the steps.
        gradient_clip: largest norm of the gradient; null leaves it as it is.
        z_loss: weight of the term that keeps the softmax's normalizer near 1.
        regularization: dropout and stochastic depth.
        micro_batch: windows per forward pass on each device (default: all of its share); ``auto`` finds the most
            that fit on a GPU. It changes memory and speed, not the result (but for what noise is drawn, where
            ``regularization`` is on).
        attention: kernel: ``auto``, ``sdpa``, ``flash2``, ``flash3``, ``flash4`` or ``flex``.
        cross_document_attention: attend over the whole window, across documents and megadocs; false masks
            attention by document.
        compile: compile each block and the loss with torch.compile.
        gradient_checkpointing: keep only each layer's input and compute the rest again: less memory, slower.
        nonfinite: what happens at a loss or gradient that is not finite: ``stop`` the run, whose last checkpoint
            stays, or ``skip`` the step.
        init_std: standard deviation of the initial weights.
        bos: token that a document begins with (default: what the data says).
        seed: fixes initial weights and dropout (default: ``seed_everything``). Weights are drawn where they are built,
            on the GPU or, with a sharded model, on the CPU, which draw other numbers.

    Raises:
        UserError: a setting that cannot work, or a vocabulary smaller than the data's.
    """

    def __init__(
        self,
        shape: str | Shape = "300m",
        vocabulary_size: int | None = None,
        weights: str | None = None,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.8,
        final_weight_decay: float | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 (frozen)
        gradient_clip: float | None = 1.0,
        z_loss: float = 0.0,
        regularization: Regularization = Regularization(),  # noqa: B008 (frozen)
        micro_batch: int | Literal["auto"] | None = None,
        attention: Backend = "auto",
        cross_document_attention: bool = True,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        nonfinite: Literal["stop", "skip"] = "stop",
        init_std: float = 0.02,
        bos: int | None = None,
        seed: int | None = None,
    ) -> None:
        # A checkpoint brings the settings as plain values.
        schedule = Schedule(**schedule) if isinstance(schedule, dict) else schedule
        optimizer = OptimizerSettings(**optimizer) if isinstance(optimizer, dict) else optimizer
        regularization = Regularization(**regularization) if isinstance(regularization, dict) else regularization
        if weights is not None:
            shape = hugging_face.read_shape(Path(weights))
            vocabulary_size = vocabulary_size or hugging_face.read_vocabulary_size(Path(weights))
        super().__init__(
            shape, vocabulary_size, init_std, seed, attention, cross_document_attention, bos, regularization
        )
        self.automatic_optimization = False
        self.weights = weights
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.final_weight_decay = weight_decay if final_weight_decay is None else final_weight_decay
        self.schedule = schedule
        self.optimizer_settings = optimizer
        self.gradient_clip = gradient_clip
        self.micro_batch = micro_batch
        self._found_micro_batch: int | None = None
        self._continues = False
        self.compile_blocks = compile
        self.gradient_checkpointing = gradient_checkpointing
        self.nonfinite = nonfinite
        self.terms: list[LossTerm] = [CrossEntropy()]
        # What terms need besides the targets, from a micro-batch: ``(windows * length, ...)`` by name.
        self.row_sources: list[Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = []
        if z_loss:
            self.terms.append(ZLoss(z_loss))
        check_settings(self, z_loss)
        # Plain types only: checkpoints are read with torch's weights_only.
        self.save_hyperparameters(
            {
                "shape": asdict(self.shape),
                "vocabulary_size": vocabulary_size,
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
                "final_weight_decay": final_weight_decay,
                "schedule": asdict(schedule),
                "optimizer": {**asdict(optimizer), "betas": list(optimizer.betas)},
                "gradient_clip": gradient_clip,
                "z_loss": z_loss,
                "regularization": asdict(regularization),
                "cross_document_attention": cross_document_attention,
                "init_std": init_std,
                "bos": bos,
                "seed": seed,
            }
        )

    # Building --------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the weights, once, and prepare them for the device: loaded, compiled, sharded."""
        if hasattr(self, "transformer"):
            return
        super().configure_model()
        self.hparams.update(vocabulary_size=self.vocabulary_size, bos=self.bos)
        if self.weights is not None:
            hugging_face.load_weights(self, Path(self.weights))
        self.transformer.gradient_checkpointing = self.gradient_checkpointing
        if self.compile_blocks:
            # Under DDP, torch would cut each block where a bucket of gradients may end. The blocks are compiled apart,
            # which is cut enough for gradients to travel while others are computed.
            torch._dynamo.config.optimize_ddp = False
            for layer in self.transformer.layers:
                layer.compile()
            self.lm_head.evaluate = torch.compile(self.lm_head.evaluate)
        if self.device_mesh is not None:
            sharding.shard(self, self.device_mesh, mixed=str(self.trainer.precision) == "bf16-mixed")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another shape.

        Raises:
            UserError: it lacks a tensor or has one of another shape; the message names it.
        """
        # With noise, which windows share a pass is part of the result.
        self._found_micro_batch = checkpoint.get("micro_batch")
        found = checkpoint.get("state_dict")
        if found:  # of a sharded one its strategy reads it
            check_shapes(self.state_dict(), found)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["micro_batch"] = self._found_micro_batch

    def check_weights(self, plan: TrainingPlan, continues: bool = False) -> None:
        """Refuse to begin with weights of other tokens than the plan's; a run that was begun so goes on, and says so.

        Raises:
            UserError: see :func:`megalit.modeling.hugging_face.check_input`.
        """
        if self.weights is not None:
            hugging_face.check_input(Path(self.weights), plan.tokenizer, plan.context_length, continues)

    @property
    def _plan(self) -> TrainingPlan:
        plan = self._data_plan
        if plan is None:
            raise UserError("the run's length is not known: train with a StreamDataModule")
        return plan

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.device_mesh is not None and self.optimizer_settings.name == "muon":
            raise UserError("model.optimizer is muon and the model is sharded: Muon needs whole matrices, use DDP")
        return make_optimizer(self, self.optimizer_settings, self.learning_rate, self.weight_decay)

    def check_trainer(self, trainer: Any, continues: bool = False, steps: int | None = None) -> None:
        """Refuse a trainer under which this model would train wrongly.

        Raises:
            UserError: see :func:`megalit.modeling.trainer_checks.check_trainer`; or a kernel that does not run.
        """
        self._continues = continues
        self.check_device(trainer.strategy.root_device, str(trainer.precision))
        check_trainer(trainer, continues, steps)

    # Training --------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        trainer: Any = self.trainer
        # Of a sharded run Lightning reads the checkpoint later, and names it then.
        steps = self._data_plan.steps if self._data_plan is not None else None
        continues = self._continues or trainer.ckpt_path is not None
        self.check_trainer(trainer, continues, steps)
        if self._data_plan is not None:
            self.check_weights(self._data_plan, continues)
        if self.micro_batch == "auto":
            # Without noise it changes no result, and this may be another GPU.
            kept = self._found_micro_batch if self.regularization.is_on else None
            self.micro_batch = self._found_micro_batch = kept or find_micro_batch(self, self._plan)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """One optimizer step on this rank's share of a global batch.

        Returns:
            ``loss``, which is minimized, and ``cross_entropy``, the data's loss in it without a weight, both over the
            targets of the global batch, in nats.
        """
        if self.regularization.is_on:
            # Noise depends on the step alone, so that a resumed run draws what it would have drawn uninterrupted.
            torch.manual_seed(hash((seed_or_global(self.seed), batch_idx, self.global_rank)))
        optimizer: Any = self.optimizers()
        valid = self._over_ranks((batch["targets"] != IGNORED).sum().float())
        sums = torch.zeros(len(self.terms), dtype=torch.float32, device=self.device)
        plain = torch.zeros_like(sums)  # terms with a weight of their own, without it
        with told_out_of_memory(lambda: self.out_of_memory(batch)):
            for micro_batch, is_last in self.micro_batches(batch):
                with nullcontext() if is_last else self._without_gradient_sync():
                    of_terms, plainly = (part / valid for part in self._sums_and_plain(micro_batch))
                    # Strategies average gradients over ranks; the loss is a sum over them.
                    self.manual_backward(of_terms.sum() * self.trainer.world_size)
                sums += of_terms.detach()
                plain += plainly
        sums, plain = self._over_ranks(torch.stack([sums, plain]))
        with told_out_of_memory(lambda: self.out_of_memory(batch)):
            norm = sharding.clip_gradients(self, self.gradient_clip)
        if not torch.isfinite(sums.sum() + norm):
            self._handle_nonfinite(batch, batch_idx, "gradient" if torch.isfinite(sums.sum()) else "loss")
            optimizer.zero_grad()
        self._set_rates(optimizer, batch_idx)
        with told_out_of_memory(_NO_ROOM_FOR_OPTIMIZER):
            optimizer.step()
        optimizer.zero_grad()
        follow_until_begun(self.trainer, self)
        every = int(self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            rates = {"train/gradient_norm": norm, "train/learning_rate": self._rate}
            self.log_dict({"train/loss": sums.sum(), **self._by_term(plain), **rates})
        return {"loss": sums.sum(), "cross_entropy": plain[0]}

    def term_sums(self, batch: dict[str, Tensor]) -> Tensor:
        """Sum of each loss term over the valid targets of a micro-batch, ``(terms,)``."""
        hidden, rows = self.hidden_and_rows(batch)
        for source in self.row_sources:
            rows |= source(batch)
        sums: Tensor = self.lm_head(hidden, rows, self.terms)
        return sums

    def _sums_and_plain(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """:meth:`term_sums`, and the same where terms with a weight of their own are without it."""
        for term in self.terms:
            if isinstance(term, Weighted):
                term.total = torch.zeros((), device=self.device)
        sums = self.term_sums(batch)
        parts = zip(self.terms, sums.detach(), strict=True)
        return sums, torch.stack([term.total if isinstance(term, Weighted) else value for term, value in parts])

    def _by_term(self, plain: Tensor) -> dict[str, Tensor]:
        if len(self.terms) == 1:
            return {}
        return {f"train/{term.name}": value for term, value in zip(self.terms, plain, strict=True)}

    def _set_rates(self, optimizer: Any, step: int) -> None:
        # The plan's steps, or, where a run goes on with other data, those done and those left.
        steps = int(self.trainer.num_training_batches)
        self._rate = self.learning_rate * self.schedule.factor(step, steps)
        progress = min(1.0, step / max(1, steps - 1))
        decay = self.weight_decay + (self.final_weight_decay - self.weight_decay) * progress
        for group in optimizer.param_groups:
            group["lr"] = self._rate
            group["weight_decay"] = decay if group["decays"] else 0.0

    def _handle_nonfinite(self, batch: dict[str, Tensor], step: int, what: str) -> None:
        message = f"the {what} is not finite at step {step + 1}, {culprits(self, batch)}"
        if self.nonfinite == "stop":
            raise UserError(
                f"{message}: look at these documents; with model.nonfinite skip the run goes on from its last "
                "checkpoint without such steps, a lower model.learning_rate is another run"
            )
        self.print(f"{message}: the step is skipped")

    def _over_ranks(self, value: Tensor) -> Tensor:
        if self.trainer.world_size > 1:
            # Lightning's own reduce waits at a barrier besides.
            torch.distributed.all_reduce(value)
        return value

    def _without_gradient_sync(self) -> AbstractContextManager[Any]:
        if self.device_mesh is not None:
            return sharding.without_gradient_sync(self)
        no_sync = getattr(self.trainer.strategy.model, "no_sync", None)
        return no_sync() if no_sync is not None else nullcontext()
