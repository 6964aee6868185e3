"""The record of a run: one JSON file that says what was trained, on what, and what came out."""

import math
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from megalit.errors import UserError
from megalit.files import read_json, write_json

FORMAT = 1
FILE = "record.json"
# Beside a copy of the package: the commit that it was made from.
COMMIT = "COMMIT"

# Settings of a configuration that change no result: how a run is stopped, kept, shown and computed.
NO_RESULT = frozenset(
    {
        "checkpoint",
        "ckpt_path",
        "preemption",
        "progress",
        "data.init_args.ignore_plan",
        "data.init_args.incomplete",  # the plan says what is read
        "data.init_args.num_workers",
        "model.attention",
        "model.compile",
        "model.gradient_checkpointing",
        "model.micro_batch",
        "model.nonfinite",  # a step whose result is not finite has none: the run stops before it, or skips it
    }
)


# Spellings of one precision that Lightning takes, besides the one that it uses itself.
_PRECISIONS = {"None": "32-true", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def precision_name(name: object) -> str:
    """The name that Lightning itself uses for a ``trainer.precision``, which can be said in several ways."""
    return _PRECISIONS.get(str(name), str(name))


@dataclass
class CurvePoint:
    """Losses after ``step`` optimizer steps and ``tokens`` tokens, in nats per token."""

    step: int
    tokens: int
    losses: dict[str, float]


@dataclass
class RunRecord:
    """What one run leaves behind.

    Attributes:
        status: ``running`` or ``finished``.
        config: the resolved configuration.
        parameters: total, and without embeddings and output head.
        plan: the data plan: streams, windows, steps.
        tokens_seen: by stream, so far.
        epochs: of each stream, so far.
        unique_real_tokens: tokens of the real training documents.
        synthetic_share: true share of synthetic tokens in the run.
        flops: floating-point operations of training so far, the model's own: without the passes of teachers.
        losses: the last value of each validation suite: nats per token and bits per byte.
        measured_whole: whether ``losses`` are of whole suites whatever ``trainer.limit_val_batches`` says, as those of
            a finished run are; records of before it was so lack it.
        held_out: content hash of the documents that ``losses`` of the suite ``iid`` are of; records of before lack it.
        ensemble: by suite, the loss of the average of this model with K - 1 members, for K = 1 … n, where it has an
            :class:`~megalit.callbacks.Ensemble`.
        training_curve, validation_curve: losses over the run.
        wall_seconds: time spent in training and validation, all starts together.
        device_seconds: the same, each start's times its devices; None, where an earlier version trained a part of it.
        environment: hardware, versions, git commit, of the last start.
        seeds: model and data seed.
    """

    status: Literal["running", "finished"]
    config: dict[str, Any]
    parameters: dict[str, int]
    plan: dict[str, Any]
    tokens_seen: dict[str, int]
    epochs: dict[str, float]
    unique_real_tokens: int
    synthetic_share: float
    flops: float
    losses: dict[str, dict[str, float]]
    wall_seconds: float
    environment: dict[str, Any]
    seeds: dict[str, int]
    device_seconds: float | None = None
    measured_whole: bool = False
    held_out: str | None = None
    ensemble: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    training_curve: list[CurvePoint] = field(default_factory=list)
    validation_curve: list[CurvePoint] = field(default_factory=list)
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write the record into a run folder, atomically. A loss that is not finite becomes null."""
        write_json(folder / FILE, _finite(asdict(self)))


def read_record(folder: Path) -> RunRecord:
    """Read the record of a run folder.

    Raises:
        UserError: no record there, not readable, or written by a newer megalit.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{folder} holds no record of a run: train one with `megalit fit`")
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is no record of a run: move it away")
    if value.get("format", 0) > FORMAT:
        raise UserError(f"{path} was written by a newer megalit: upgrade megalit")
    try:
        for name in ("training_curve", "validation_curve"):
            value[name] = [CurvePoint(**point) for point in value[name]]
        return RunRecord(**value)
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} is no record of a run ({error}): move it away") from error


def refuse_unfinished(name: str, folder: Path) -> None:
    """Refuse a run in the middle of its schedule where a trained model is meant; a checkpoint of it is what it is.

    Raises:
        UserError: the folder's record says that the run is not finished.
    """
    if (folder / FILE).exists() and read_record(folder).status != "finished":
        raise UserError(
            f"{name} is not finished: finish it with the command that began it, or name the checkpoint that is meant"
        )


def bits_per_byte(nats_per_token: float, tokens: int, text_bytes: int) -> float:
    """A loss that can be compared between tokenizers: all nats, in bits, over the bytes of text."""
    return nats_per_token * tokens / (math.log(2) * text_bytes)


def environment(devices: str) -> dict[str, Any]:
    """Hardware, versions and git commit of this process."""
    packages = ("megalit", "torch", "lightning", "litdata", "transformers", "tokenizers")
    return {
        "devices": devices,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "git_commit": git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit that this code is from; a copy of it says so in a file beside the package."""
    copied = Path(__file__).parents[2] / COMMIT
    if copied.exists():
        return copied.read_text().strip() or None
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return value
