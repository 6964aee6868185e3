"""One setting of a study: its runs, which differ only in their seeds, what it is called and what it reached."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from megalit.scaling.ledger import count_generations
from megalit.scaling.records import NO_RESULT, RunRecord, precision_name
from megalit.scaling.report.reading import Run

# Keys of a configuration in which two runs of one setting may differ: seeds, places, and what changes no result.
_FREE = NO_RESULT | {
    "run",
    "seed_everything",
    "prepare",
    "record",
    "data.init_args.stores",
    "data.init_args.seed",
    "model.seed",
}
# Of Lightning's own settings these change a result.
_TRAINER = {"precision", "callbacks"}

REAL_ONLY = "real only"
# What is said of the limit of an ensemble's law where members are not alike.
NOT_ALIKE = "its members are not alike, so this is no loss of an infinite ensemble"
# What everyone has who did not choose one.
_OPTIMIZER = "adamw"

KINDS = {
    "Real": REAL_ONLY,
    "Simple": "simple",
    "Stitched": "stitched",
    "LatentThoughts": "latent thoughts",
    "Samples": "self-distillation",
}


@dataclass(frozen=True)
class Loss:
    """What one setting reached over its seeds (nats per token, bits per byte, accuracy), with mean and sample standard
    deviation."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.deviation is None else f"{self.mean:.4f} ± {self.deviation:.4f}"


@dataclass(frozen=True, order=True)
class Family:
    """What settings must share to be compared in one panel.

    Attributes:
        parameters: of the model, embeddings included.
        real_tokens: unique tokens of the real training documents.
        context_length: tokens in a window.
        tokenizer: its fingerprint.
        optimizer: of the weights, without its rates, which are tuned for each setting.
        masking: whether attention stays inside documents, which changes losses without any data.
        weights: from which training started; empty, where they were drawn. What they were trained on is no real token
            of the run's, so only runs from the same weights are worth more or less data than each other.
    """

    parameters: int
    real_tokens: int
    context_length: int
    tokenizer: str
    optimizer: str
    masking: bool = False
    weights: str = ""

    @property
    def kin(self) -> "Family":
        """What a baseline shares with this family: everything but the amount of real data."""
        return replace(self, real_tokens=0)

    def __str__(self) -> str:
        sizes = f"{short(self.parameters)} parameters, {short(self.real_tokens)} real tokens"
        other = "" if self.optimizer == _OPTIMIZER else f", {self.optimizer}"
        other += ", masked" if self.masking else ""
        other += f", from {self.weights}" if self.weights else ""
        return f"{sizes}, context {self.context_length:,}{other}"


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but their seeds, or the members of an ensemble, which may differ in more."""

    runs: tuple[Run, ...]

    @property
    def record(self) -> RunRecord:
        return self.runs[0].record

    @cached_property
    def family(self) -> Family:
        return family_of(self.record)

    @cached_property
    def stream(self) -> str:
        """What is trained on beside the real stream, as in the paper: ``real only``, ``simple``, ``stitched`` …"""
        # Members of an ensemble may differ.
        return " and ".join(dict.fromkeys(stream_label(run.record) for run in self.runs))

    @cached_property
    def generations(self) -> int | None:
        """Generations of each document: 0 for real documents alone, None where the plan does not count them, or where
        members of an ensemble differ."""
        counts = {count_generations(run.record) for run in self.runs}
        return counts.pop() if len(counts) == 1 else None

    @property
    def name(self) -> str:
        return f"{self.stream}, G = {self.generations}" if self.generations else self.stream

    @property
    def synthetic_tokens(self) -> int:
        """Unique synthetic tokens in the run's streams."""
        return round(sum(s["unique_tokens"] * s["synthetic_fraction"] for s in self.record.plan.get("streams", ())))

    @property
    def tokens(self) -> int:
        return sum(self.record.tokens_seen.values())

    @property
    def real_epochs(self) -> float | None:
        """Epochs of the separate real stream."""
        names = [stream["name"] for stream in _streams(self.record) if stream["kind"] == "Real"]
        return sum(self.record.epochs.get(name, 0.0) for name in names) if names else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.record)

    def loss(self, suite: str) -> Loss | None:
        return self._over_seeds([loss_of(run, suite) for run in self.runs])

    def bits_per_byte(self, suite: str) -> Loss | None:
        return self._over_seeds([bits_of(run, suite) for run in self.runs])

    def accuracy(self, task: str) -> Loss | None:
        return self._over_seeds([run.evaluation.tasks.get(task) for run in self.runs])

    @staticmethod
    def _over_seeds(values: Sequence[float | None]) -> Loss | None:
        known = tuple(value for value in values if value is not None)
        return Loss(known) if known else None


def loss_of(run: Run, suite: str) -> float | None:
    """A run's loss in nats per token: its record's, and for suites that were measured later, its evaluation's.

    What the record has was measured in one way for all runs, which an evaluation's settings may change.
    """
    result = run.evaluation.suites.get(suite)
    known = run.record.losses.get(suite, {}).get("nats_per_token")
    loss = result.loss if known is None and result else known
    return loss if loss is not None and math.isfinite(loss) else None


def bits_of(run: Run, suite: str) -> float | None:
    """The same in bits per byte."""
    result = run.evaluation.suites.get(suite)
    known = run.record.losses.get(suite, {}).get("bits_per_byte")
    bits = result.bits_per_byte if known is None and result else known
    return bits if bits is not None and math.isfinite(bits) else None


def family_of(record: RunRecord) -> Family:
    """What a run shares with those that it can be compared with."""
    flat = flatten(record.config)
    return Family(
        record.parameters.get("total", 0),
        record.unique_real_tokens,
        int(record.plan.get("context_length", 0)),
        str(record.plan.get("settings", {}).get("tokenizer", "")),
        str(flat.get("model.optimizer.name", _OPTIMIZER)),
        flat.get("model.cross_document_attention") is False,
        str(flat.get("model.weights") or ""),
    )


def differing_in(one: Family, other: Family) -> list[str]:
    """In words, what two families do not share."""
    names = [name for name, value in vars(one).items() if vars(other)[name] != value]
    return [name.replace("_", " ") for name in names]


def stream_label(record: RunRecord) -> str:
    """A run's synthetic streams in words."""
    streams = _streams(record)
    synthetic = [stream for stream in streams if stream["kind"] != "Real"]
    # What a teacher has taught is worth more than the documents alone, so it is no baseline.
    distilled = ", distilled" if _is_distilled(record) else ""
    if not synthetic:
        # A plan may list no streams; then the tokens that were seen have names.
        is_real = streams or set(record.tokens_seen) == {"real"}
        return (REAL_ONLY if is_real else " + ".join(record.tokens_seen)) + distilled
    labels = []
    for stream in synthetic:
        label = KINDS.get(stream["kind"], stream["kind"])
        details = []
        if stream.get("real_document", "last") != "last":
            details.append(f"real {stream['real_document']}")
        if stream.get("order", "fixed") != "fixed":
            details.append("order drawn")
        labels.append(f"{label} ({', '.join(details)})" if details else label)
    return " + ".join(dict.fromkeys(labels)) + distilled


def _is_distilled(record: RunRecord) -> bool:
    callbacks = record.config.get("trainer", {}).get("callbacks") or []
    # Lightning takes a single one, too.
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    return any("SelfDistillation" in str(callback.get("class_path")) for callback in callbacks)


def settings_of(record: RunRecord) -> dict[str, Any]:
    """A run's configuration, flat, without what does not change a result but for the noise of seeds."""
    flat = flatten(record.config)
    for trainer in [key for key in flat if key.startswith("trainer.")]:
        if trainer.split(".")[1] not in _TRAINER:
            del flat[trainer]
    flat["trainer.precision"] = precision_name(flat.get("trainer.precision"))
    stores = record.plan.get("settings", {}).get("stores")
    if stores and all(stream["kind"] == "Real" for stream in _streams(record)):
        # Plans of before name what lies beside the documents, too.
        stores = [{name: known[name] for name in ("real", "validation") if name in known} for known in stores]
    return flat | ({"stores": json.dumps(stores)} if stores else {})


def are_alike(members: Sequence[tuple[Path, RunRecord]]) -> bool:
    """Whether members of an ensemble, by the folders of their runs, are runs of one setting, each another one.

    Only then is the limit of their law the loss of an infinite ensemble: snapshots of one run, or members that learn
    from those before them, are drawn each from a distribution of its own.
    """
    is_once_each = len({folder.resolve() for folder, _ in members}) == len(members)
    return is_once_each and len({key_of(record) for _, record in members}) == 1


def key_of(record: RunRecord) -> str:
    """The same for all runs of one setting."""
    return json.dumps(settings_of(record), sort_keys=True, default=str)


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys with dots, without those in which runs of one setting may differ."""
    flat: dict[str, Any] = {}
    for key, child in value.items():
        name = f"{prefix}{key}"
        if name in _FREE:
            continue
        if isinstance(child, dict) and child:
            flat |= flatten(child, f"{name}.")
        elif child is not None:  # as a setting that an earlier version did not have
            flat[name] = child
    return flat


def short(number: float) -> str:
    """A count in three digits: 154M, 1.38M, 899k."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _streams(record: RunRecord) -> Sequence[dict[str, Any]]:
    streams: Sequence[dict[str, Any]] = record.plan.get("settings", {}).get("streams", ())
    return streams
