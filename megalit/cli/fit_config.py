"""The configuration of a ``megalit fit``, for itself and for verbs that train nothing themselves."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from megalit.callbacks import Checkpoint, Preemption, Progress, ScalingLaw, Throughput
from megalit.cli.parsing import in_one_line
from megalit.cli.prepare import PrepareSettings, is_prepared, prepare
from megalit.errors import UserError
from megalit.modeling.language_model import LanguageModel
from megalit.scaling.records import precision_name
from megalit.streams import StreamDataModule
from megalit.streams.remote import is_remote
from megalit.streams.store import exists

# One Lightning epoch is the whole run, and one batch one optimizer step; the length comes from the data
# plan. Settings that would contradict it are refused.
_OURS = {
    "max_epochs": 1,
    "min_epochs": None,
    "max_steps": -1,
    "min_steps": None,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "use_distributed_sampler": False,
    "reload_dataloaders_every_n_epochs": 0,
    "limit_train_batches": None,
    "overfit_batches": 0.0,
    "fast_dev_run": False,
}
_REMEDY = {
    "accumulate_grad_batches": "model.micro_batch",
    "gradient_clip_val": "model.gradient_clip",
}

_OVERWRITE = "Replace the run that is in the folder; the same command continues the new one until it is finished."

# How configurations are parsed, for every verb that takes those of ``fit``.
PARSING: dict[str, Any] = {
    "subclass_mode_data": True,
    "save_config_callback": None,
    "auto_configure_optimizers": False,
    "load_from_checkpoint_support": False,
    "seed_everything_default": 0,
    "trainer_defaults": {
        **_OURS,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "val_check_interval": 0.1,
        "log_every_n_steps": 10,
    },
    "parser_kwargs": {"prog": "megalit", "exit_on_error": False},
}


def quiet() -> None:
    """Silence what a user of megalit can do nothing about."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    for pattern in (
        ".*LightningCLI's args parameter.*",  # the verbs call it so on purpose
        ".*does not have many workers.*",  # windows are slices of mapped files
        ".*isinstance.*LeafSpec.*",
        ".*`srun` command is available.*",  # `megalit slurm` uses it, and a short run on a login node does not
        ".*GPU available but not used.*",
        ".*Experiment logs directory .* exists.*",
        ".*WeightAveraging callback with a model that overrides.*",  # sharded models are refused
    ):
        warnings.filterwarnings("ignore", message=pattern)


class FitParser(LightningCLI):
    """LightningCLI with a run folder and data preparation."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default="runs/default", help="Folder of this run.")
        parser.add_argument("--overwrite", type=bool, default=False, help=_OVERWRITE)
        parser.add_class_arguments(PrepareSettings, "prepare")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(Preemption, "preemption")
        parser.add_lightning_class_args(ScalingLaw, "record")
        parser.add_lightning_class_args(Progress, "progress")
        parser.add_lightning_class_args(Throughput, "throughput")

    def before_instantiate_classes(self) -> None:
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        for key, value in _OURS.items():
            if config.trainer.get(key) != value:
                remedy = _REMEDY.get(key, "data.real_epochs or data.total_tokens")
                raise UserError(f"trainer.{key} is set, and the data plan decides it: use {remedy} instead")
        self._set_defaults(config)
        self.plain_config = self._plain(config)

    def _set_defaults(self, config: Any) -> None:
        """Fill in what follows from other settings, so that the saved configuration says it."""
        data = config.data.init_args
        config.trainer.default_root_dir = config.run
        if data.get("seed") is None:
            data.seed = int(config.seed_everything)
        if config.model.get("seed") is None:
            config.model.seed = int(config.seed_everything)
        if data.get("stores") is None and config.prepare.folder is not None:
            data.stores = str(Path(config.prepare.folder) / "stores")
        if not config.trainer.plugins:  # one of them may be the precision
            config.trainer.precision = precision_name(config.trainer.precision)
        if config.trainer.logger in (None, True):
            config.trainer.logger = True

    def _plain(self, config: Any) -> dict[str, Any]:
        text = self._parser(self.subcommand).dump(config, skip_none=False, skip_validation=True)
        plain: dict[str, Any] = yaml.safe_load(text)
        for key in ("config", "overwrite"):
            plain.pop(key, None)
        return plain

    def prepare_data(self, config: Any, begun: bool = False) -> None:
        """Build the data that is missing.

        A run that has begun takes its stores as they are, and its checkpoint tells whether they are the same: what
        they were made of may have grown since, or be gone.
        """
        if config.prepare.folder is None:
            return
        settings = PrepareSettings(**vars(config.prepare))
        if not begun or not self._has_stores(settings):
            prepare(settings)

    def _has_stores(self, settings: PrepareSettings) -> bool:
        stores = self.datamodule.stores
        if is_remote(stores) or Path(stores) != settings.stores:
            return is_remote(stores) or exists(Path(stores) / "real")  # nothing that is prepared would be read
        return is_prepared(settings)


class WithoutTrainer(FitParser):
    """Parses what ``fit`` parses, and makes model and data but no trainer."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None


class ParsedFit(FitParser):
    """Parses what ``fit`` parses, and makes nothing of it."""

    def instantiate_classes(self) -> None:
        pass


CLI = TypeVar("CLI", bound=FitParser)


def parse_fit(kind: type[CLI], arguments: Sequence[str]) -> CLI:
    """Parse what ``fit`` parses, and run nothing.

    Raises:
        UserError: a key that is not known, or a value that cannot be used.
    """
    quiet()
    with in_one_line():
        return kind(LanguageModel, StreamDataModule, run=False, args=list(arguments), **PARSING)


def fit_config(arguments: Sequence[str]) -> dict[str, Any]:
    """What ``megalit fit`` would save as the run's configuration (raises as :func:`parse_fit`)."""
    return parse_fit(ParsedFit, arguments).plain_config
