"""A run's folder: what is in it, and whether a command may continue it."""

from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import lightning
import yaml

from megalit.callbacks import Checkpoint
from megalit.differences import differences
from megalit.errors import UserError
from megalit.evaluation.checkpoints import CHECKPOINTS, newest_checkpoint
from megalit.evaluation.ensembles import TOKEN_LOSSES
from megalit.evaluation.results import FILE as EVALUATION
from megalit.evaluation.results import file_of_checkpoint
from megalit.files import lock, visible, write_atomic
from megalit.scaling.records import FILE as RECORD
from megalit.scaling.records import NO_RESULT, RunRecord, precision_name, read_record

CONFIG = "config.yaml"
LOSS_CURVE = "loss.png"
METRICS = "metrics"

# Says that a run was begun by a command with --overwrite, which from then on goes on with it.
_MARK = ".overwritten"

# What a saved configuration has. Configurations of other programs, too, are often called config.yaml.
_SECTIONS = {"model", "data", "trainer", "prepare", "run"}

# What a run writes besides its configuration and checkpoints, and a folder of its metrics; the losses of its tokens are
# written by ensembles that it is a member of.
_RESULTS = (RECORD, LOSS_CURVE, EVALUATION, file_of_checkpoint(Path(CHECKPOINTS)), f"{TOKEN_LOSSES}/*.npy")
_LOGGED = ("metrics.csv", "hparams.yaml", "events.out.tfevents.*")

# Settings that change neither the order of the data nor the result of a step, so that a run may be continued with other
# ones.
_FREE = NO_RESULT | {
    "run",
    "overwrite",
    "weights_only",
    "config",
    "verbose",
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
    "data.init_args.sets",  # the plan says what they come to
}

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

    def check(self, config: dict[str, Any], instead: str = "--overwrite true", overwrite: bool = False) -> None:
        """Refuse a folder that holds another run, or no run but something else.

        Args:
            config: of the run that is asked for.
            instead: what makes room for it, besides another folder.
            overwrite: whether another run may be there, because it is to be replaced.

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
            return
        held = self._held()
        if not overwrite:
            self._compare(held, config, instead)

    def _held(self) -> dict[str, Any]:
        """The configuration that this folder is for.

        Raises:
            UserError: it is not of a run.
        """
        saved = self.path / CONFIG
        try:
            held = yaml.safe_load(saved.read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            held = None
        if not isinstance(held, dict) or not held.keys() >= _SECTIONS:
            raise UserError(f"{saved} is not the configuration of a run that `megalit fit` saved: choose another --run")
        return held

    def difference(self, held: dict[str, Any], config: dict[str, Any]) -> str | None:
        """The first setting that makes the configuration that is held another run's."""
        if self.newest_checkpoint is not None:
            # It knows what was read, and refuses other data wherever that lies.
            held, config = _without_places(held), _without_places(config)
        return first_difference(held, config)

    def _compare(self, held: dict[str, Any], config: dict[str, Any], instead: str) -> None:
        if config["data"]["init_args"]["ignore_plan"]:
            # The user asks to go on with other data.
            held = {**held, "data": config["data"], "prepare": config["prepare"]}
        difference = self.difference(held, config)
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
        held = self._held()
        for section, name in _MEASURED:
            known, asked = (values[section].get("init_args", values[section]) for values in (held, config))
            if section == "data" and asked["ignore_plan"]:
                continue
            difference = first_difference(known.get(name, asked[name]), asked[name], f"{section}.{name}")
            if difference:
                raise UserError(
                    f"{self.path} holds a run with another {difference}: measure it with --config {self.path / CONFIG}"
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
        return newest_checkpoint(self.path)

    def clear(self) -> None:
        """Remove what a run wrote, and nothing else; its configuration stays, by which the folder is known."""
        # First, so that nobody takes the rest, in whatever state it is left, for a run to go on with.
        (self.path / _MARK).unlink(missing_ok=True)
        for result in _RESULTS:
            folder, name = (self.path / result).parent, Path(result).name
            for pattern in (name, f".{name}.*.tmp"):  # and what was being written when a run was killed
                for file in folder.glob(pattern):
                    file.unlink()
        _remove_if_empty(self.path / TOKEN_LOSSES)
        for folder in (self.path / METRICS).glob("version_*"):
            for pattern in _LOGGED:
                for file in folder.glob(pattern):
                    file.unlink()
            _remove_if_empty(folder)
        _remove_if_empty(self.path / METRICS)
        Checkpoint.clear(self.path)

    def replace(self, config: dict[str, Any]) -> None:
        """Begin a run with this configuration in the place of the one that is there."""
        self.clear()
        self.write(config)
        write_atomic(self.path / _MARK, lambda file: file.write(b"the same command continues\n"))

    def is_replaced(self, config: dict[str, Any]) -> bool:
        """Whether a command that overwrites has begun a run with this configuration here, and not finished it.

        Then it goes on like any other: started again by a loop or a scheduler, it would else lose all that it has done.
        """
        if not self.is_of(config) or self.finished is not None:
            return False
        # The mark comes last, as it is what goes first where another rank is clearing.
        return (self.path / _MARK).exists()

    def is_of(self, config: dict[str, Any]) -> bool:
        """Whether the run that is here has this configuration."""
        return (self.path / CONFIG).exists() and first_difference(self._held(), config) is None


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without where its data lies."""
    data, prepare = config["data"], config["prepare"]
    settings = {name: value for name, value in data["init_args"].items() if name not in ("stores", "embeddings")}
    if settings.get("streams"):  # of a mixture
        settings["streams"] = [{**stream, "stores": None} for stream in settings["streams"]]
    prepare = {name: value for name, value in prepare.items() if name not in ("folder", "generations")}
    return {**config, "data": {**data, "init_args": settings}, "prepare": prepare}


class Adoption(lightning.Callback):
    """Makes the configuration that a run goes on with its folder's own, such as where the data lies by now, with the
    first checkpoint that has learned from it: until then it is the earlier one's that fits what is there."""

    def __init__(self, run: RunFolder, config: dict[str, Any]) -> None:
        self._run, self._config = run, config

    def on_save_checkpoint(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            self._run.write(self._config)


def first_difference(saved: Any, asked: Any, at: str = "") -> str | None:
    """The first setting in which two configurations, or their values at a key, are of different runs, with both."""
    for key, then, now in differences(saved, asked, at, _FREE):
        if key == "trainer.precision":  # earlier versions saved it as it was said
            then, now = precision_name(then), precision_name(now)
            if then == now:
                continue
        return f"{key.replace('init_args.', '')} ({then!r}, not {now!r})"
    return None
