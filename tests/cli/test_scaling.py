"""``megalit scaling`` reads what runs leave behind."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import Run

from megalit.scaling.laws import MUENNIGHOFF, Chinchilla, PowerLaw
from megalit.scaling.records import CurvePoint, RunRecord

LAW = PowerLaw(0.9, 0.3, 2.0)


def write_record(folder: Path, unique: int, loss: float, **changes: Any) -> None:
    record = RunRecord(
        status="finished",
        config={
            "model": {"weight_decay": 0.1},
            "data": {"class_path": "megalit.streams.RealStream", "init_args": {"real_fraction": unique / 1000}},
        },
        parameters={"total": 1000, "non_embedding": 500},
        plan={},
        tokens_seen={"real": 5 * unique},
        epochs={"real": 5.0},
        unique_real_tokens=unique,
        synthetic_share=0.0,
        flops=1e9,
        losses={"iid": {"nats_per_token": loss, "bits_per_byte": loss / 3}, "arxiv": {"nats_per_token": loss + 1}},
        wall_seconds=1.0,
        environment={},
        seeds={"model": 0, "data": 0},
    )
    for name, value in changes.items():
        setattr(record, name, value)
    folder.mkdir(parents=True)
    record.write(folder)


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    """A baseline on nested subsets whose losses lie on a law."""
    for unique in (100, 200, 400, 800, 1600):
        write_record(tmp_path / "real" / str(unique), unique, LAW.predict(float(unique)))
    return tmp_path / "real"


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_records_are_listed_filtered_and_sorted(
    baseline: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "other", 200, 3.0, config={"model": {"weight_decay": 0.4}})
    assert run("scaling", "list", "real", "other") == 0
    said = capsys.readouterr().out
    assert "RealStream" in said
    assert len(said.strip().splitlines()) == 7
    columns = "[U,loss.arxiv,bits_per_byte,model.weight_decay,data.real_fraction]"
    flags = ["--columns", columns, "--sort", "loss", "--format", "csv", "--output", "runs.csv"]
    assert run("scaling", "list", "real", "other", *flags, "--where", "[model.weight_decay=0.1, U<1000]") == 0
    printed = capsys.readouterr().out
    rows = table(printed)
    assert [row["U"] for row in rows] == ["800", "400", "200", "100"]
    assert float(rows[0]["loss.arxiv"]) == pytest.approx(LAW.predict(800.0) + 1)
    assert float(rows[0]["data.real_fraction"]) == 0.8
    assert (tmp_path / "runs.csv").read_text() == printed


def test_torn_and_missing_records_are_named_and_the_others_used(
    baseline: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (baseline / "100" / "record.json").write_text('{"status": "fin')
    (tmp_path / "empty").mkdir()
    assert run("scaling", "list", "real", "empty", "nowhere", "--format", "csv") == 0
    said = capsys.readouterr()
    assert len(table(said.out)) == 4
    flat = " ".join(said.err.split())
    for words in ("100/record.json is not readable as JSON", "empty holds no record", "nowhere does not exist"):
        assert words in flat


def test_a_law_is_fitted_to_runs(baseline: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "real" / "unfinished", 3200, 9.0, status="running")
    write_record(tmp_path / "real" / "diverged", 3200, float("nan"))
    flags = ["--axes", "[U]", "--predict", "[3200]", "--output", "fit.json"]
    assert run("scaling", "fit", "real", *flags) == 0
    said = capsys.readouterr()
    assert "unfinished is not finished" in " ".join(said.err.split())
    assert "diverged has no number for loss" in " ".join(said.err.split())
    assert "5 points" in said.out
    assert "extrapolation: x = 3200 is 2 times beyond the largest point (1600)" in said.out
    (fit,) = json.loads((tmp_path / "fit.json").read_text())
    assert fit["coefficients"] == pytest.approx({"A": 0.9, "B": 0.3, "C": 2.0}, rel=1e-3)
    assert fit["intervals_95"]["C"] == pytest.approx([2.0, 2.0], abs=1e-2)
    assert fit["predictions"][0]["loss"] == pytest.approx(LAW.predict(3200.0), abs=1e-4)


def test_points_beyond_a_bound_test_the_law(baseline: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scaling", "fit", "real", "--axes", "[U]", "--below", "900", "--bootstrap", "0") == 0
    said = capsys.readouterr().out
    assert "4 points" in said
    assert "held out at U = 1600" in said
    assert "0.00%)" in said


def write_csv(path: Path, columns: list[str], rows: list[tuple[float, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def test_one_law_for_each_ratio_of_a_mixture(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(share, D, 0.9 / D**0.3 + 2 + share) for share in (0.0, 0.33, 0.67) for D in (1.0, 2.0, 4.0, 8.0)]
    write_csv(tmp_path / "t.csv", ["share", "D", "loss"], rows)
    flags = ["--csv", "t.csv", "--axes", "[D]", "--by", "share", "--bootstrap", "0", "--output", "f.json"]
    assert run("scaling", "fit", *flags) == 0
    fits = json.loads((tmp_path / "f.json").read_text())
    assert [fit["coefficients"]["C"] for fit in fits] == pytest.approx([2.0, 2.33, 2.67], abs=1e-3)
    assert "at share = 0.33" in capsys.readouterr().out


def test_joint_asymptotes_and_chinchilla_from_tables(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joint = [(K, N, 0.3 / K + 0.05 / N + 3) for K in (1.0, 2.0, 3.0, 4.0) for N in (0.15, 0.3, 0.6, 1.4)]
    write_csv(tmp_path / "joint.csv", ["K", "N", "loss"], joint)
    assert run("scaling", "fit", "--csv", "joint.csv", "--law", "joint", "--bootstrap", "5") == 0
    said = capsys.readouterr().out
    assert "loss over K at N = 0.6" in said
    assert "asymptotes over N" in said
    law = Chinchilla(477.84, 2143.86, 1.8172, 0.34731, 0.36718)
    rows = [(N, D, law.predict(N, D)) for N in (1e8, 5e8, 2e9) for D in (2e9, 1e10, 5e10)]
    write_csv(tmp_path / "c.csv", ["N", "D", "loss"], rows)
    assert run("scaling", "fit", "--csv", "c.csv", "--law", "chinchilla", "--bootstrap", "0", "--output", "c.json") == 0
    assert json.loads((tmp_path / "c.json").read_text())[0]["coefficients"]["E"] == pytest.approx(1.8172, abs=1e-3)


def write_ensemble(folder: Path, N: int, unique: int, members: int = 4, **changes: Any) -> None:
    """Members that are no better alone than any other, and averages on a joint law."""
    for number in range(members):
        loss = 4.0 + number
        write_record(folder / f"member-{number}", unique, loss, parameters={"total": N}, **changes)
    law = [0.3 / K + 50 / N + 9 / unique + 3 for K in range(1, members + 1)]
    averages = {"probabilities": {"iid": law}, "logits": {"iid": [loss + 1 for loss in law]}}
    value = {
        # As `megalit ensemble` writes them: from where it was started.
        "members": [f"{folder.parent.name}/{folder.name}/member-{number}" for number in range(members)],
        "suites": {"iid": {"averages": {kind: curves["iid"] for kind, curves in averages.items()}}},
    }
    (folder / "ensemble.json").write_text(json.dumps(value))


def test_points_over_members_come_from_ensembles(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for N in (150, 300, 600, 1400):
        for unique in (100, 200, 400):
            write_ensemble(tmp_path / "runs" / f"{N}-{unique}", N, unique)
    flags = ["--bootstrap", 0, "--output", "f.json"]
    assert run("scaling", "fit", "runs", "--law", "joint", "--axes", "[K,N,U]", *flags) == 0
    *_, last = json.loads((tmp_path / "f.json").read_text())
    assert last["title"] == "asymptotes over U"
    assert last["coefficients"] == pytest.approx({"A": 9.0, "B": 1.0, "C": 3.0}, rel=0.02)

    (tmp_path / "runs").rename(tmp_path / "moved")  # the members' paths are those of where it was made
    power = ["fit", "moved", "--axes", "[K]", "--by", "U", "--where", "[N=300]", "--average", "logits"]
    assert run("scaling", *power, *flags) == 0
    fits = json.loads((tmp_path / "f.json").read_text())
    assert [fit["coefficients"]["C"] for fit in fits] == pytest.approx([4 + 50 / 300 + 9 / U for U in (100, 200, 400)])
    assert [len(fit["points"]) for fit in fits] == [4, 4, 4]


def test_ensembles_that_give_no_points_are_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ensemble(tmp_path / "runs" / "good", 300, 100)
    write_ensemble(tmp_path / "runs" / "mixed", 300, 100)
    write_record(tmp_path / "runs" / "mixed" / "other", 700, 3.0)
    (tmp_path / "runs" / "mixed" / "other" / "record.json").replace(
        tmp_path / "runs" / "mixed" / "member-1" / "record.json"
    )
    write_ensemble(tmp_path / "runs" / "gone", 300, 100)
    (tmp_path / "runs" / "gone" / "member-3" / "record.json").unlink()
    assert run("scaling", "fit", "runs", "--law", "power", "--axes", "[K]", "--by", "U", "--bootstrap", 0) == 0
    said = capsys.readouterr()
    assert "4 points" in said.out
    flat = " ".join(said.err.split())
    assert "mixed/ensemble.json has members that differ in U" in flat
    assert "gone/ensemble.json names the member runs/gone/member-3, which is not there" in flat


def test_runs_are_judged_by_the_law_of_a_baseline(
    baseline: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "stitched", 200, LAW.predict(360.0))
    assert run("scaling", "efficiency", "stitched", "--baseline", "real", "--output", "e.json") == 0
    assert "worth 1.8 times its real data" in capsys.readouterr().out
    found = json.loads((tmp_path / "e.json").read_text())["runs"]["stitched"]
    assert found["factor"] == pytest.approx(1.8, rel=1e-3)
    assert not found["remarks"]
    write_record(tmp_path / "between", 250, LAW.predict(450.0))
    assert run("scaling", "efficiency", "between", "--baseline", "real", "--output", "e.json") == 0
    assert "divided by its amount of real data, 250: the baseline has no run of it" in capsys.readouterr().out, (
        "no baseline has as much"
    )


def test_the_baselines_own_loss_is_the_reference(baseline: Path, run: Run, tmp_path: Path) -> None:
    """D_eff of the run over D_eff of the baseline's loss, wherever the run's own data lies."""
    write_record(tmp_path / "stitched", 200, LAW.predict(600.0))
    flags = ["--baseline", "[real]", "--reference_loss", LAW.predict(300.0), "--output", "e.json"]
    assert run("scaling", "efficiency", "stitched", *flags) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["runs"]["stitched"]["factor"] == pytest.approx(2.0, rel=1e-3)


def test_the_law_of_a_baseline_is_that_of_its_best_settings_with_all_their_seeds(
    baseline: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the report has it: trials of a sweep lie beside the tuned runs, and the baseline's own loss is off its law."""
    config = json.loads((baseline / "400" / "record.json").read_text())["config"]
    for seed in (1, 2):
        write_record(baseline / f"400-{seed}", 400, LAW.predict(400.0), config={**config, "seed_everything": seed})
    for decay, loss in ((0.0, 9.0), (0.8, 4.0)):
        write_record(baseline / f"wd{decay}", 400, loss, config={**config, "model": {"weight_decay": decay}})
    write_record(tmp_path / "stitched", 200, LAW.predict(360.0))
    flags = ["--baseline", "real", "--output", "e.json"]
    assert run("scaling", "efficiency", "stitched", *flags) == 0
    said = capsys.readouterr()
    assert "7 points" in said.out
    assert "left out: 2 runs of the baseline" in said.err
    found = json.loads((tmp_path / "e.json").read_text())["runs"]["stitched"]
    assert found["factor"] == pytest.approx(1.8, rel=1e-3)
    for number, loss in enumerate((LAW.predict(240.0), LAW.predict(200.0))):
        record = baseline / "200" / "record.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"losses": {"iid": {"nats_per_token": loss}}}))
        assert run("scaling", "efficiency", "stitched", *flags) == 0
        factor = json.loads((tmp_path / "e.json").read_text())["runs"]["stitched"]["factor"]
        assert factor == pytest.approx((1.5, 1.8)[number], rel=0.05), "what the baseline's own loss is worth divides"


def test_repetition_is_fitted_beside_runs_of_one_epoch_whose_last_batch_is_filled(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = [(N, U, epochs) for N in (1e6, 1e7, 1e8) for U in (1e10, 1e11, 1e12) for epochs in (1, 4, 16)]
    rows = [(N, 1.004 * U * epochs, U, float(MUENNIGHOFF.predict(N, U * epochs, U))) for N, U, epochs in grid]
    write_csv(tmp_path / "runs.csv", ["N", "D", "U", "loss"], rows)
    flags = ["--law", "data_constrained", "--axes", "[N,D,U]", "--bootstrap", "0", "--output", "fit.json"]
    assert run("scaling", "fit", "--csv", "runs.csv", *flags) == 0
    assert "loss where nothing is repeated, 9 points" in capsys.readouterr().out
    once, repeated = json.loads((tmp_path / "fit.json").read_text())
    assert once["coefficients"]["E"] == pytest.approx(MUENNIGHOFF.base.E, rel=0.02)
    assert repeated["coefficients"]["R_D"] == pytest.approx(MUENNIGHOFF.R_D, rel=0.1)


def test_losses_between_those_of_a_baseline_are_interpolated(
    baseline: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    middle = (LAW.predict(200.0) + LAW.predict(400.0)) / 2
    write_record(tmp_path / "stitched", 200, middle)
    config = json.loads((baseline / "400" / "record.json").read_text())["config"]
    write_record(tmp_path / "real" / "untuned", 400, 9.0, config={**config, "model": {"weight_decay": 9}})
    for seed, shift in ((1, 0.01), (2, -0.01)):  # all seeds count, as in the law
        write_record(
            baseline / f"400-{seed}", 400, LAW.predict(400.0) + shift, config={**config, "seed_everything": seed}
        )
    flags = ["--baseline", "[real]", "--method", "interpolation", "--output", "e.json"]
    assert run("scaling", "efficiency", "stitched", *flags) == 0
    assert "worth 1.5 times its real data" in capsys.readouterr().out
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["method"] == "interpolation"
    assert found["runs"]["stitched"]["tokens"] == pytest.approx(300.0)
    assert len(found["baseline"]["points"]) == 5


def test_tokens_to_the_same_loss_are_those_of_two_curves(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def curve(*losses: float) -> list[CurvePoint]:
        return [CurvePoint(step, 100 * 2**step, {"iid": loss}) for step, loss in enumerate(losses)]

    write_record(tmp_path / "real", 100, 3.0, validation_curve=curve(5.0, 4.0, 3.0))
    write_record(tmp_path / "stitched", 100, 2.5, validation_curve=curve(4.0, 3.0, float("nan"), 2.5))
    write_record(tmp_path / "silent", 100, 2.5)
    flags = ["--baseline", "[real]", "--method", "same_loss", "--output", "e.json"]
    assert run("scaling", "efficiency", "stitched", "silent", *flags) == 0
    said = capsys.readouterr()
    assert "stitched: real needs 2 times its training tokens for the loss 3.0000" in said.out
    assert "silent has no validation curve" in said.err
    assert json.loads((tmp_path / "e.json").read_text())["runs"]["stitched"]["factor"] == pytest.approx(2.0)
    assert run("scaling", "efficiency", "stitched", *flags, "--at_loss", 2.7) == 2
    assert "stitched against real: a curve never reaches the loss 2.7" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "name what to do: list, fit, efficiency"),
        ("plot", "knows no 'plot'"),
        ("list", "no runs are named"),
        ("list nowhere", "no run can be read: nowhere does not exist"),
        ("list real --where [U]", "'U' is no condition"),
        ("list real --where [U>many]", "compares a number with 'many'"),
        ("list real --where [U>1e9]", "none of 5 runs meets"),
        ("list real --colums [U]", "colums"),
        ("fit real", "a power law needs an axis"),
        ("fit --axes [U]", "give one of the two"),
        ("fit real --axes [G]", "no point has a number for each of G, loss"),
        ("fit real --axes [N]", "3 coefficients need at least 3 different values of x, and there is 1"),
        ("fit real --axes [U] --where [U<300]", "and there are 2"),
        ("fit real --axes [U] --loss loss.web", "real/100 has no number for loss.web"),
        ("fit real --law chinchilla", "all points have N = 1000"),
        ("fit real --axes [U,D]", "--law power needs 1 of them, and 2 are given"),
        ("fit --csv nowhere.csv --axes [U]", "nowhere.csv does not exist"),
        ("fit --csv t.csv --axes [Z]", "has no column Z (it has U, loss)"),
        ("fit --csv t.csv --axes [U]", "no point has a number for each of U, loss: t.csv, line 2"),
        ("fit real --axes [K]", "no ensemble can be read: real holds no ensemble (ensemble.json)"),
        ("fit nowhere --axes [K]", "nowhere does not exist"),
        ("fit t.csv --axes [K]", "t.csv is not readable as JSON"),
        ("efficiency real", "name runs of the baseline"),
        ("efficiency real --method same_loss", "name the run to compare with"),
        ("efficiency real --method same_loss --baseline [real]", "no run has a validation curve of loss"),
        ("efficiency real --method same_loss --baseline [real] --loss U", "a validation curve is one of losses"),
        ("efficiency real --baseline [real] --at_loss 3", "at_loss belongs to --method same_loss, not to law"),
        ("efficiency real --baseline [real] --method interpolation --reference_loss 3", "belongs to --method law"),
        ("efficiency real/100 --baseline [real/200,real/400] --method interpolation", "lies outside the baseline's"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(
    arguments: str, message: str, baseline: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("U,loss\n1,nan\n2,\n")
    assert run("scaling", *arguments.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("megalit: error:")
    assert message in error


def test_scaling_imports_no_torch(baseline: Path) -> None:
    code = (
        "import sys; from megalit.cli import main\n"
        f"try: main(['scaling', 'list', {str(baseline)!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
