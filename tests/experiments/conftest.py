"""The experiment's modules, and records of runs that never ran."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).parents[2] / "experiments" / "translations"


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The experiment's modules, which lie in no package."""
    monkeypatch.syspath_prepend(str(HERE))
    for name in ("run", "grid", "spec", "table", "results", "report", "siblings", "estimates", "figure", "training"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import estimates
    import grid
    import report
    import results
    import run
    import siblings
    import table
    import training

    modules = (estimates, grid, report, results, run, siblings, table, training)
    return SimpleNamespace(**{module.__name__: module for module in modules})


@pytest.fixture
def known(experiment: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Records without files, of runs that reach the loss of :func:`loss`."""
    from megalit.scaling.records import RunRecord

    class Known(experiment.results.Results):  # type: ignore[name-defined, misc]
        optima = OPTIMA
        expected = staticmethod(loss)

        def __init__(self) -> None:
            super().__init__(tmp_path / "records", "setup")
            self.measured: list[tuple[str, int]] = []
            self.longs: dict[str, dict[int, float]] = {}

        def add(self, run: Any, folder: Path, precision: str | None = None) -> Any:
            values = dict.fromkeys(RunRecord.__dataclass_fields__)
            self._results[run.name] = experiment.results.Result(
                **{name: values.get(name) for name in experiment.results.Result.__dataclass_fields__}
                | {"name": run.name, "arguments": run.arguments(), "loss": loss(run), "bits_per_byte": 1.0}
                | {"tokens": int(1000 * run.passes), "epochs": {"real": run.epochs}, "real_tokens": real_tokens(run)}
            )
            return self._results[run.name]

        def add_average(self, name: str, members: Any, output: Path) -> None:
            self.measured.append((name, len(members)))

        def add_long(self, run: Any, output: Path) -> None:
            self.longs[run.name] = {512: 1.0 + loss(run), 1024: 0.9 + loss(run)}

        def long(self, run: Any, store: str | None = None) -> dict[int, float]:
            return self.longs.get(run.name, {})

        def averages(self, name: str) -> Any:
            most = max((count for measured, count in self.measured if measured == name), default=0)
            curves = {"probabilities": [3.0, *most * [2.9]][:most], "logits": [3.0, *most * [2.95]][:most]}
            return curves if most else None

    return Known()


OPTIMA = {"real": (16, 3e-3, 1.6), "simple": (4, 1e-2, 0.0), "stitched": (8, 1e-2, 0.8)}


def loss(run: Any) -> float:
    """A convex function of the three axes with another optimum for each stream, and what seed and data are worth."""
    from grid import GRID

    values = (run.epochs, run.learning_rate, run.weight_decay)
    far = sum(
        abs(steps.index(value) - steps.index(best)) if value in steps else 9
        for steps, value, best in zip(GRID.values(), values, OPTIMA.get(run.stream, values), strict=True)
    )
    fewer = math.log2(0.125 / float(run.settings.get("data.real_fraction", "0.125")))
    worth = {"real": 0.5, "samples": 0.4, "simple": 0.2, "stitched": 0.1}[run.stream]
    worth -= 0.05 * (run.settings.get("model.optimizer.name") == "muon")
    return 3 + worth + 0.01 * far + 0.02 * run.seed * (1 if run.stream == "real" else 2) + 0.25 * fewer


def real_tokens(run: Any) -> int:
    return int(1000 * float(run.settings.get("data.real_fraction", "0.125")))


@pytest.fixture
def trained(experiment: SimpleNamespace, known: Any, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The whole table, three runs at a time; the highest learning rate fails for real only."""
    order: list[Any] = []

    class Trainer:
        runs = Path()
        long_store = "books"
        precision = None

        def start(self, run: Any) -> SimpleNamespace:
            assert all(teacher.name in known for teacher in run.teachers), "teachers first"
            order.append(run)
            status = int(run.learning_rate == 3e-2 and run.stream == "real")
            return SimpleNamespace(poll=lambda: status)

        def sample(self, run: Any, known: Any) -> None:
            assert all(teacher.name in known for teacher in run.teachers), "teachers first"

        def has(self, run: Any, known: Any) -> bool:
            return known.of(run) is not None

        def average(self, name: str, members: Any) -> Path:
            return Path()

        def long(self, run: Any) -> Path:
            return Path()

        def explain(self, run: Any) -> None:
            pass

    agenda = experiment.run.Agenda(list(experiment.table.GROUPS), "small")
    with monkeypatch.context() as patch:
        patch.setattr(experiment.run, "write_report", lambda *_: None)
        failed = experiment.run.train_table(agenda, known, Trainer(), 3, float("inf"))
    return SimpleNamespace(order=order, failed=failed)
