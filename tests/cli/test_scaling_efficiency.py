"""``megalit scaling efficiency`` takes for its baseline what is one, and says what it leaves out."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run
from running import Run

FRACTIONS = (0.125, 0.25, 0.5, 1.0)


def change(folder: Path, **changes: Any) -> None:
    """Other values in a record, one level into what it holds already."""
    value = json.loads((folder / "record.json").read_text())
    for name, new in changes.items():
        value[name] = {**value[name], **new}
    (folder / "record.json").write_text(json.dumps(value))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Real documents alone on a law, L = 3 + 0.5 / sqrt(fraction), and a stream that is worth 4 times the data."""
    for fraction in FRACTIONS:
        make_run(tmp_path / "runs" / f"real-{fraction}", "real", 0, 8, fraction, loss=3 + 0.5 / fraction**0.5)
    make_run(tmp_path / "runs" / "stitched", "stitched", 4, loss=3.25)
    return tmp_path / "runs"


JUDGE = ["scaling", "efficiency", "runs/stitched", "--bootstrap", "0", "--output", "e.json"]


def factor(folder: Path) -> float:
    (found,) = json.loads((folder / "e.json").read_text())["runs"].values()
    return float(found["factor"])


def test_of_a_folder_with_everything_only_the_baseline_counts(
    runs: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judged run itself, another stream, a student of a teacher and other models all reach lower losses."""
    make_run(runs / "simple", "simple", 4, loss=3.1)
    distilled = make_run(runs / "distilled", "real", loss=3.1)
    change(distilled, config={"trainer": {"callbacks": [{"class_path": "megalit.callbacks.SelfDistillation"}]}})
    for number in range(2):
        large = make_run(runs / f"large-{number}", "real", 0, 8, 0.5 + number / 2, loss=3.1)
        change(large, parameters={"total": 9_000_000})
    masked = make_run(runs / "masked", "real", loss=3.1)
    change(masked, config={"model": {"cross_document_attention": False}})
    assert run(*JUDGE, "--baseline", "runs") == 0
    assert factor(tmp_path) == pytest.approx(4.0, rel=1e-3)
    said = " ".join(capsys.readouterr().err.split())
    for words in ("3 not of real documents alone", "2 with other parameters", "1 with other masking"):
        assert words in said
    assert said.count("left out of the baseline") == 1


def test_of_no_baseline_nothing_is_said_to_be_left_out(
    runs: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*JUDGE, "--baseline", *(f"runs/real-{fraction}" for fraction in FRACTIONS)) == 0
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/stitched", "--baseline", "runs/stitched"], "is judged (1 not of real documents alone): name runs of"),
        (["runs/other", "--baseline", "runs"], "is judged (2 not of real documents alone, 4 with other context"),
        (["runs/stitched", "runs/other", "--baseline", "runs"], "those to be judged differ in context length: "),
    ],
)
def test_what_has_no_baseline_ends_in_one_line(
    arguments: list[str], message: str, runs: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    if "runs/other" in arguments:
        change(make_run(runs / "other", "stitched", 4), plan={"context_length": 512})
    assert run("scaling", "efficiency", *arguments) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("megalit: error: ")
    assert message in error


def test_losses_that_were_measured_differently_are_said(
    runs: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*JUDGE, "--baseline", "runs") == 0
    assert "were measured with other" not in capsys.readouterr().err
    change(runs / "real-0.5", config={"trainer": {"limit_val_batches": 0.1}})
    assert run(*JUDGE, "--baseline", "runs") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the losses of runs/real-0.5 were measured with other limit_val_batches than those of " in said
    assert run(*JUDGE, "--baseline", "runs/real-0.5", "--method", "same_loss") == 0
    assert "the losses of runs/real-0.5 were measured with other" in " ".join(capsys.readouterr().err.split())
