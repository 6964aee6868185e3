"""Every command of docs/reproducing_megadocs.md is parsed, planned and compared with what page and paper say."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megalit.cli import VERBS
from megalit.cli.commands import parse
from megalit.cli.data import CorpusCommand, TokenizeCommand
from megalit.cli.ensemble import EnsembleCommand, divided
from megalit.cli.evaluate import EvaluateCommand, gather
from megalit.cli.export import ExportCommand
from megalit.cli.fit_config import PARSING, fit_config
from megalit.cli.generate import GenerateCommand
from megalit.cli.plan import PlanCLI, predict
from megalit.cli.prediction import Prediction
from megalit.cli.report import ReportCommand
from megalit.cli.scaling import FitCommand
from megalit.cli.scaling_efficiency import EfficiencyCommand
from megalit.cli.sweep import SweepCommand
from megalit.modeling.language_model import LanguageModel
from megalit.streams import StreamDataModule
from megalit.tuning.space import Space

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reproducing_megadocs.md"
SWEEPS = sorted((ROOT / "configs" / "megadocs" / "sweeps").glob("*.yaml"))
ASSUMED = ["--config", "configs/megadocs/assume.yaml", "--assume.samples", "1754421", "--assume.sample_tokens"]
ASSUMED += ["1754421851"]

FRACTIONS = [0.5, 0.75, 0.9]
# Real epochs, learning rate, weight decay and mix of each run: what the authors' code lists as locally optimal.
SETTINGS: dict[str, tuple[float, float, float, float | None]] = {
    "real-150m": (16, 3e-3, 0.8, None),
    "real-300m": (16, 3e-3, 1.6, None),
    "real-600m": (8, 1e-3, 3.2, None),
    "real-1.5b": (8, 1e-3, 3.2, None),
    "simple-2": (4, 3e-3, 0.8, 0.75),
    "simple-4": (8, 3e-3, 0.8, 0.75),
    "simple-8": (8, 3e-3, 0.8, 0.75),
    "simple-16": (16, 3e-3, 0.4, 0.75),
    "simple-32": (16, 3e-3, 0.4, 0.75),
    "stitched-2": (8, 3e-3, 0.8, 0.75),
    "stitched-4": (8, 3e-3, 0.4, 0.75),
    "stitched-8": (16, 3e-3, 0.4, 0.75),
    "stitched-16": (16, 3e-3, 0.4, 0.75),
    "stitched-32": (32, 1e-3, 0.4, 0.9),
    "latent_thoughts-2": (4, 3e-3, 0.8, 0.75),
    "latent_thoughts-4": (8, 3e-3, 0.8, 0.75),
    "latent_thoughts-8": (8, 3e-3, 0.4, 0.75),
    "latent_thoughts-16": (16, 3e-3, 0.4, 0.75),
    "latent_thoughts-32": (32, 1e-3, 0.4, 0.9),
    "self_distillation": (16, 3e-3, 0.1, 0.75),
}
# Search, seeds and grid of each sweep.
GRIDS: dict[str, tuple[str, list[int] | None, dict[str, list[Any]]]] = {
    "regularized": (
        "convex",
        None,
        {
            "learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
            "weight_decay": [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4],
            "real_epochs": [1, 2, 4, 8, 16, 32, 64],
        },
    ),
    "synthetic": (
        "convex",
        None,
        {
            "learning_rate": [1e-3, 3e-3, 1e-2],
            "weight_decay": [0.1, 0.4, 0.8, 1.6],
            "real_epochs": [1, 2, 4, 8, 16, 32],
            "synthetic_fraction": FRACTIONS,
        },
    ),
    "real_epochs": ("grid", None, {"real_epochs": [1, 2, 4, 8, 16, 32]}),
    "mix": ("grid", None, {"synthetic_fraction": FRACTIONS}),
    "ordering_stitched": ("grid", [0, 1, 2], {"real_document": ["last", "first", "absent"]}),
    "ordering_simple": ("grid", [0, 1, 2], {"real_document": ["among", "absent"]}),
}


def commands(verb: str) -> list[list[str]]:
    """The arguments of each of the page's commands with this verb."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    given = [shlex.split(line) for line in lines]
    return [arguments[2:] for arguments in given if arguments[:2] == ["megalit", verb]]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def planned(arguments: list[str]) -> Prediction:
    """What ``megalit plan`` says with the paper's sizes."""
    thoughts = re.search(r"latent_thoughts-(\d+)", " ".join(arguments))
    sizes = [*ASSUMED, *(["--assume.thoughts", thoughts[1]] if thoughts else [])]
    return predict(PlanCLI(LanguageModel, StreamDataModule, run=False, args=[*arguments, *sizes], **PARSING))


def runs() -> Iterator[tuple[str, int, Prediction]]:
    """Name, members and plan of each run that the page starts."""
    for arguments in commands("fit"):
        plan = planned(arguments)
        yield plan.run.removeprefix("runs/megadocs/"), 1, plan
    for arguments in commands("ensemble"):
        place = arguments.index("--members")
        plan = planned(arguments[:place] + arguments[place + 2 :])
        yield plan.run.removeprefix("runs/megadocs/"), int(arguments[place + 1]), plan


def row(name: str, members: int, plan: Prediction) -> str:
    """The run's line in the page's table, up to its published loss."""
    assert plan.time is not None
    times = f"{members} × " if members > 1 else ""
    epochs = " + ".join(f"{stream.epochs:.1f}" for stream in plan.plan.streams)
    hours = members * plan.time.device_hours
    return (
        f"| {name} | {times}{plan.plan.steps:,} | {epochs} | {times}{plan.plan.tokens / 1e9:.2f}B "
        f"| {members * plan.flops:.2e} | {hours:,.1f} |"
    )


@pytest.fixture(scope="module")
def all_runs() -> list[tuple[str, int, Prediction]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return list(runs())


def test_the_table_of_costs_is_what_plan_says(all_runs: list[tuple[str, int, Prediction]]) -> None:
    page = PAGE.read_text()
    assert len(all_runs) == 34
    assert len({name for name, _, _ in all_runs}) == 34
    for run in all_runs:
        assert row(*run) in page


def test_the_runs_are_the_papers(all_runs: list[tuple[str, int, Prediction]]) -> None:
    """Steps: int(777 · real epochs / (1 − mix)), with the epochs and mixes of the authors' code."""
    plans = {name: plan.plan for name, _, plan in all_runs}
    expected = {
        "real-300m": 12_432,
        "real-1.5b": 6_216,
        "simple-2": 12_432,
        "simple-8": 24_864,
        "simple-16": 49_728,
        "stitched-2": 24_864,
        "stitched-16": 49_728,
        "stitched-32": 248_640,
        "latent_thoughts-32": 248_640,
        "self_distillation": 49_728,
        "ensemble/real": 24_864,
    }
    assert {name: plans[name].steps for name in expected} == expected
    for plan in plans.values():
        assert (plan.context_length, plan.global_batch) == (4096, 64)
        assert plan.settings["epoch_order"] == "paper"
    # Synthetic epochs: mix · total tokens / tokens of the synthetic stream; .9 is 1,844 windows of each 2,048.
    for name, mix, tokens in [
        ("simple-2", 0.75, 398_936_730),
        ("stitched-4", 0.75, 556_032_327),
        ("simple-8", 0.75, 967_660_703),
        ("stitched-16", 0.75, 1_958_289_599),
        ("stitched-32", 1844 / 2048, 3_713_048_352),
        ("latent_thoughts-16", 0.75, 1_240_261_938),
    ]:
        synthetic = plans[name].streams[1]
        assert synthetic.unique_tokens == tokens
        assert synthetic.epochs == pytest.approx(mix * plans[name].tokens / tokens, rel=2e-4)


def test_the_models_are_the_papers(all_runs: list[tuple[str, int, Prediction]]) -> None:
    totals = {name: plan.parameters["total"] for name, _, plan in all_runs}
    assert totals["real-150m"] == 154_147_328
    assert totals["real-300m"] == totals["stitched-16"] == 299_649_792
    assert totals["real-600m"] == 602_457_088
    assert totals["real-1.5b"] == totals["larger/stitched-16-1.5b"] == 1_540_732_416


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_ends_of_every_sweep_can_be_planned(path: Path) -> None:
    sweep: dict[str, Any] = yaml.safe_load(path.read_text())
    steps = []
    for end in (0, -1):
        axes = Space.parse(sweep["space"]).axes
        flags = [flag for axis in axes for flag in (f"--{axis.key}", str(axis.values[end]))]
        steps.append(planned([*sweep["fit"], *flags]).plan.steps)
    # At real epochs that are held, a larger share of synthetic windows makes a run longer, too.
    lengths = {"data.real_epochs", "data.synthetic_fraction"}
    assert (steps[0] < steps[1]) == bool(lengths & set(sweep["space"]))


@pytest.mark.parametrize("base", ["simple-16", "stitched-16"])
def test_the_sweep_over_fractions_is_what_the_page_says(base: str) -> None:
    (fit,) = {
        tuple(command.fit)
        for command in (parse("sweep", SweepCommand, arguments) for arguments in commands("sweep"))
        if command.output == f"sweeps/megadocs/mix-{base}"
    }
    assert fit[-1] == f"configs/megadocs/{base}.yaml"
    plans = [planned([*fit, "--data.synthetic_fraction", str(fraction)]) for fraction in FRACTIONS]
    assert [plan.plan.steps for plan in plans] == [24_864, 49_728, 124_320]
    real, synthetic = zip(*([stream.epochs for stream in plan.plan.streams] for plan in plans), strict=True)
    assert [round(epochs, 1) for epochs in real] == [16.0, 16.0, 15.9]  # 204 of 2,048 windows are no whole tenth
    assert [round(epochs, 1) for epochs in synthetic] == [1.7, 5.0, 15.0]
    assert round(sum(plan.time.device_hours for plan in plans if plan.time), 1) == 52.5
    page = " ".join(PAGE.read_text().split())
    assert "of 24,864, 49,728 and 124,320 steps, in which the synthetic stream is seen 1.7, 5.0 and 15.0 times" in page


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_are_the_papers(name: str) -> None:
    """Real epochs, learning rate, weight decay and mix."""
    config = fit_config(["--config", "configs/megadocs/base.yaml", "--config", f"configs/megadocs/{name}.yaml"])
    data, model = config["data"]["init_args"], config["model"]
    found = (data["real_epochs"], model["learning_rate"], model["weight_decay"], data.get("synthetic_fraction"))
    assert found == SETTINGS[name]
    assert config["run"] == f"runs/megadocs/{name}"


def test_every_run_has_the_papers_settings() -> None:
    files = {path.stem for path in (ROOT / "configs" / "megadocs").glob("*.yaml")}
    assert set(SETTINGS) == files - {"base", "assume"}


def test_the_members_of_real_documents_have_twice_the_epochs_and_half_the_decay() -> None:
    own = [divided(arguments)[1] for arguments in commands("ensemble")]
    found = {config["run"]: config for config in map(fit_config, own)}
    for name in ("real", "real-8"):
        config = found[f"runs/megadocs/ensemble/{name}"]
        assert (config["data"]["init_args"]["real_epochs"], config["model"]["weight_decay"]) == (32, 0.8)
        assert config["model"]["learning_rate"] == 3e-3


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_grids_are_the_papers(path: Path) -> None:
    command = parse("sweep", SweepCommand, ["--config", str(path)])
    found = {axis.key.rpartition(".")[2]: list(axis.values) for axis in Space.parse(command.space).axes}
    assert (command.search, command.seeds, found) == GRIDS[path.stem]


def test_every_command_is_parsed_by_its_verb() -> None:
    """`fit` and the rest of `ensemble` are parsed where they are planned."""
    kinds = {
        "corpus": CorpusCommand,
        "generate": GenerateCommand,
        "tokenize": TokenizeCommand,
        "export": ExportCommand,
        "evaluate": EvaluateCommand,
        "sweep": SweepCommand,
        "ensemble": EnsembleCommand,
    }
    for verb, kind in kinds.items():
        given = commands(verb)
        assert given, verb
        for arguments in given:
            own = divided(arguments)[0] if verb == "ensemble" else arguments
            parse(verb, kind, gather(own, "--run"))
    assert laws("fit")
    assert laws("efficiency")
    assert reports()
    used = set(re.findall(r"^megalit (\w+)", PAGE.read_text(), re.MULTILINE))
    assert used == {*kinds, "fit", "plan", "scaling", "report"} <= set(VERBS)


def laws(action: str) -> list[Any]:
    """The settings of each of the page's `megalit scaling` with this action."""
    kind = {"fit": FitCommand, "efficiency": EfficiencyCommand}[action]
    given = [arguments for name, *arguments in commands("scaling") if name == action]
    return [
        parse(f"scaling {action}", kind, gather(gather(own, "--runs", leading=True), "--baseline")) for own in given
    ]


def reports() -> list[ReportCommand]:
    return [parse("report", ReportCommand, gather(own, "--runs", leading=True)) for own in commands("report")]


def test_laws_and_report_are_of_what_the_page_makes(all_runs: list[tuple[str, int, Prediction]]) -> None:
    swept = [parse("sweep", SweepCommand, arguments).output for arguments in commands("sweep")]
    made = [*(f"runs/megadocs/{name}" for name, _, _ in all_runs), *swept]
    read = [name for law in laws("fit") for name in law.runs]
    read += [name for law in laws("efficiency") for name in [*law.runs, *law.baseline]]
    read += [name for report in reports() for name in report.runs]
    for name in read:
        assert any(folder == name or folder.startswith(f"{name}/") for folder in made), name
    assert all(report.published for report in reports())


def test_laws_over_sizes_are_of_four_models_on_the_same_documents(
    all_runs: list[tuple[str, int, Prediction]],
) -> None:
    plans = {f"runs/megadocs/{name}": plan for name, _, plan in all_runs}
    over_sizes = [law for law in laws("fit") if "N" in law.axes]
    assert [(law.law, law.axes) for law in over_sizes] == [("power", ["N"]), ("joint", ["K", "N"])]
    for law in over_sizes:
        assert len({plans[name].parameters["total"] for name in law.runs}) == len(law.runs) == 4
        assert {len(plans[name].plan.streams) for name in law.runs} == {1}
    # The paper averages logits.
    assert {law.average for law in laws("fit") if "K" in law.axes} == {"logits"}


def test_the_baseline_of_data_efficiency_is_tuned_at_four_amounts() -> None:
    """An eighth to all of a larger corpus, besides the amount that the judged runs have."""
    sweeps = [parse("sweep", SweepCommand, arguments) for arguments in commands("sweep")]
    of_amounts = [sweep for sweep in sweeps if sweep.output.startswith("sweeps/megadocs/amounts/")]
    plans = [planned(sweep.fit).plan for sweep in of_amounts]
    eighths = [plan.unique_real_tokens / plans[-1].unique_real_tokens * 8 for plan in plans]
    assert eighths == pytest.approx([1, 2, 4, 8], rel=1e-3)
    (law,) = laws("efficiency")
    assert law.baseline == ["runs/megadocs/real-300m", "sweeps/megadocs/amounts"]
