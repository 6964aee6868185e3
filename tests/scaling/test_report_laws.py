"""The laws in a report: what a result was worth in data, and what an infinite ensemble would reach."""

import json
import re
from pathlib import Path

import pytest
from made_runs import make_ensemble, make_run
from report_pages import report

from megalit.scaling.records import read_record
from megalit.scaling.report import find_runs
from megalit.scaling.report.setting import stream_label
from megalit.scaling.report.study import make_study


def test_data_efficiency_inverts_the_law_of_the_baseline(tmp_path: Path) -> None:
    """The baseline follows L = 3 + 0.5 / sqrt(fraction); the loss it would have with 4 times the data is worth 4."""
    for fraction in (0.125, 0.25, 0.5, 1.0):
        make_run(tmp_path / "runs" / f"real-{fraction}", "real", 0, 8, fraction, loss=3 + 0.5 / fraction**0.5)
    make_run(tmp_path / "runs" / "stitched", "stitched", 4, loss=3.25)
    members = [make_run(tmp_path / "runs" / "ensemble" / f"m{k}", "simple", 4, seed=k, loss=3.6) for k in range(2)]
    make_ensemble(tmp_path / "runs" / "ensemble", members, [3.6, 2.9])
    page = report(tmp_path)
    rows = {row["result"]: row for row in page.numbers("Data efficiency: iid")}
    assert rows["stitched, G = 4"]["times the data"] == "4.00×"
    assert rows["stitched, G = 4"]["real tokens it is worth"] == "4M"
    # Below the asymptote no amount of real data is enough.
    assert rows["simple, G = 4, K = 2"]["times the data"] == "∞"
    assert "Extrapolation" in page.text


def test_a_baseline_that_does_not_fall_has_no_data_efficiency(tmp_path: Path) -> None:
    for fraction in (0.25, 0.5, 1.0):
        make_run(tmp_path / "runs" / f"real-{fraction}", "real", 0, 8, fraction, loss=3 + fraction)
    make_run(tmp_path / "runs" / "stitched", "stitched", 4, loss=3.25)
    page = report(tmp_path)
    assert "Data efficiency: iid" not in page.headings
    assert "do not fall with more of them" in page.text


def test_a_model_without_a_law_is_named_beside_those_that_have_one(tmp_path: Path) -> None:
    fractions = (0.125, 0.25, 0.5, 1.0)
    for fraction in fractions:
        make_run(tmp_path / "runs" / f"real-{fraction}", "real", 0, 8, fraction, loss=3 + 0.5 / fraction**0.5)
    make_run(tmp_path / "runs" / "stitched", "stitched", 4, loss=3.25)
    under_muon = [
        make_run(tmp_path / "runs" / f"muon-{fraction}", "real", 0, 8, fraction, loss=3 + fraction)
        for fraction in fractions
    ]
    for folder in [*under_muon, make_run(tmp_path / "runs" / "muon-stitched", "stitched", 4, loss=3.2)]:
        value = json.loads((folder / "record.json").read_text())
        value["config"]["model"] = {**value["config"].get("model", {}), "optimizer": {"name": "muon"}}
        (folder / "record.json").write_text(json.dumps(value))
    page = report(tmp_path)
    assert len(page.numbers("Data efficiency: iid")) == 1
    found = re.findall(r"Not shown: .*? (\S+) real tokens, .*, muon, .* do not fall with more of them", page.text)
    assert set(found) == {"1M"}, "subsets are there for the law alone"


def test_ensembles_get_the_asymptote_of_their_law(tmp_path: Path) -> None:
    members = [make_run(tmp_path / "runs" / f"m{k}", "simple", 4, seed=k) for k in range(5)]
    make_ensemble(tmp_path / "runs" / "ensemble", members, [3.2 + 0.2 / k for k in range(1, 6)])
    # The members of this one lie beside it.
    page = report(tmp_path)
    rows = {row["average of"]: row for row in page.numbers("Loss against ensemble members: iid")}
    assert float(rows["probabilities"]["asymptote"]) == pytest.approx(3.2, abs=1e-3)
    # 0.006 (1 - 1 / K) was added to what falls as 0.2 / K.
    assert float(rows["logits"]["asymptote"]) == pytest.approx(3.206, abs=1e-3)
    assert "not alike" not in page.text


def test_an_ensemble_is_named_by_all_its_members(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    kinds = [("simple", 4, 1.0), ("stitched", 4, 1.0), ("stitched", 8, 0.5)]
    members = [make_run(runs / f"m{k}", *kind[:2], real_fraction=kind[2]) for k, kind in enumerate(kinds)]
    make_ensemble(runs / "mixed", members, [3.4, 3.3, 3.27])
    page = report(tmp_path)
    for row in page.numbers("Loss against ensemble members: iid"):
        assert row["ensemble"].startswith("simple and stitched, ")
    assert "the members of mixed differ in real tokens: it is shown beside" in page.text
    assert "simple and stitched, logits: its members are not alike, so this is no loss of an infinite" in page.text


def test_snapshots_of_one_run_are_no_infinite_ensemble(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "a")
    snapshots = [run / "checkpoints" / f"step-{k}.ckpt" for k in range(3)]
    make_ensemble(tmp_path / "runs" / "snapshots", snapshots, [3.4, 3.3, 3.27])
    page = report(tmp_path)
    assert all(
        row["ensemble"].startswith("stitched, G = 4") for row in page.numbers("Loss against ensemble members: iid")
    )
    assert "its members are not alike" in page.text


def test_three_members_have_an_asymptote_without_an_interval(tmp_path: Path) -> None:
    members = [make_run(tmp_path / "runs" / f"m{k}", seed=k) for k in range(3)]
    make_ensemble(tmp_path / "runs" / "ensemble", members, [3.4, 3.3, 3.27])
    row, _ = report(tmp_path).numbers("Loss against ensemble members: iid")
    assert row["asymptote"] != "–"
    assert row["interval"] == "–"


def test_too_few_members_have_no_asymptote(tmp_path: Path) -> None:
    members = [make_run(tmp_path / "runs" / f"m{k}", seed=k) for k in range(2)]
    make_ensemble(tmp_path / "runs" / "ensemble", members, [3.4, 3.3])
    page = report(tmp_path)
    assert {row["asymptote"] for row in page.numbers("Loss against ensemble members: iid")} == {"–"}
    assert "no asymptote (3 coefficients need" in page.text


def test_a_distilled_run_on_real_documents_is_no_baseline(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", "real", loss=3.6)
    distilled = make_run(tmp_path / "distilled", "real", loss=3.4)
    value = json.loads((distilled / "record.json").read_text())
    callback = {"class_path": "megalit.callbacks.SelfDistillation"}
    for callbacks in ([callback], callback):  # Lightning takes a single one, too
        value["config"]["trainer"]["callbacks"] = callbacks
        (distilled / "record.json").write_text(json.dumps(value))
        labels = {stream_label(read_record(folder)) for folder in (plain, distilled)}
        assert labels == {"real only", "real only, distilled"}


MASKED = {"cross_document_attention": False}
FROM_WEIGHTS = {"weights": "runs/other/hf"}


def change_model(folder: Path, settings: dict[str, object]) -> None:
    value = json.loads((folder / "record.json").read_text())
    value["config"]["model"] |= settings
    (folder / "record.json").write_text(json.dumps(value))


@pytest.mark.parametrize("settings", [MASKED, FROM_WEIGHTS])
def test_masked_runs_and_those_from_other_weights_are_no_baseline_of_the_others(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    """At the full data a real-only run of another kind has a lower loss; line and law are those of its own kind."""
    for fraction in (0.125, 0.25, 0.5, 1.0):
        make_run(tmp_path / "runs" / f"real-{fraction}", "real", 0, 8, fraction, loss=3 + 0.5 / fraction**0.5)
    make_run(tmp_path / "runs" / "stitched", "stitched", 4, loss=3.25)
    change_model(make_run(tmp_path / "runs" / "other", "real", loss=3.3), settings)
    page = report(tmp_path)
    (row,) = page.numbers("Data efficiency: iid")
    assert row["times the data"] == "4.00×"
    assert "stitched, G = 4; real documents alone 3.5000" in page.text
    drawn = page.numbers("Loss against generations: iid")
    assert [(row["stream"], row["validation loss (nats per token)"]) for row in drawn] == [
        ("real only", "3.5000"),
        ("stitched", "3.2500"),
    ]


@pytest.mark.parametrize("settings", [MASKED, FROM_WEIGHTS])
def test_where_all_runs_are_masked_or_from_the_same_weights_they_have_a_baseline(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    for fraction in (0.125, 0.25, 0.5, 1.0):
        folder = make_run(tmp_path / "runs" / f"real-{fraction}", "real", 0, 8, fraction, loss=3 + 0.5 / fraction**0.5)
        change_model(folder, settings)
    change_model(make_run(tmp_path / "runs" / "stitched", "stitched", 4, loss=3.25), settings)
    (row,) = report(tmp_path).numbers("Data efficiency: iid")
    assert row["times the data"] == "4.00×"
    study, _ = make_study(find_runs([str(tmp_path)]))
    assert [str(family).partition(", context 1,024")[2] for family in study.compared] in (
        [", masked"],
        [", from runs/other/hf"],
    )
