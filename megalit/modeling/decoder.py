"""A decoder with its head as a LightningModule: building, counting, evaluating. Training is its subclass's."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from megalit.errors import UserError
from megalit.modeling.attention import Backend, Documents, resolve, split_documents, try_kernel, whole_window
from megalit.modeling.head import IGNORED, Head
from megalit.modeling.metrics import mean_loss
from megalit.modeling.out_of_memory import told_out_of_memory
from megalit.modeling.shapes import Shape, shape_of
from megalit.modeling.transformer import Regularization, Transformer
from megalit.seeds import seed_or_global


class TrainingPlan(Protocol):
    """What the model asks of the data module's ``plan``."""

    @property
    def steps(self) -> int: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def bos(self) -> int: ...
    @property
    def tokenizer(self) -> str | None: ...


def _cpu_has_bf16() -> bool:
    # Not there in builds of torch without oneDNN, of which nothing is known.
    supported: Any = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or bool(supported())


class Decoder(lightning.LightningModule):
    """A Llama that can be built, counted and evaluated.

    Args:
        shape: a name (see :data:`megalit.modeling.shapes.SHAPES`) or sizes.
        vocabulary_size: rows of the embedding (default: what the data needs).
        init_std: standard deviation of the initial weights.
        seed: fixes the initial weights (default: ``seed_everything``).
        attention: the kernel (see :mod:`megalit.modeling.attention`).
        cross_document_attention: attend over the whole window, across documents and megadocs; false masks
            attention by document.
        bos: token that a document begins with (default: what the data says).
        regularization: noise in training.

    Attributes:
        tokenizer: fingerprint of the tokenizer whose tokens it was trained on, where that is known.

    Raises:
        UserError: a setting that cannot work, or a vocabulary smaller than the data's.
    """

    def __init__(
        self,
        shape: str | Shape = "300m",
        vocabulary_size: int | None = None,
        init_std: float = 0.02,
        seed: int | None = None,
        attention: Backend = "auto",
        cross_document_attention: bool = True,
        bos: int | None = None,
        regularization: Regularization | None = None,
    ) -> None:
        super().__init__()
        self.shape = Shape(**shape) if isinstance(shape, dict) else shape_of(shape)
        self.vocabulary_size = vocabulary_size
        self.init_std = init_std
        self.seed = seed
        self.attention: Backend = attention
        self.cross_document_attention = cross_document_attention
        self.bos = bos
        self.regularization = regularization or Regularization()
        self.tokenizer: str | None = None
        self.micro_batch: int | str | None = None
        self._backend: Backend | None = None
        self._validation: list[MeanMetric] = []
        if not init_std > 0:  # NaN is refused, too
            raise UserError(f"model.init_std is {init_std}: choose a positive value")

    # Building --------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the weights, once, when the vocabulary is known."""
        if hasattr(self, "transformer"):
            return
        plan = self._data_plan
        if plan is not None:
            self.check_plan(plan)
            self.bos = plan.bos if self.bos is None else self.bos
            self.tokenizer = plan.tokenizer
        self.vocabulary_size = self.vocabulary_size or (plan.vocabulary_size if plan is not None else None)
        if self.vocabulary_size is None:
            raise UserError("the model's vocabulary is not known: set model.vocabulary_size")
        if not self.cross_document_attention and self.bos is None:
            raise UserError("the token that a document begins with is not known: set model.bos")
        # Its own random state: what ran before does not change the initial weights.
        with torch.random.fork_rng(devices=[]), self._where_it_trains():
            torch.manual_seed(seed_or_global(self.seed))
            self.transformer = Transformer(self.shape, self.vocabulary_size, self.init_std, self.regularization)
            self.lm_head = Head(self.shape.hidden_size, self.vocabulary_size)
            if self.shape.tie_embeddings:
                self.lm_head.weight = self.transformer.embed_tokens.weight
            else:
                nn.init.normal_(self.lm_head.weight, std=self.init_std)

    def _where_it_trains(self) -> AbstractContextManager[Any]:
        """Where Lightning builds a model; a callback that averages weights has it built before, and numbers that are
        drawn on a CPU are others than a GPU's."""
        strategy = getattr(self._trainer, "strategy", None)
        # A sharded model is built where its strategy says.
        return nullcontext() if strategy is None or self.device_mesh is not None else torch.device(strategy.root_device)

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

    def check_device(self, device: torch.device, precision: str) -> None:
        """Refuse a device or precision that the attention's kernel does not run on, and warn of a slow one.

        Raises:
            UserError: see :func:`megalit.modeling.attention.resolve` and ``try_kernel`` there.
        """
        if device.type == "cpu" and precision.startswith("bf16") and not _cpu_has_bf16():
            rank_zero_warn(
                f"trainer.precision is {precision}, for which this CPU has no instructions, so it may be several times "
                "slower than 32-true"
            )
        masked = not self.cross_document_attention
        backend = resolve(self.attention, device, masked)
        if self.attention.startswith("flash") and not precision.startswith(("bf16", "16")):
            raise UserError(
                f"model.attention is {self.attention} and trainer.precision {precision}: it needs bf16-mixed"
            )
        try_kernel(backend, device, masked, (self.shape.heads, self.shape.kv_heads, self.shape.head_size))

    @property
    def _data_plan(self) -> TrainingPlan | None:
        plan: TrainingPlan | None = getattr(getattr(self._trainer, "datamodule", None), "plan", None)
        return plan

    # Counting --------------------------------------------------------------------------------------

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

    # Running ---------------------------------------------------------------------------------------

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(windows, length, vocabulary)`` of tokens ``(windows, length)``."""
        logits: Tensor = self.lm_head(self.transformer(tokens, self._documents(tokens)))
        return logits

    def hidden_and_rows(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Final hidden states ``(windows * length, width)``, and targets ``(windows * length,)`` for the head."""
        hidden: Tensor = self.transformer(batch["tokens"], self._documents(batch["tokens"]))
        # Batches travel as int32; the device widens them.
        return hidden.flatten(0, 1), {"targets": batch["targets"].flatten().long()}

    def _documents(self, tokens: Tensor) -> Documents | None:
        if self._backend is None:
            self._backend = resolve(self.attention, tokens.device, masked=not self.cross_document_attention)
            self.transformer.set_attention(self._backend)
        if self.cross_document_attention:
            return whole_window(tokens, self._backend)
        assert self.bos is not None
        return split_documents(tokens, self.bos, self._backend)

    def micro_batches(self, batch: dict[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], bool]]:
        """Parts of a batch that go through the model together, and whether each is the last one."""
        windows = len(batch["tokens"])
        size = self.micro_batch if isinstance(self.micro_batch, int) else windows
        for first in range(0, windows, size):
            yield {name: value[first : first + size] for name, value in batch.items()}, first + size >= windows

    def out_of_memory(self, batch: dict[str, Tensor]) -> UserError:
        """The error for a batch that did not fit."""
        windows, length = batch["tokens"].shape
        size = self.micro_batch if isinstance(self.micro_batch, int) else windows
        return UserError(
            f"out of memory with {size} windows of {length} tokens in a pass: lower model.micro_batch (or set it to "
            "auto), or set model.gradient_checkpointing"
        )

    # Evaluation ------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        trainer: Any = self.trainer
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        self._validation = [mean_loss(self.device) for _ in loaders]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Add a batch of one validation suite to that suite's mean loss over tokens.

        Returns:
            The loss of each target, float32, ``(windows, length)``, 0 where it does not count.
        """
        metric = self._validation[dataloader_idx]
        losses = []
        with told_out_of_memory(lambda: self.out_of_memory(batch)):
            for micro_batch, _ in self.micro_batches(batch):
                hidden, rows = self.hidden_and_rows(micro_batch)
                losses.append(self.lm_head(hidden, rows))
                metric.update(losses[-1], (rows["targets"] != IGNORED).float())
        return torch.cat(losses).view_as(batch["targets"])

    def on_validation_epoch_end(self) -> None:
        names = list(getattr(getattr(self.trainer, "datamodule", None), "suites", {}))
        for index, metric in enumerate(self._validation):
            name = names[index] if index < len(names) else str(index)
            # The metric has summed over ranks already; averaging equal values keeps Lightning content.
            self.log(f"validation/{name}", metric.compute().float(), sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
