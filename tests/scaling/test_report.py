"""The report says what the records say, names what it left out, and needs nothing beside itself."""

import json
import re
import statistics
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import make_ensemble, make_experiment, make_run
from report_pages import Page, report

from megalit.errors import UserError
from megalit.scaling.records import NO_RESULT, read_record
from megalit.scaling.report import PAGE, find_runs, write_report
from megalit.scaling.report.setting import loss_of, settings_of
from megalit.scaling.report.study import make_study


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("experiment")
    make_experiment(folder / "runs")
    return folder, report(folder)


def test_every_figure_is_there_and_in_a_file(experiment: tuple[Path, Page]) -> None:
    folder, page = experiment
    expected = {
        "loss_vs_generations",
        "loss_vs_synthetic_tokens",
        "data_efficiency",
        "loss_vs_epochs",
        "loss_vs_members",
        "loss_vs_context_length",
        "loss_by_position",
        "training_curves",
    }
    pictures = list((folder / "report").glob("*.png"))
    assert {path.stem.removesuffix("_iid") for path in pictures if path.stem.endswith("_iid")} == expected
    assert "loss_vs_generations_long-context" in {path.stem for path in pictures}
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in pictures)
    assert len(page.images) == len(pictures)
    assert "Left out" not in page.headings


def test_the_page_needs_nothing_beside_it(experiment: tuple[Path, Page]) -> None:
    _, page = experiment
    assert page.links
    for link in page.links:
        assert link.startswith("data:image/png;base64,") or link.removeprefix("#") in page.ids
    without_images = re.sub(r'src="data:[^"]*"', "", page.html)
    assert not re.search(r"https?://|url\(|@import|<script|<link", without_images)


def test_seeds_are_joined_to_mean_and_deviation(experiment: tuple[Path, Page]) -> None:
    folder, page = experiment
    records = [read_record(folder / "runs" / f"stitched-11-{seed}") for seed in range(3)]
    losses = [record.losses["iid"]["nats_per_token"] for record in records]
    expected = f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}"
    (row,) = [row for row in page.table("stream") if row["iid (nats/token)"] == expected]
    assert row["stream"] == "stitched, G = 11"
    assert row["seeds"] == "3"
    assert row["parameters"] == "1,377,408"
    assert row["tokens"] == f"{sum(records[0].tokens_seen.values()):,}"
    assert row["FLOPs"] == f"{records[0].flops:.2e}"
    assert row["epochs"].startswith("real 16")
    bits = [record.losses["iid"]["bits_per_byte"] for record in records]
    assert row["iid (bits/byte)"].startswith(f"{statistics.mean(bits):.4f} ± ")
    assert row["piqa (accuracy)"] == "0.5000 ± 0.0000"
    drawn = [row for row in page.numbers("Loss against generations: iid") if row["stream"] == "stitched"]
    assert [row["generations of each document (G)"] for row in drawn] == ["1", "2", "4", "8", "11"]
    assert drawn[-1]["validation loss (nats per token)"] == expected


def test_only_what_differs_is_a_column(experiment: tuple[Path, Page]) -> None:
    _, page = experiment
    columns = page.table("stream")[0]
    assert {"real_epochs", "real_fraction", "generations", "real_document", "weight_decay"} <= set(columns)
    # The same in all runs, or free to differ between the runs of a setting.
    assert not {"learning_rate", "context_length", "stores", "seed", "run", "accelerator", "default_root_dir"} & set(
        columns
    )


@pytest.mark.parametrize("key", sorted(NO_RESULT))
def test_how_a_run_was_stopped_and_computed_makes_no_other_setting(tmp_path: Path, key: str) -> None:
    """As ``megalit slurm --signal USR2`` puts a signal into what handles them."""
    record = read_record(make_run(tmp_path / "run"))
    *sections, name = key.split(".")
    inner = changed = deepcopy(record.config)
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = {"signals": ["SIGUSR2"]} if name == "preemption" else 7
    assert settings_of(replace(record, config=changed)) == settings_of(record)
    inner["another"] = 7
    assert settings_of(replace(record, config=changed)) != settings_of(record)


def test_all_runs_are_listed_with_their_seeds(experiment: tuple[Path, Page]) -> None:
    folder, page = experiment
    rows = page.table("run")
    names = [path.parent.relative_to(folder / "runs").as_posix() for path in (folder / "runs").rglob("record.json")]
    assert sorted(row["run"] for row in rows) == sorted(names)
    assert {row["model seed"] for row in rows if row["run"].startswith("stitched-11-")} == {"0", "1", "2"}


def test_the_best_setting_is_drawn(tmp_path: Path) -> None:
    """Two settings of one stream and G: the better one stands in the figure."""
    make_run(tmp_path / "runs" / "a", "stitched", 4, weight_decay=0.1, loss=3.6)
    make_run(tmp_path / "runs" / "b", "stitched", 4, weight_decay=0.4, loss=3.5)
    make_run(tmp_path / "runs" / "real", "real", 0, loss=3.7)
    rows = report(tmp_path).numbers("Loss against generations: iid")
    assert [(row["stream"], row["validation loss (nats per token)"]) for row in rows] == [
        ("real only", "3.7000"),
        ("stitched", "3.5000"),
    ]


def test_latent_thoughts_stand_at_their_number_of_generations(experiment: tuple[Path, Page]) -> None:
    _, page = experiment
    rows = [row for row in page.numbers("Loss against generations: iid") if row["stream"] == "latent thoughts"]
    assert [row["generations of each document (G)"] for row in rows] == ["8"]
    assert "does not count generations" not in page.text


def test_seeds_that_share_no_context_length_are_drawn_by_the_first(tmp_path: Path) -> None:
    for seed, lengths in enumerate(([128, 256], [512])):
        folder = make_run(tmp_path / "runs" / f"{seed}", "real", 0, seed=seed)
        value = json.loads((folder / "evaluation.json").read_text())
        for suite in value["suites"].values():
            suite["by_context_length"] = [[length, 3.0] for length in lengths]
        (folder / "evaluation.json").write_text(json.dumps(value))
    rows = report(tmp_path).numbers("Loss against context length: iid")
    assert [row["context length (tokens)"] for row in rows] in (["128", "256"], ["512"])


def test_a_run_in_training_has_its_curves(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "going", status="running")
    page = report(tmp_path)
    assert page.headings[0] == "Training and validation curves: iid"


def test_members_are_found_where_the_ensemble_has_gone(tmp_path: Path) -> None:
    """Paths are those of where it was made; snapshots of one run are checkpoints in its folder."""
    members = [make_run(tmp_path / "runs" / "five" / f"member-{k}", seed=k) for k in range(2)]
    make_ensemble(tmp_path / "runs" / "five", [Path("runs/five") / member.name for member in members], [3.4, 3.3])
    snapshots = [Path("runs/five/member-0/checkpoints") / f"step-{k}.ckpt" for k in (1, 2)]
    make_ensemble(tmp_path / "runs" / "snapshots", snapshots, [3.5, 3.4])
    (tmp_path / "runs").rename(tmp_path / "runs2")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs2").rename(tmp_path / "elsewhere" / "runs")
    found = find_runs([str(tmp_path / "elsewhere")])
    assert [[member.name for member in ensemble.members] for ensemble in found.ensembles] == [
        ["five/member-0", "five/member-1"],
        ["five/member-0", "five/member-0"],
    ]
    assert not found.problems


def test_published_curves_stand_beside_ours_where_they_are_asked_for(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for stream, generations in (("real", 0), ("stitched", 2), ("stitched", 4)):
        for epochs in (8, 16):
            make_run(runs / f"{stream}-{generations}-{epochs}", stream, generations, epochs)
    make_ensemble(runs / "five", [runs / "stitched-4-8", runs / "stitched-4-16"], [3.4, 3.3])
    page = report(tmp_path)
    assert "arXiv" not in page.text
    write_report(find_runs([str(runs)]), tmp_path / "beside", published=True)
    beside = Page((tmp_path / "beside" / PAGE).read_text())
    assert page.headings == beside.headings
    for figure, count in (("generations", 11), ("epochs", 6), ("context length", 15), ("ensemble members", 5)):
        heading = f"Loss against {figure}: iid"
        numbers = beside.numbers(heading)
        assert [row for row in numbers if row["model and data"] != "published"] == page.numbers(heading)
        assert sum(row["model and data"] == "published" for row in numbers) == count
    assert beside.text.count("shows published values: Data-efficient pre-training by scaling synthetic megadocs") == 4
    name = "loss_vs_generations_iid.png"
    assert (tmp_path / "beside" / name).stat().st_size > (tmp_path / "report" / name).stat().st_size
    # The long-context suite of the paper is another one than ours.
    heading = "Loss against generations: long context"
    assert beside.numbers(heading) == page.numbers(heading)


def test_what_is_left_out_says_what_would_give_it(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", evaluated=False)
    page = report(tmp_path)
    assert page.headings == ["Training and validation curves: iid", "Settings", "Runs", "Left out"]
    for words in (
        "--data.real_fraction",
        "megalit ensemble",
        "megalit evaluate",
        "--data.real_epochs",
        "--data.generations",
    ):
        assert words in page.text


def test_damaged_and_unfinished_runs_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "good")
    make_run(tmp_path / "runs" / "going", status="running", loss=1.0)
    torn = make_run(tmp_path / "runs" / "torn") / "record.json"
    torn.write_text(torn.read_text()[:500])
    odd = make_run(tmp_path / "runs" / "odd", seed=1) / "evaluation.json"
    odd.write_text('{"suites": {"iid": {"nats_per_token": 3, "by_position": [1]}}}')
    diverged = make_run(tmp_path / "runs" / "diverged", generations=2, evaluated=False)
    record = read_record(diverged)
    record.losses["iid"]["nats_per_token"] = float("nan")
    record.write(diverged)
    make_ensemble(tmp_path / "runs" / "ensemble", [tmp_path / "runs" / "gone"], [3.0])
    page = report(tmp_path)
    for words in (
        str(torn),
        "going is not finished",
        f"{odd} is no evaluation",
        "diverged has no finite loss",
        f"names the member {tmp_path}/runs/gone, which is not there",
    ):
        assert words in page.text
    # An unfinished run's loss is not a result.
    assert [row["stream"] for row in page.table("stream")] == ["stitched, G = 2", "stitched, G = 4"]
    assert {row["run"]: row["status"] for row in page.table("run")}["going"] == "unfinished"


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "record.json").write_text("{")
    with pytest.raises(UserError, match=r"torn/record\.json"):
        find_runs([str(tmp_path)])
    with pytest.raises(UserError, match="no runs are named"):
        find_runs([])


def test_places_may_be_runs_patterns_and_folders_of_any_depth(tmp_path: Path) -> None:
    for name in ("a", "deep/er/b", "c[1]", "d"):
        make_run(tmp_path / "runs" / name)
    places = [str(tmp_path / "runs" / "a"), str(tmp_path / "runs" / "*"), str(tmp_path / "runs" / "c[1]")]
    found = find_runs([*places, str(tmp_path / "runs" / "d" / "record.json")])
    assert sorted(run.name for run in found.runs) == ["a", "c[1]", "d", "deep/er/b"]


def test_odd_names_are_text_not_markup(tmp_path: Path) -> None:
    name = """<script>alert('&')</script>"x" $\\frac$ 100%_ärger"""
    for seed in range(2):
        make_run(tmp_path / "runs" / name / str(seed), seed=seed, status="running" if seed else "finished")
    make_run(tmp_path / "runs" / "b", evaluated=False)
    page = report(tmp_path)
    assert "<script" not in page.html
    assert f"{name}/0" in {row["run"] for row in page.table("run")}
    assert f"{name}/1 is not finished" in page.text


def test_an_evaluation_counts_only_of_the_finished_weights_and_measured_as_the_others(tmp_path: Path) -> None:
    steps = read_record(make_run(tmp_path / "runs" / "real", "real", 0)).steps
    for name, step, stride, bucket in (("a", steps, None, 8), ("b", steps, 512, 8), ("c", steps - 1, 512, 8)):
        folder = make_run(tmp_path / "runs" / name, generations=0, stream="real", seed=ord(name))
        value = json.loads((folder / "evaluation.json").read_text())
        value["checkpoint"] = f"step-{step:09d}.ckpt"
        value["suites"]["long context"]["conditions"] = {"stride": stride, "bucket": bucket}
        (folder / "evaluation.json").write_text(json.dumps(value))
    make_run(tmp_path / "runs" / "going", seed=9, status="running")
    # A run that went on with batches of another size has taken other steps than its last plan has.
    record = tmp_path / "runs" / "b" / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"steps": steps - 5}))
    page = report(tmp_path)
    assert (
        f"c/evaluation.json is of step {steps - 1} and its run has {steps}: run `megalit evaluate` again" in page.text
    )
    assert "long context was measured with another stride in b than in a: " in page.text
    assert page.text.count("was measured with another") == 1
    assert page.text.count("evaluation.json is of step") == 1


def test_optimizers_are_compared_in_panels_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "plain", loss=3.6)
    make_run(tmp_path / "other", loss=3.4)
    value = json.loads((tmp_path / "other" / "record.json").read_text())
    value["config"]["model"] = {**value["config"].get("model", {}), "optimizer": {"name": "muon"}}
    (tmp_path / "other" / "record.json").write_text(json.dumps(value))
    make_run(tmp_path / "half", "real", loss=3.9, real_fraction=0.5)
    study, _ = make_study(find_runs([str(tmp_path)]))
    half, plain, other = study.families
    assert str(other) == f"{plain}, muon"
    assert [loss.mean for _, loss in study.best(plain, "iid")] == pytest.approx([3.6])
    assert study.compared == [plain, other], "a subset of the real documents is there for the law alone"
    assert half.real_tokens < plain.real_tokens


def test_a_later_evaluation_does_not_change_what_runs_are_compared_by(tmp_path: Path) -> None:
    """It may have been measured with another context."""
    make_run(tmp_path / "a", "real", loss=3.6)
    value = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    value["suites"]["iid"]["nats_per_token"] = 9.0
    (tmp_path / "a" / "evaluation.json").write_text(json.dumps(value))
    study, _ = make_study(find_runs([str(tmp_path)]))
    assert loss_of(study.settings[0].runs[0], "iid") == pytest.approx(3.6)
