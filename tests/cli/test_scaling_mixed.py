"""``megalit scaling fit`` says what its points do not share, and refuses those that are no points of one law."""

from pathlib import Path

import pytest
from made_runs import make_ensemble, make_run
from running import Run
from test_scaling_efficiency import FRACTIONS, change

QUICK = ["--bootstrap", "0"]


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Real documents alone, two seeds of each subset."""
    for fraction in FRACTIONS:
        for seed in (0, 1):
            make_run(tmp_path / "runs" / f"real-{fraction}-{seed}", "real", 0, 8, fraction, seed)
    return tmp_path / "runs"


def said(run: Run, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run("scaling", "fit", "runs", *arguments, *QUICK) == code
    return capsys.readouterr().err.strip()


def test_runs_that_differ_in_their_data_and_seeds_alone_are_points_of_one_law(
    real: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(run, capsys, "--axes", "[U]") == ""


def test_a_mixed_folder_is_said_to_be_one(real: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(real / "untuned", "real", 0, 8, 0.5, weight_decay=0.1)
    line = said(run, capsys, "--axes", "[U]")
    assert line.startswith("the 9 points differ, at equal U, in model.weight_decay: a law of all of them")
    make_run(real / "stitched", "stitched", 4)
    make_run(real / "simple", "simple", 4)
    line = said(run, capsys, "--axes", "[U]")
    assert line.startswith(
        "the 11 points are of 3 streams (9 real only, 1 simple, 1 stitched); they differ, at equal U"
    )
    assert "--where separates them" in line
    assert said(run, capsys, "--axes", "[U]", "--where", "[stream=RealStream, model.weight_decay=0.4]") == ""
    # What the axis is over is no difference; what it is not over is one.
    change(real / "real-1.0-1", parameters={"total": 999})
    kept = ["--where", "[stream=RealStream, model.weight_decay=0.4]"]
    assert "the 8 points have other parameters: " in said(run, capsys, "--axes", "[U]", *kept)


def test_losses_on_other_documents_are_said(real: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    change(real / "real-1.0-1", plan={"settings": {"stores": [{"validation": "other"}]}})
    line = said(run, capsys, "--axes", "[U]")
    assert "the losses of runs/real-1.0-1 were measured with other held-out documents" in line


def test_synthetic_tokens_are_no_repeated_ones(real: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(real / "stitched", "stitched", 4)
    line = said(run, capsys, "--law", "data_constrained", code=2)
    assert "1 of 9 runs have synthetic ones, too (runs/stitched): leave them out with --where" in line
    assert "synthetic" not in said(run, capsys, "--law", "data_constrained", "--where", "[synthetic_share=0]", code=2)


def test_ensembles_of_different_streams_are_no_points_of_one_law(
    real: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, stream in (("five", "real"), ("more", "real"), ("stitched", "stitched")):
        folder = real / f"ensemble-{name}"
        members = [make_run(folder / f"member-{k}", stream, 4 * (stream != "real"), 16, seed=k) for k in range(4)]
        make_ensemble(folder, members, [3 + 0.2 / k for k in range(1, 5)])
    line = said(run, capsys, "--axes", "[K]", code=2)
    assert "runs/ensemble-five/ensemble.json and runs/ensemble-stitched/ensemble.json are ensembles" in line
    assert "of different streams (real only, stitched), and no points of one law" in line
    assert said(run, capsys, "--axes", "[K]", "--where", "[stream=RealStream]") == ""
