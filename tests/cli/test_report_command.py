"""``megalit report`` in this process and as one of its own."""

from pathlib import Path

import pytest
from made_runs import make_run
from running import Run, start


def test_a_report_of_what_fit_left_behind(run: Run, small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not of made records: of a real one."""
    assert run("fit", "--config", small) == 0
    capfd.readouterr()
    assert run("report", "run", "--output", "out/page") == 0
    assert capfd.readouterr().out == "out/page/index.html\n"
    page = Path("out/page/index.html").read_text()
    assert "stitched, G = 3" in page
    assert Path("out/page/training_curves_iid.png").exists()
    # Again, with what is there.
    assert run("report", "--runs+=run", "--output", "out/page") == 0


def test_problems_are_said_on_the_console(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "good")
    (tmp_path / "runs" / "torn [x]").mkdir()
    (tmp_path / "runs" / "torn [x]" / "record.json").write_text("{")
    process = start("report", "runs", folder=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0
    assert out == "report/index.html\n"
    assert "torn [x]/record.json is not readable as JSON" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no runs are named"),
        (["nowhere"], "nowhere does not exist"),
        (["--output", "x", "--colour", "red"], "colour"),
        (["runs", "--output", "runs/good/record.json"], "is a file: choose another --output"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs" / "good")
    assert run("report", *arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith("megalit: error: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_help_names_the_runs(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("report", "--help") == 0
    assert "megalit report runs " in capfd.readouterr().out
