"""What one training run of the experiment is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

StreamName = Literal["real", "simple", "stitched", "samples"]
# Stands for the folder of the runs in settings that name another run.
RUNS = "{runs}"
CLASSES = {"real": "RealStream", "simple": "SimpleStream", "stitched": "StitchedStream", "samples": "SampleStream"}
# In a teacher's folder: what it said, and the stores of it.
HARD_LABELS = "hard_labels"


@dataclass(frozen=True)
class Run:
    """One training run: what differs from the base configuration.

    Attributes:
        stream: the real documents alone, or beside a synthetic stream; ``samples`` are the first teacher's own.
        epochs: how often the separate real stream is read.
        generations: of each document, drawn for each document by seed; of samples as many tokens.
        mix: share of windows from the synthetic stream.
        seed: of model and data together.
        change: name of what else is different.
        settings: that difference, as settings of ``megalit fit``.
        teachers: runs that it distils from: by soft labels, or by hard ones where its stream is ``samples``.
    """

    stream: StreamName
    epochs: float
    learning_rate: float
    weight_decay: float
    generations: int = 0
    mix: float = 0.75
    seed: int = 0
    change: str = ""
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)
    teachers: tuple["Run", ...] = ()

    @property
    def recipe(self) -> str:
        """Stream and number of generations, such as ``stitched-4``."""
        return self.stream if self.stream == "real" else f"{self.stream}-{self.generations}"

    @property
    def passes(self) -> float:
        """Tokens trained on, in sizes of the real data."""
        return self.epochs if self.stream == "real" else self.epochs / (1 - self.mix)

    @property
    def name(self) -> str:
        """All that makes the run, as the name of its folder and record."""
        parts = [self.recipe, f"e{self.epochs:g}", f"lr{self.learning_rate:g}", f"wd{self.weight_decay:g}"]
        if self.stream != "real" and self.mix != 0.75:
            parts.append(f"mix{self.mix:g}")
        if self.change:
            parts.append(self.change.replace(", ", "_").replace(" ", "-"))
        if self.seed:
            parts.append(f"seed{self.seed}")
        return "_".join(parts)

    def arguments(self) -> list[str]:
        """What ``megalit fit`` gets besides the base configuration."""
        settings = {
            "data": CLASSES[self.stream],
            "data.real_epochs": f"{self.epochs:g}",
            "model.learning_rate": f"{self.learning_rate:g}",
            "model.weight_decay": f"{self.weight_decay:g}",
            "seed_everything": str(self.seed),
        }
        if self.stream in ("simple", "stitched"):
            settings["data.generations"] = str(self.generations)
            settings["data.draw"] = "drawn"
        if self.stream != "real":
            settings["data.synthetic_fraction"] = f"{self.mix:g}"
        if self.stream == "samples":
            settings["data.stores"] = f"{RUNS}/{self.teachers[0].name}/{HARD_LABELS}/stores"
        elif self.teachers:
            settings["trainer.callbacks+"] = "SelfDistillation"
            settings["trainer.callbacks.teachers"] = json.dumps([f"{RUNS}/{teacher.name}" for teacher in self.teachers])
        return [f"--{key}={value}" for key, value in {**settings, **self.settings}.items()]


def changed(run: Run, name: str, settings: Mapping[str, str]) -> Run:
    """The run with one more change."""
    names = f"{run.change}, {name}" if run.change else name
    return replace(run, change=names, settings={**run.settings, **settings})
