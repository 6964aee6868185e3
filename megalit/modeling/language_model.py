"""The LightningModule: one Lightning batch is one optimizer step.

Optimization is manual: accumulation over micro-batches happens inside ``training_step``, so a
checkpoint or a preemption never falls between micro-batches and resuming does not depend on them.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, Protocol

import lightning
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from megalit.errors import UserError
from megalit.modeling.head import IGNORED, CrossEntropy, LossTerm, token_losses
from megalit.modeling.optimizers import ScheduleName, adamw, learning_rate_factor
from megalit.modeling.shapes import Shape, shape_of
from megalit.modeling.transformer import Transformer


class TrainingPlan(Protocol):
    """What the model asks of the data module's ``plan``."""

    @property
    def steps(self) -> int: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...


class LanguageModel(lightning.LightningModule):
    """A Llama trained with AdamW; the defaults are the megadocs paper's (arXiv 2603.18534).

    Args:
        shape: a name (see :data:`megalit.modeling.shapes.SHAPES`) or sizes.
        vocabulary_size: rows of the embedding (default: what the data needs).
        learning_rate: peak learning rate.
        weight_decay: AdamW's decay of matrices, multiplied by the learning rate.
        betas: AdamW's averaging coefficients.
        eps: AdamW's epsilon.
        warmup_fraction: share of the run's steps with rising learning rate.
        schedule: what follows: cosine to 0, linear to 0, or constant.
        gradient_clip: largest norm of the gradient; null leaves it as it is.
        micro_batch: windows per forward pass on each device (default: all of its share); it changes
            memory and speed, not the result.
        init_std: standard deviation of the initial weights.
        seed: fixes the initial weights (default: ``seed_everything``).

    Raises:
        UserError: a setting that cannot work, or a vocabulary smaller than the data's.
    """

    def __init__(
        self,
        shape: str | Shape = "300m",
        vocabulary_size: int | None = None,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.8,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        warmup_fraction: float = 0.01,
        schedule: ScheduleName = "cosine",
        gradient_clip: float | None = 1.0,
        micro_batch: int | None = None,
        init_std: float = 0.02,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.shape = Shape(**shape) if isinstance(shape, dict) else shape_of(shape)
        self.vocabulary_size = vocabulary_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.warmup_fraction = warmup_fraction
        self.schedule: ScheduleName = schedule
        self.gradient_clip = gradient_clip
        self.micro_batch = micro_batch
        self.init_std = init_std
        self.seed = seed
        self.terms: list[LossTerm] = [CrossEntropy()]
        self._validation: list[MeanMetric] = []
        self._check_settings()
        # Plain types only: checkpoints are read with torch's weights_only.
        self.save_hyperparameters(
            {
                "shape": asdict(self.shape),
                "vocabulary_size": vocabulary_size,
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
                "betas": list(betas),
                "eps": eps,
                "warmup_fraction": warmup_fraction,
                "schedule": schedule,
                "gradient_clip": gradient_clip,
                "micro_batch": micro_batch,
                "init_std": init_std,
                "seed": seed,
            }
        )

    def _check_settings(self) -> None:
        for name in ("learning_rate", "eps", "init_std"):
            if getattr(self, name) <= 0:
                raise UserError(f"model.{name} is {getattr(self, name)}: choose a positive value")
        if self.weight_decay < 0:
            raise UserError(f"model.weight_decay is {self.weight_decay}: choose 0 or more")
        if not 0 <= self.warmup_fraction <= 1:
            raise UserError(f"model.warmup_fraction is {self.warmup_fraction}: choose a value in [0, 1]")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UserError(f"model.micro_batch is {self.micro_batch}: choose at least 1")

    # Building --------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the weights, once, when the vocabulary is known."""
        if hasattr(self, "transformer"):
            return
        self.vocabulary_size = self._checked_vocabulary()
        self.hparams["vocabulary_size"] = self.vocabulary_size
        # Its own random state: what ran before does not change the initial weights.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed or 0)
            self.transformer = Transformer(self.shape, self.vocabulary_size, self.init_std)
            self.lm_head = nn.Linear(self.shape.hidden_size, self.vocabulary_size, bias=False)
            if self.shape.tie_embeddings:
                self.lm_head.weight = self.transformer.embed_tokens.weight
            else:
                nn.init.normal_(self.lm_head.weight, std=self.init_std)

    def _checked_vocabulary(self) -> int:
        data = getattr(self._trainer, "datamodule", None)
        if data is None:
            if self.vocabulary_size is None:
                raise UserError("the model's vocabulary is not known: set model.vocabulary_size")
            return self.vocabulary_size
        self.check_plan(self._plan)
        return self.vocabulary_size or self._plan.vocabulary_size

    def check_plan(self, plan: TrainingPlan) -> None:
        """Refuse a data plan that this model cannot train on.

        Raises:
            UserError: its vocabulary is larger than the model's.
        """
        if self.vocabulary_size is not None and self.vocabulary_size < plan.vocabulary_size:
            raise UserError(
                f"model.vocabulary_size is {self.vocabulary_size} and the token stores need {plan.vocabulary_size}: "
                "raise it, or leave it out to follow the data"
            )

    @property
    def _plan(self) -> TrainingPlan:
        plan: TrainingPlan | None = getattr(getattr(self.trainer, "datamodule", None), "plan", None)
        if plan is None:
            raise UserError("the run's length is not known: train with a StreamDataModule")
        return plan

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self, self.learning_rate, self.weight_decay, self.betas, self.eps)

    def parameter_counts(self) -> tuple[int, int]:
        """Number of parameters with and without embeddings (the output head counts as one)."""
        total = sum(parameter.numel() for parameter in self.parameters())
        embeddings = self.transformer.embed_tokens.weight.numel()
        head = 0 if self.shape.tie_embeddings else self.lm_head.weight.numel()
        return total, total - embeddings - head

    def flops_per_token(self, context_length: int) -> float:
        """Training FLOPs per token: 6 per weight that multiplies, and causal attention's 6·L·T·D.

        Forward and backward; the embedding look-up costs nothing, the output head counts.
        """
        _, inner = self.parameter_counts()
        head = self.lm_head.weight.numel()
        attention = 6 * self.shape.layers * context_length * self.shape.hidden_size
        return 6 * (inner + head) + attention

    # Training --------------------------------------------------------------------------------------

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(windows, length, vocabulary)`` of tokens ``(windows, length)``."""
        logits: Tensor = self.lm_head(self.transformer(tokens))
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """One optimizer step on this rank's share of a global batch."""
        optimizer: Any = self.optimizers()
        valid = self._over_ranks((batch["targets"] != IGNORED).sum().float())
        total = torch.zeros((), device=self.device)
        for micro_batch, is_last in self._micro_batches(batch):
            with nullcontext() if is_last else self._without_gradient_sync():
                loss = self._loss_sum(micro_batch) / valid
                # DDP averages gradients over ranks; the loss is a sum over them.
                self.manual_backward(loss * self.trainer.world_size)
            total += loss.detach()
        if self.gradient_clip is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters(), self.gradient_clip)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        self._set_learning_rate(optimizer, batch_idx)
        optimizer.step()
        optimizer.zero_grad()
        total = self._over_ranks(total)
        if batch_idx % self._log_every == 0:
            self.log_dict({"train/loss": total, "train/gradient_norm": norm, "train/learning_rate": self._rate})
        return {"loss": total}

    @property
    def _log_every(self) -> int:
        trainer: Any = self.trainer
        return int(trainer.log_every_n_steps)

    def _micro_batches(self, batch: dict[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], bool]]:
        windows = len(batch["tokens"])
        size = self.micro_batch or windows
        for first in range(0, windows, size):
            yield {name: value[first : first + size] for name, value in batch.items()}, first + size >= windows

    def _loss_sum(self, batch: dict[str, Tensor]) -> Tensor:
        hidden, targets = self._hidden(batch)
        return torch.stack([term(hidden, self.lm_head.weight, targets) for term in self.terms]).sum()

    def _hidden(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Final hidden states ``(windows * length, width)`` and targets ``(windows * length,)``."""
        # Batches travel as int32; the device widens them.
        return self.transformer(batch["tokens"]).flatten(0, 1), batch["targets"].flatten().long()

    def _set_learning_rate(self, optimizer: Any, step: int) -> None:
        factor = learning_rate_factor(step, self._plan.steps, self.warmup_fraction, self.schedule)
        self._rate = self.learning_rate * factor
        for group in optimizer.param_groups:
            group["lr"] = self._rate

    def _over_ranks(self, value: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return value
        # Lightning's own reduce waits at a barrier besides.
        torch.distributed.all_reduce(value)
        return value

    def _without_gradient_sync(self) -> AbstractContextManager[Any]:
        no_sync = getattr(self.trainer.strategy.model, "no_sync", None)
        return no_sync() if no_sync is not None else nullcontext()

    # Evaluation ------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        trainer: Any = self.trainer
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        # One for each suite on every rank, also where a rank gets no window of a small suite: computing a metric
        # waits for all ranks. Double precision where the device has it: a sum over millions of tokens in float32
        # loses digits.
        precision = torch.float32 if self.device.type == "mps" else torch.float64
        self._validation = [MeanMetric().set_dtype(precision).to(self.device) for _ in loaders]
        for metric in self._validation:
            metric.update(0.0, 0.0)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch of one validation suite to that suite's mean loss over tokens."""
        hidden, targets = self._hidden(batch)
        losses = token_losses(hidden, self.lm_head.weight, targets)
        self._validation[dataloader_idx].update(losses, (targets != IGNORED).float())

    def on_validation_epoch_end(self) -> None:
        names = list(getattr(getattr(self.trainer, "datamodule", None), "suites", {}))
        for index, metric in enumerate(self._validation):
            name = names[index] if index < len(names) else str(index)
            # The metric has summed over ranks already; averaging equal values keeps Lightning content.
            self.log(f"validation/{name}", metric.compute().float(), sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
