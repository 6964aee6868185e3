"""Ensembling: what the model in training is worth beside members that are finished."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from torchmetrics import MeanMetric

from megalit.errors import UserError
from megalit.evaluation.checkpoints import Input, find_checkpoint, input_of, load_model, refuse_other_input
from megalit.evaluation.ensembles import kept_losses, losses_file, mixture_losses
from megalit.evaluation.losses import Losses, Suite, token_losses
from megalit.modeling.head import IGNORED
from megalit.modeling.metrics import mean_loss
from megalit.modeling.out_of_memory import no_room, told_out_of_memory
from megalit.scaling.records import refuse_unfinished


class Ensemble(lightning.Callback):
    """Adds finished members to the model in training at every validation, by averaging probabilities.

    Logged is ``ensemble/SUITE/K`` for K = 1 … n: the loss of the average of this model and the first K - 1 members, in
    nats per token. Each member runs once per suite; its log-probabilities of the targets are kept in its run's folder
    (``token_losses/``, 4 bytes a token).

    Args:
        members: run folders, checkpoints or folders in the Hugging Face format. Their shapes may differ.
        batch: windows in a pass of a member.

    Raises:
        UserError: no members.
    """

    def __init__(self, members: Sequence[str], batch: int = 8) -> None:
        self.members = [members] if isinstance(members, str) else list(members)
        self.batch = batch
        self._losses: dict[str, list[Losses]] = {}
        self._first_target: dict[str, Any] = {}
        self._means: dict[str, list[MeanMetric]] = {}
        if not self.members:
            raise UserError("Ensemble has no members: name run folders or checkpoints")

    @property
    def earlier_models(self) -> Sequence[str]:
        """The members."""
        return self.members

    def check(self, model: Any, plan: Any) -> None:
        """Look for the members, before a run is begun.

        Raises:
            UserError: one is not there or not finished, or has another vocabulary or tokenizer, or shorter windows.
        """
        ours = Input(model.vocabulary_size or plan.vocabulary_size, plan.tokenizer, plan.context_length)
        for name in self.members:
            refuse_unfinished(f"the member {name}", Path(name))
            refuse_other_input(f"the member {name}", input_of(Path(name)), ours, "the model in training")

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for name, suite in data.suites.items():
            if name not in self._losses:
                self._losses[name] = [self._of_member(Path(m), name, suite, trainer) for m in self.members]
                self._first_target[name] = np.concatenate([[0], np.cumsum(suite.window_targets)])
        number = len(self.members) + 1
        self._means = {name: [mean_loss(pl_module.device) for _ in range(number)] for name in data.suites}

    def _of_member(self, member: Path, name: str, suite: Suite, trainer: lightning.Trainer) -> Losses:
        precision, device = str(trainer.precision), trainer.strategy.root_device
        path = losses_file(find_checkpoint(member), name, suite.fingerprint, precision)
        everywhere = trainer.strategy.reduce_boolean_decision(path.exists(), all=True)
        if everywhere:
            return kept_losses(path, suite.targets, lambda: np.empty(0, dtype=np.float32))
        # All ranks share the work, so all have the result, also where they share no disk.
        model = load_model(member, precision)
        with told_out_of_memory(no_room(f"the member {member}", "measure it apart, with `megalit ensemble --runs`")):
            model.to(device)
        losses = token_losses(model, suite, self.batch, precision, divide=trainer.world_size > 1)
        if trainer.is_global_zero:
            kept_losses(path, suite.targets, lambda: losses)
        return losses

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        name = list(self._means)[dataloader_idx]
        windows = [window for window in batch["provenance"][:, 3].tolist() if window >= 0]
        if not windows:  # padding
            return
        first = self._first_target[name]
        part = slice(first[windows[0]], first[windows[-1] + 1])
        own = outputs[batch["targets"] != IGNORED].cpu().double().numpy()
        members = np.stack([own, *(losses[part] for losses in self._losses[name])])
        for metric, losses in zip(self._means[name], mixture_losses(members), strict=True):
            metric.update(float(losses.mean()), float(losses.size))

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for name, metrics in self._means.items():
            for members, metric in enumerate(metrics, start=1):
                # The metric has summed over ranks already.
                pl_module.log(f"ensemble/{name}/{members}", metric.compute().float(), sync_dist=True)
        self._means = {}

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
