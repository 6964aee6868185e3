"""A run's folder: what is in it, and whether a command may continue it."""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning
import yaml

from megalit.callbacks import Checkpoint
from megalit.errors import UserError
from megalit.evaluation.results import FILE as EVALUATION
from megalit.evaluation.results import FILES_OF_CHECKPOINTS
from megalit.files import lock, visible, write_atomic
from megalit.scaling.records import FILE as RECORD
from megalit.scaling.records import RunRecord, read_record

CONFIG = "config.yaml"
LOSS_CURVE = "loss.png"
METRICS = "metrics"

# Settings that change neither the order of the data nor the result of a step, so that a run may be
# continued with other ones.
_FREE = (
    "run",
    "overwrite",
    "ckpt_path",
    "weights_only",
    "config",
    "verbose",
    "checkpoint",
    "progress",
    "preemption",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.logger",
    "trainer.default_root_dir",
    "trainer.val_check_interval",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.max_time",
    "data.init_args.num_workers",
    "data.init_args.ignore_plan",
    "model.micro_batch",
)

# Settings that the loss of a trained model on its validation suites depends on.
_MEASURED = (
    ("model", "shape"),
    ("model", "vocabulary_size"),
    ("model", "bos"),
    ("model", "cross_document_attention"),
    ("data", "context_length"),
    ("data", "separate_validation"),
)


class RunFolder:
    """The folder named by ``run`` in the configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def alone(self, patience: float = 0) -> AbstractContextManager[None]:
        """Keep other processes out while this one trains, after waiting so many seconds for one that does.

        Raises:
            UserError: another process trains in this folder.
        """
        busy = f"another process trains in {self.path}: wait for it, or choose another --run"
        return lock(self.path, busy=busy, patience=patience)

    def check(self, config: dict[str, Any], instead: str = "--overwrite true") -> None:
        """Refuse a folder that holds another run.

        Args:
            config: of the run that is asked for.
            instead: what makes room for it, besides another folder.

        Raises:
            UserError: the folder holds a run with another configuration, or something else.
        """
        for stranger in self.path.glob("hpc_ckpt_*.ckpt"):
            # Under SLURM, Lightning would load it unasked.
            raise UserError(f"{stranger} was saved by Lightning and is no checkpoint of megalit: move it away")
        saved = self.path / CONFIG
        # In this order: another rank may be writing the configuration, and what follows it.
        strangers = visible(self.path)
        if not saved.exists():
            if strangers:
                raise UserError(f"{self.path} is not empty and holds no run ({strangers[0]}): choose another --run")
        else:
            self._compare(saved, config, instead)

    def _compare(self, saved: Path, config: dict[str, Any], instead: str) -> None:
        held = yaml.safe_load(saved.read_text())
        if config["data"]["init_args"]["ignore_plan"]:
            # The user asks to go on with other data.
            held = {**held, "data": config["data"], "prepare": config["prepare"]}
        difference = first_difference(held, config, "")
        if difference:
            raise UserError(f"{self.path} holds a run with another {difference}: choose another --run, or {instead}")

    def check_measured(self, config: dict[str, Any]) -> None:
        """Refuse to measure this folder's run in another way than it was validated in training.

        Where its data lies, on what it runs and how it was trained may differ: they change no loss.

        Raises:
            UserError: a setting that the loss depends on differs.
        """
        if not (self.path / CONFIG).exists():
            return
        held = yaml.safe_load((self.path / CONFIG).read_text())
        for section, name in _MEASURED:
            known, asked = (values[section].get("init_args", values[section]) for values in (held, config))
            if section == "data" and asked["ignore_plan"]:
                continue
            if name in known and known[name] != asked[name]:
                raise UserError(
                    f"{self.path} holds a run with another {section}.{name} ({known[name]!r}, not {asked[name]!r}): "
                    f"measure it with --config {self.path / CONFIG}"
                )

    def start(self, config: dict[str, Any]) -> None:
        """Write the configuration that this folder is for, if there is none."""
        if not (self.path / CONFIG).exists():
            self.write(config)

    def write(self, config: dict[str, Any]) -> None:
        """Write the configuration that this folder is for from now on."""
        # To ignore a plan is said each time.
        data = {**config["data"], "init_args": {**config["data"]["init_args"], "ignore_plan": False}}
        text = yaml.safe_dump({**config, "data": data}, sort_keys=False)
        write_atomic(self.path / CONFIG, lambda file: file.write(text.encode()))

    @property
    def finished(self) -> RunRecord | None:
        """The record of the run, if it is over."""
        if not (self.path / RECORD).exists():
            return None
        record = read_record(self.path)
        return record if record.status == "finished" else None

    @property
    def newest_checkpoint(self) -> Path | None:
        return Checkpoint.newest(self.path)

    def clear(self) -> None:
        """Remove what a run wrote, and nothing else."""
        for name in (RECORD, LOSS_CURVE, EVALUATION, CONFIG):
            (self.path / name).unlink(missing_ok=True)
        for file in self.path.glob(FILES_OF_CHECKPOINTS):
            file.unlink()
        for folder in (Checkpoint.folder(self.path), self.path / METRICS):
            if folder.exists():
                shutil.rmtree(folder)


class Adoption(lightning.Callback):
    """Makes the configuration of a run that goes on with other data its folder's own, with the first checkpoint that
    has learned from them: until then it is the earlier one's that fits what is there."""

    def __init__(self, run: RunFolder, config: dict[str, Any]) -> None:
        self._run, self._config = run, config

    def on_save_checkpoint(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            self._run.write(self._config)


def first_difference(saved: Any, asked: Any, key: str) -> str | None:
    """The first setting in which two configurations are of different runs, with both values."""
    if key in _FREE:
        return None
    if isinstance(saved, dict) and isinstance(asked, dict):
        for name in {**saved, **asked}:
            found = first_difference(saved.get(name), asked.get(name), f"{key}.{name}" if key else name)
            if found:
                return found
        return None
    return None if saved == asked else f"{key.replace('init_args.', '')} ({saved!r}, not {asked!r})"
