"""``megalit evaluate``: runs, exported models, several suites and seeds, benchmarks, and what it refuses."""

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from data_sets import DataSet, make_rows
from running import Run
from safetensors.torch import load_file, save_file

from megalit.cli import evaluate, models
from megalit.cli.evaluate import EvaluateCommand, _processes
from megalit.cli.models import open_model
from megalit.corpus.build import CorpusSettings, build_corpus
from megalit.corpus.tokenizers import Tokenizer, train_bpe
from megalit.errors import UserError
from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.evaluation.results import read_evaluation
from megalit.streams.building import build_stores


@pytest.fixture
def trained(run: Run, small: Path, tmp_path: Path) -> Path:
    assert run("fit", "--config", small) == 0
    return tmp_path / "run"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_is_measured_as_its_record_says_and_not_twice(
    run: Run, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", "--run", "run", "--plot", "curves.png") == 0
    found = read(trained / "evaluation.json")["suites"]["iid"]
    recorded = read(trained / "record.json")["losses"]["iid"]
    assert found["nats_per_token"] == pytest.approx(recorded["nats_per_token"], abs=1e-5)
    assert found["bits_per_byte"] == pytest.approx(recorded["bits_per_byte"], abs=1e-5)
    assert [position for position, _ in found["by_position"]] == list(range(1, 33))
    assert [length for length, _ in found["by_context_length"]] == [8, 16, 32]
    assert found["by_context_length"][-1][1] == found["nats_per_token"]
    assert (trained.parent / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "curves.png" in capsys.readouterr().out
    assert run("evaluate", "--run", "run") == 0
    assert "measured before" in capsys.readouterr().err
    # Other settings are measured, and another suite's result stays.
    assert run("evaluate", "--run", "run", "--suites", "{slid: null}", "--stride", "8") == 0
    suites = read(trained / "evaluation.json")["suites"]
    assert suites["iid"] == found
    assert suites["slid"]["conditions"]["separate"] is True
    assert suites["slid"]["nats_per_token"] != found["nats_per_token"]


def test_an_earlier_checkpoint_has_a_file_of_its_own(
    run: Run, small: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", "--run", "run") == 0
    newest = newest_checkpoint(trained)
    assert newest is not None
    assert run("evaluate", "--run", newest) == 0
    assert "measured before" in capsys.readouterr().err
    of_run = (trained / "evaluation.json").read_bytes()
    earlier = newest.with_name("step-0000000.ckpt")
    state = torch.load(newest, weights_only=True)
    state["state_dict"]["lm_head.weight"] *= 0.5
    torch.save(state, earlier)
    own = trained / "evaluation-step-0000000.json"
    for times in (1, 2):
        assert run("evaluate", "--run", earlier) == 0
        said = capsys.readouterr()
        assert said.out.splitlines()[-1] == str(own)
        assert ("measured before" in said.err) == (times == 2)
    assert (trained / "evaluation.json").read_bytes() == of_run
    losses = [json.loads(text)["suites"]["iid"]["nats_per_token"] for text in (of_run, own.read_text())]
    assert losses[0] != losses[1]
    assert run("fit", "--config", small, "--overwrite", "true") == 0
    assert not own.exists()


def test_precision_is_that_of_the_weights_too(run: Run, small: Path) -> None:
    assert run("fit", "--config", small, "--trainer.precision", "bf16-mixed") == 0
    losses = {}
    for precision in ("bf16-true", "bf16-mixed", "32-true"):
        assert run("evaluate", "--run", "run", "--precision", precision) == 0
        suite = read(Path("run/evaluation.json"))["suites"]["iid"]
        assert suite["conditions"]["precision"] == precision
        losses[precision] = suite["nats_per_token"]
        weights = open_model(Path("run"), precision).model.parameters()
        assert {weight.dtype for weight in weights} == {
            torch.bfloat16 if precision == "bf16-true" else torch.float32,
        }
    assert open_model(Path("run")).precision == "bf16-mixed"
    assert losses["32-true"] != losses["bf16-true"]
    assert losses["32-true"] == pytest.approx(losses["bf16-true"], abs=0.01)


def test_processes_wait_for_the_one_that_runs_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **others: given.update(others))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with _processes():
        assert given["timeout"] >= timedelta(days=7)


def test_processes_take_the_same_for_measured(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of results may show late on another node; one that measures alone waits for the others for ever."""
    assert run("evaluate", "--run", "run") == 0
    kept = read_evaluation(trained / "evaluation.json")
    (trained / "evaluation.json").unlink()

    def broadcast(held: list[Any]) -> None:
        assert held[0].suites == {}
        held[0] = kept

    monkeypatch.setattr(evaluate, "ranks", lambda: (1, 2))
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    monkeypatch.setattr(evaluate, "measure", None)
    found, _ = evaluate._evaluate(EvaluateCommand(run=["run"]), [open_model(Path("run"))], torch.device("cpu"))
    assert found.suites == kept.suites


def test_exported_models_seeds_and_ensembles(
    run: Run, small: Path, trained: Path, data_set: DataSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small, "--run", "other", "--seed_everything", "5") == 0
    assert run("evaluate", "--run", "run", "other", "--output", "seeds.json") == 0
    both = read(Path("seeds.json"))
    losses = [one["suites"]["iid"]["nats_per_token"] for one in both["runs"]]
    spread = both["over_runs"]["suites"]["iid"]["nats_per_token"]
    assert spread["mean"] == pytest.approx(sum(losses) / 2)
    assert spread["deviation"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    assert run("export", "--run", "run", "--output", "hf", "--dtype", "float32") == 0
    assert run("evaluate", "--run", "hf", "--suites", json.dumps({"iid": str(data_set.folder)})) == 0
    exported = read(Path("hf/evaluation.json"))["suites"]["iid"]
    assert exported["nats_per_token"] == pytest.approx(losses[0], abs=1e-5)
    # Other weights under the same name are another model.
    capsys.readouterr()
    for changed in (False, True):
        if changed:
            weights = load_file("hf/model.safetensors")
            save_file({name: value * 0.5 for name, value in weights.items()}, "hf/model.safetensors", {"format": "pt"})
        assert run("evaluate", "--run", "hf", "--suites", json.dumps({"iid": str(data_set.folder)})) == 0
        assert ("measured before" in capsys.readouterr().err) != changed
        assert (read(Path("hf/evaluation.json"))["suites"]["iid"] == exported) != changed
    shutil.copytree("run", "twin")
    for average in ("probabilities", "logits"):
        assert run("evaluate", "--run", "run", "--run", "twin", "--ensemble", average, "--output", "same.json") == 0
        assert read(Path("same.json"))["runs"][0]["suites"]["iid"]["nats_per_token"] == pytest.approx(
            losses[0], abs=1e-5
        )
    assert run("evaluate", "--run", "run", "other", "--ensemble", "probabilities", "--output", "two.json") == 0
    # The mean of probabilities is never worse than the mean of its members' losses.
    assert read(Path("two.json"))["runs"][0]["suites"]["iid"]["nats_per_token"] < sum(losses) / 2


def test_any_store_and_benchmarks(
    run: Run,
    trained: Path,
    data_set: DataSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"goal": row["text"][:50], "sol1": "abc", "sol2": "bcd", "label": 1} for row in make_rows(5)]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = json.dumps({"piqa": {"validation": str(tmp_path / "piqa.jsonl")}})
    suites = json.dumps({"training": str(data_set.stores.real.folder)})
    arguments = ["--suites", suites, "--tasks", "[piqa]", "--data_files", files]
    assert run("evaluate", "--run", "run", *arguments) == 0
    found = read(trained / "evaluation.json")
    assert found["suites"]["training"]["text_bytes"] == data_set.stores.real.manifest.bytes
    assert found["tasks"]["piqa"]["questions"] == 5
    assert found["task_error"] == pytest.approx(1 - found["tasks"]["piqa"]["accuracy"])
    capsys.readouterr()
    # Measured again under other conditions only, be it the questions in the file.
    for others, measured in ([], False), (["--limit", "3"], True), (["--limit", "3"], False), (["--bos", "true"], True):
        assert run("evaluate", "--run", "run", *arguments, *others) == 0
        assert ("piqa: measured before" in capsys.readouterr().err) != measured
        assert read(trained / "evaluation.json")["tasks"]["piqa"]["questions"] == (3 if "--limit" in others else 5)
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    assert run("evaluate", "--run", "run", *arguments, "--bos", "true") == 0
    assert read(trained / "evaluation.json")["tasks"]["piqa"]["questions"] == 4
    (tmp_path / "piqa.jsonl").unlink()
    assert run("evaluate", "--run", "run", *arguments) == 2
    assert "piqa.jsonl does not exist" in capsys.readouterr().err


def test_remote_stores_that_are_gone_are_missed_by_benchmarks_alone(
    run: Run, trained: Path, data_set: DataSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(location: str) -> Path:
        raise UserError(f"{location} cannot be staged")

    monkeypatch.setattr(models, "local_stores", gone)
    saved = trained / "config.yaml"
    saved.write_text(saved.read_text().replace(str(data_set.folder), "s3://bucket/stores"))
    suites = json.dumps({"training": str(data_set.stores.real.folder)})
    assert run("evaluate", "--run", "run", "--suites", suites, "--context_lengths", "[]") == 0
    assert "training" in read(trained / "evaluation.json")["suites"]
    capsys.readouterr()
    assert run("evaluate", "--run", "run", "--suites", suites, "--context_lengths", "[]", "--tasks", "[piqa]") == 2
    assert "s3://bucket/stores cannot be staged" in capsys.readouterr().err


def test_what_cannot_be_measured_ends_in_one_line(
    run: Run, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(30, seed=3)
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = build_corpus(CorpusSettings([str(tmp_path / "other.jsonl")], validation_fraction=0.2), tmp_path / "c")
    train_bpe(corpus.texts("train"), 280, tmp_path / "stores" / "tokenizer")
    build_stores(corpus, [], Tokenizer(str(tmp_path / "stores" / "tokenizer")), tmp_path / "stores")

    def refused(*arguments: str) -> str:
        assert run("evaluate", *arguments) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "other tokenizer" in refused("--run", "run", "--suites", "{iid: stores}")
    assert "at most that" in refused("--run", "run", "--context_length", "64")
    assert "choose values from 1 to 32" in refused("--run", "run", "--context_lengths", "[8, 64]")
    assert "choose 1 to 32" in refused("--run", "run", "--stride", "33")
    assert "gone does not exist" in refused("--run", "gone")
    assert "holds neither a checkpoint" in refused("--run", "stores")
    assert "does not exist: name a store" in refused("--run", "run", "--suites", "{iid: nothing}")
    assert "nothing to measure" in refused("--run", "run", "--suites", "{}")
    assert "with --output" in refused("--run", "run", "run", "--ensemble", "logits")
    newest = newest_checkpoint(trained)
    assert newest is not None
    state = torch.load(newest, weights_only=True)
    state["state_dict"]["lm_head.weight"][:] = torch.nan
    torch.save(state, newest)
    said = refused("--run", "run")
    assert "run, suite iid: the model gives" in said
    assert "not finite in windows 0 to" in said
