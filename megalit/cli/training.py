"""The verbs that train and measure: ``fit``, ``validate``, ``test``, on LightningCLI.

``fit`` is: look at the run folder, build what data is missing, print the plan, train from the newest
checkpoint, measure the last weights, write the record.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from megalit.callbacks import AtomicCheckpointIO, Checkpoint, ScalingLaw
from megalit.cli.commands import with_switches
from megalit.cli.console import console
from megalit.cli.fit_config import PARSING, FitParser, quiet
from megalit.cli.host_memory import keep_freed_memory
from megalit.cli.models import training_documents
from megalit.cli.parsing import in_one_line
from megalit.cli.run_folder import LOSS_CURVE, METRICS, Adoption, RunFolder
from megalit.cli.suites import check_unseen
from megalit.cli.tables import plan_table, result_table
from megalit.errors import UserError, reason
from megalit.modeling.language_model import LanguageModel
from megalit.preemption import STOP, Preempted, is_requeued, lock_patience
from megalit.ranks import has_group
from megalit.scaling.plots import loss_curve
from megalit.streams import StreamDataModule

_Kind = TypeVar("_Kind")


@runtime_checkable
class Checked(Protocol):
    """A callback that can tell before a run is begun that it will not work."""

    def check(self, model: Any, plan: Any) -> None: ...


@runtime_checkable
class ReadsModels(Protocol):
    """A callback that reads models of earlier runs: members, or teachers."""

    @property
    def earlier_models(self) -> Sequence[str]: ...


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit fit``, ``megalit validate`` and ``megalit test``."""
    quiet()
    TrainingCLI.verb = verb
    with in_one_line():
        try:
            TrainingCLI(
                LanguageModel,
                StreamDataModule,
                args=[verb, *with_switches(arguments, ("--overwrite",))],
                **{**PARSING, "parser_kwargs": {**PARSING["parser_kwargs"], verb: {"exit_on_error": False}}},
            )
            _leave_group()
        except Preempted:
            _leave_group()
            raise
        except SystemExit as ended:
            # Lightning ends the process itself on Ctrl-C.
            if isinstance(ended.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from ended
            raise


def _leave_group() -> None:
    """End the processes' connections before the interpreter does, which now and then aborts over them."""
    if has_group():
        torch.distributed.destroy_process_group()


def _check_validation(trainer: Any, steps: int) -> None:
    """Refuse an interval that Lightning would refuse when the run has begun."""
    every = trainer.val_check_interval
    by_batches = isinstance(every, int) and trainer.check_val_every_n_epoch is not None
    if by_batches and every > steps and trainer.limit_val_batches > 0:
        raise UserError(
            f"trainer.val_check_interval is {every} steps and the run has {steps}: choose fewer, or a share such as 0.1"
        )


def _forget(state_dict: dict[str, Any]) -> None:
    """Load nothing."""


class TrainingCLI(FitParser):
    """What ``fit`` parses, and trains and measures by it."""

    verb = "fit"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # Parsers are slow to build: only the one that is asked for.
        known = LightningCLI.subcommands()
        return {TrainingCLI.verb: known[TrainingCLI.verb] | {"ckpt_path", "weights_only"}}

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = self.config_init[self.verb].trainer
        if trainer.logger is True:
            # Each start writes a folder of its own: what was logged before stays.
            trainer.logger = self._loggers(trainer.default_root_dir) if self.verb == "fit" else False
        plugins = trainer.plugins or []
        plugins = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        try:
            return super().instantiate_trainer(plugins=plugins, **kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise UserError(
                f"trainer's settings do not work together or not here: {reason(error)}; mend trainer"
            ) from error

    @staticmethod
    def _loggers(folder: str) -> list[Any]:
        table = CSVLogger(folder, name=METRICS)
        return [table, TensorBoardLogger(folder, name=METRICS, version=f"version_{table.version}")]

    # The verbs -------------------------------------------------------------------------------------

    def fit(self, **_: Any) -> None:
        config = self.config_init["fit"]
        run = RunFolder(Path(config.run))
        with run.alone(lock_patience()) if self.trainer.is_global_zero else nullcontext():
            self._fit(config, run)

    def _fit(self, config: Any, run: RunFolder) -> None:
        # Where SLURM starts this job again, a run that is finished may be its own.
        is_ours = run.is_replaced(self.plain_config) or (is_requeued() and run.is_of(self.plain_config))
        overwrite = config.overwrite and not is_ours
        run.check(self.plain_config, overwrite=overwrite)
        if run.finished is not None and not overwrite:
            console.print(f"the run in {run.path} is finished:")
            console.print(result_table(run.finished))
            return
        # Where all ranks start at once, one may look before another has cleared.
        checkpoint = None if overwrite else run.newest_checkpoint
        self.prepare_data(config, begun=checkpoint is not None and not self.datamodule.ignore_plan)
        plan = self.datamodule.plan
        self.model.check_plan(plan)
        self.model.check_weights(plan, continues=checkpoint is not None)
        trainer: Any = self.trainer
        self.model.check_trainer(trainer, continues=checkpoint is not None, steps=plan.steps)
        if checkpoint is None or not self.datamodule.ignore_plan:
            _check_validation(trainer, plan.steps)
        for callback in trainer.callbacks:
            if isinstance(callback, Checked):
                callback.check(self.model, plan)
            if isinstance(callback, ReadsModels):
                self._check_unseen(callback.earlier_models, continues=checkpoint is not None)
        if overwrite and self.trainer.is_global_zero:
            # Not before the new run is known to be possible.
            run.replace(self.plain_config)
        run.start(self.plain_config)
        if self.trainer.is_global_zero:
            console.print(plan_table(plan))
            if not self.datamodule.suites:
                console.print("the stores hold no validation documents: no validation loss is measured")
            if checkpoint is not None:
                console.print(f"continuing from {checkpoint}")
        record = self._callback(ScalingLaw)
        record.config = self.plain_config
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        for logger in trainer.loggers:
            # Lightning tells them the model's settings; runs differ in their data, too.
            logger.log_hyperparams({name: self.plain_config[name] for name in ("data", "seed_everything")})
        if config.trainer.max_time is not None:
            # Lightning's own timer would take up the time of earlier starts, and a run at its limit could never be
            # continued. One that is listed is the user's, and means what Lightning says.
            listed = config.trainer.callbacks or []
            for callback in trainer.callbacks:
                if isinstance(callback, Timer) and callback not in listed:
                    callback.load_state_dict = _forget  # type: ignore[method-assign]
        if checkpoint is not None:
            trainer.callbacks.append(Adoption(run, self.plain_config))
        self._callback(Checkpoint).continues = checkpoint
        STOP.at_once = False  # from here on there is something to save
        self.trainer.fit(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)
        done, samples = self.trainer.global_step, plan.steps * plan.global_batch
        if samples - self.datamodule.consumed_samples >= plan.global_batch:
            record.write(self.trainer, self.model)
            console.print(f"stopped after step {done:,} of {plan.steps:,}: the same command continues {run.path}")
            return
        losses = self._measure("validate")
        finished = record.finish(self.trainer, self.model, losses)
        if self.trainer.is_global_zero:
            loss_curve(finished, run.path / LOSS_CURVE)
            console.print(result_table(finished))
            console.print(f"checkpoint, configuration, record and loss curve are in {run.path}")

    def _check_unseen(self, models: Sequence[str], continues: bool) -> None:
        """Refuse models that were trained on what this run holds out: what they teach, or add, would be measured."""
        held_out = self.datamodule.mixture.stores.validation
        for name in models if held_out is not None else ():
            try:
                check_unseen("iid", held_out, Path(name), training_documents(Path(name)))
            except UserError as error:
                if not continues:
                    raise
                console.print(f"{error}; the run goes on as it was begun")

    def validate(self, **_: Any) -> None:
        self._measure_run()

    def test(self, **_: Any) -> None:
        self._measure_run()

    def _measure_run(self) -> None:
        config = self.config_init[self.verb]
        checkpoint = RunFolder(Path(config.run)).newest_checkpoint
        if checkpoint is None:
            raise UserError(f"{config.run} holds no checkpoint: train it with `megalit fit` and the same --config")
        RunFolder(Path(config.run)).check_measured(self.plain_config)
        self.prepare_data(config, begun=not self.datamodule.ignore_plan)
        for suite, loss in self._measure(self.verb, checkpoint).items():
            print(f"{suite}\t{loss:.6f}")

    def _measure(self, verb: str, checkpoint: Path | None = None) -> dict[str, float]:
        """Loss of each validation suite, whole, in nats per token."""
        if not self.datamodule.suites:
            return {}
        trainer: Any = self.trainer
        for limit in ("limit_val_batches", "limit_test_batches"):
            # They make validations during training cheaper. Of a part, a loss could be compared with no other.
            if getattr(trainer, limit):
                setattr(trainer, limit, 1.0)
        function = getattr(self.trainer, verb)
        results = function(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, verbose=False)
        return {name.removeprefix("validation/"): value for result in results for name, value in result.items()}

    def _callback(self, kind: type[_Kind]) -> _Kind:
        trainer: Any = self.trainer
        return next(callback for callback in trainer.callbacks if isinstance(callback, kind))
