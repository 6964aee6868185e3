"""Small records of finished runs, which are committed: a run with a record is not trained again."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from grid import START, Tuned, settings
from spec import Run
from table import seeded

from megalit.errors import UserError
from megalit.files import fingerprint, read_json, write_json
from megalit.scaling.records import FILE, RunRecord, read_record

# Losses of the same weights, measured twice, differ by less.
SAME_LOSS = 1e-3
# Points of a training curve that a record keeps.
POINTS = 20
# Losses of one seed each that differ by less do not say which setting is better: about a deviation between seeds.
TIE = 0.01


@dataclass(frozen=True)
class Result:
    """What is kept of a run.

    Attributes:
        name, arguments: the run's, as in the table.
        setup: fingerprint of everything else: passages and base configuration.
        loss: of the held-out passages after the last step, nats per token.
        bits_per_byte: the same loss.
        tokens: trained on, of all streams.
        epochs: of each stream.
        synthetic_share: of the tokens trained on.
        real_tokens: unique tokens of the real documents.
        parameters: total, and without embeddings and head.
        seeds: of model and data.
        curve: (tokens, mean training loss since the point before).
        commit: of the program.
        precision: that it was trained in, where that is not the base configuration's.
    """

    name: str
    arguments: list[str]
    setup: str
    loss: float
    bits_per_byte: float
    tokens: int
    epochs: dict[str, float]
    synthetic_share: float
    real_tokens: int
    parameters: dict[str, int]
    seeds: dict[str, int]
    curve: list[tuple[int, float]]
    commit: str | None
    precision: str | None = None


def compact(run: Run, setup: str, record: RunRecord, precision: str | None) -> Result:
    """What is kept of a finished run's record."""
    training = record.training_curve
    step = max(1, len(training) // POINTS)
    curve = [training[at : at + step] for at in range(0, len(training), step)]
    return Result(
        name=run.name,
        arguments=run.arguments(),
        setup=setup,
        loss=round(record.losses["iid"]["nats_per_token"], 5),
        bits_per_byte=round(record.losses["iid"]["bits_per_byte"], 5),
        tokens=sum(record.tokens_seen.values()),
        epochs={name: round(epochs, 3) for name, epochs in record.epochs.items()},
        synthetic_share=round(record.synthetic_share, 4),
        real_tokens=record.unique_real_tokens,
        parameters=record.parameters,
        seeds=record.seeds,
        curve=[(part[-1].tokens, round(sum(p.losses["train"] for p in part) / len(part), 4)) for part in curve],
        commit=record.environment["git_commit"],
        precision=precision,
    )


class Results(Mapping[str, Result]):
    """The records in one folder, by the runs' names; those of another setup are refused.

    Raises:
        UserError: a record was made from other passages or another base configuration.
    """

    def __init__(self, folder: Path, setup: str | None) -> None:
        self.folder = folder
        self.setup = setup
        self._results: dict[str, Result] = {}
        for path in sorted(folder.glob("*.json")):
            result = Result(**read_json(path))
            self.setup = self.setup or result.setup
            if result.setup != self.setup:
                raise UserError(
                    f"{path} was made from other passages or another base configuration: choose another --results"
                )
            self._results[result.name] = result

    def add(self, run: Run, folder: Path, precision: str | None = None) -> Result:
        """Keep what matters of the finished run in a run folder, and its precision where that is this machine's own.

        Raises:
            UserError: it was told to stop before its end.
        """
        assert self.setup is not None
        record = read_record(folder)
        if record.status != "finished":
            raise UserError(f"the run in {folder} was stopped: give the same command again")
        result = compact(run, self.setup, record, precision)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{run.name}.json", asdict(result))
        self._results[run.name] = result
        return result

    def add_average(self, name: str, members: Sequence[Run], output: Path) -> None:
        """Keep what matters of a measured ensemble: the losses of the averages of the first K members."""
        averages = read_json(output)["suites"]["iid"]["averages"]
        record = {"setup": self.setup, "members": [run.name for run in members], "averages": averages}
        path = self._average_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)

    def averages(self, name: str) -> dict[str, list[float]] | None:
        """Losses of the averages of the first K members, by kind of average, where that was measured."""
        path = self._average_file(name)
        record: dict[str, Any] = read_json(path) if path.exists() else {"setup": None}
        if record["setup"] != self.setup or any(member not in self for member in record["members"]):
            return None
        # Where a member was trained again since, these are averages of other weights.
        averages: dict[str, list[float]] = record["averages"]
        first = self[record["members"][0]].loss
        return averages if abs(averages["probabilities"][0] - first) < SAME_LOSS else None

    def add_long(self, run: Run, output: Path) -> None:
        """Keep a run's losses of long documents at each context length."""
        suite = read_json(output)["runs"][0]["suites"]["long"]
        path = self._long_file(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"setup": self.setup, "loss": self.loss(run), "store": suite["conditions"]["store"]}
        write_json(path, {**record, "targets": suite["targets"], "by_context_length": suite["by_context_length"]})

    def long(self, run: Run, store: str | None = None) -> dict[int, float]:
        """A run's losses of long documents by context length, where these weights were measured (on that store)."""
        path = self._long_file(run)
        if not path.exists():
            return {}
        record: dict[str, Any] = read_json(path)
        own = (record["setup"], record["loss"]) == (self.setup, self.loss(run))
        return dict(record["by_context_length"]) if own and store in (None, record["store"]) else {}

    def is_of(self, folder: Path) -> bool:
        """Whether a run folder holds the weights that the record of that name is about."""
        known = self.get(folder.name)
        if known is None or not (folder / FILE).exists():
            return False
        record = read_record(folder)
        return record.status == "finished" and round(record.losses["iid"]["nats_per_token"], 5) == known.loss

    def add_behind_siblings(self, name: str, losses: dict[str, list[float]]) -> None:
        """Keep a run's losses behind 0, 1, … siblings, and strangers."""
        path = self.folder / "siblings" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"setup": self.setup, "loss": self[name].loss, "losses": losses})

    def behind_siblings(self, name: str) -> dict[str, list[float]] | None:
        """A run's losses behind siblings and strangers, where these weights were measured."""
        path = self.folder / "siblings" / f"{name}.json"
        record: dict[str, Any] = read_json(path) if path.exists() else {"setup": None, "loss": None}
        return record["losses"] if (record["setup"], record["loss"]) == (self.setup, self[name].loss) else None

    def _long_file(self, run: Run) -> Path:
        return self.folder / "long" / f"{run.name}.json"

    def _average_file(self, name: str) -> Path:
        return self.folder / "ensembles" / f"{name}.json"

    def loss(self, run: Run) -> float | None:
        result = self.of(run)
        return result.loss if result is not None else None

    def of(self, run: Run) -> Result | None:
        """The run's record, unless that name meant something else when it was made."""
        result = self.get(run.name)
        return result if result is not None and result.arguments == run.arguments() else None

    def __getitem__(self, name: str) -> Result:
        return self._results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)


def tuned(scale: str, results: Results) -> Tuned:
    """The settings at which streams are compared: the best that are known, as long as none is, those of the start.

    Of settings that chance could have put in this order, it is the one that was run with the most seeds. Otherwise
    all that was measured at the tuned settings would be run again for a difference that is none.
    """
    best = {}
    for stream, start in START[scale].items():
        losses = {run: loss for run in settings(start) if (loss := results.loss(run)) is not None}
        if not losses:
            best[stream] = start
            continue
        lowest = min(losses.values())
        near = [run for run, loss in losses.items() if loss <= lowest + TIE]
        best[stream] = max(near, key=lambda run: (seeds_of(results, run), -losses[run]))
    return best


def seeds_of(results: Results, run: Run) -> int:
    """How many seeds of a run have a record."""
    return sum(results.of(other) is not None for other in seeded(run))


def setup_fingerprint(passages: Path, configs: list[Path]) -> str:
    """Fingerprint of the passages and of the base configuration, comments left out."""
    with passages.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    parts: list[Any] = [content, *(yaml.safe_load(path.read_text()) for path in configs)]
    return fingerprint(parts)
