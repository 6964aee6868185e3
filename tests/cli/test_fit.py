"""``megalit fit`` from a configuration to a finished run folder, and back to it."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from data_sets import DataSet, make_rows, write_jsonl
from running import Run, losses, start_interpreter
from transformers import AutoModelForCausalLM, AutoTokenizer

from megalit.cli.fit_config import fit_config
from megalit.cli.models import open_model
from megalit.evaluation.checkpoints import load_model
from megalit.scaling.records import read_record
from megalit.scaling.report.setting import key_of


def test_a_run_leaves_everything_in_its_folder(run: Run, small: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run("fit", "--config", small) == 0
    said = capsys.readouterr().err
    folder = tmp_path / "run"
    record = read_record(folder)
    assert record.status == "finished"
    assert record.steps == record.plan["steps"] == 40
    assert [step for step, _ in losses(folder)] == list(range(1, 41))
    assert [point.step for point in record.validation_curve] == [20, 40]
    loss = record.losses["iid"]
    assert 0 < loss["nats_per_token"] < 5
    # 1 token holds more than 1 byte here, so bits per byte stay below bits per token.
    assert 0 < loss["bits_per_byte"] < loss["nats_per_token"] / 0.6931
    assert record.tokens_seen == {"real": 40 * 32, "stitched": 3 * 40 * 32}
    assert 0 < record.synthetic_share < 0.75
    assert record.parameters["total"] > record.parameters["non_embedding"] > 0
    assert record.flops > 6 * record.parameters["non_embedding"] * 5120
    assert record.seeds == {"model": 0, "data": 0}
    assert record.config["model"]["shape"] == "nano"
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-000000035.ckpt",
        "step-000000040.ckpt",
    ]
    assert list(csv.DictReader((folder / "metrics" / "version_0" / "metrics.csv").open()))
    told = yaml.safe_load((folder / "metrics" / "version_0" / "hparams.yaml").read_text())
    assert told["data"]["class_path"].endswith("StitchedStream"), "runs differ in their data, too"
    assert told["learning_rate"] == record.config["model"]["learning_rate"]
    for words in ("plan", "stitched", "75.0%", "40 steps", "validation loss, iid", "unique real tokens", "tokens/s"):
        assert words in said
    assert any("40 steps of" in line and line.endswith(" unique real tokens") for line in said.splitlines())
    progress = [line for line in said.splitlines() if line.startswith("step ")]
    assert progress
    assert all(line.endswith(" left") for line in progress), "a line of a log is not folded"


def test_a_finished_run_is_not_run_again(run: Run, small: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run("fit", "--config", small) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert run("fit", "--config", small) == 0
    assert "is finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_the_saved_configuration_repeats_the_run(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small, "--seed_everything", "7") == 0
    assert run("fit", "--config", tmp_path / "run" / "config.yaml", "--run", "again") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "again")
    assert read_record(tmp_path / "again").seeds == {"model": 7, "data": 7}


def test_model_and_data_seed_can_be_set_apart(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small, "--model.seed", "3") == 0
    assert run("fit", "--config", small, "--data.seed", "3", "--run", "other") == 0
    assert read_record(tmp_path / "run").seeds == {"model": 3, "data": 0}
    assert read_record(tmp_path / "other").seeds == {"model": 0, "data": 3}
    assert losses(tmp_path / "run")[0] != losses(tmp_path / "other")[0]


STREAMS = {
    "RealStream": (["--data", "RealStream"], {"real": 40}),
    "SimpleStream": (["--data", "SimpleStream"], {"real": 10, "simple": 30}),
    "first": (["--data.real_document", "first"], {"real": 10, "stitched": 30}),
    "absent": (["--data.real_document", "absent"], {"real": 10, "stitched": 30}),
    "LatentThoughtStream": (["--data", "LatentThoughtStream"], {"real": 10, "latent_thoughts": 30}),
    "all synthetic": (["--data.synthetic_fraction", "1"], {"stitched": 40}),
    "no synthetic": (["--data.synthetic_fraction", "0"], {"real": 40}),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_the_same_configuration_trains_every_stream_with_one_flag(
    stream: str, run: Run, small: Path, tmp_path: Path
) -> None:
    flags, expected = STREAMS[stream]
    assert run("fit", "--config", small, *flags) == 0
    record = read_record(tmp_path / "run")
    assert record.status == "finished"
    assert record.tokens_seen == {name: windows * 4 * 32 for name, windows in expected.items()}
    assert record.losses["iid"]["nats_per_token"] < 5.2


def test_configurations_compose(run: Run, small: Path, tmp_path: Path) -> None:
    simple = Path(__file__).parents[2] / "configs" / "stream" / "simple.yaml"
    assert run("fit", "--config", small, "--config", simple, "--data.generations", "2") == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"]["class_path"].endswith("SimpleStream")
    assert config["data"]["init_args"]["generations"] == 2
    assert config["data"]["init_args"]["context_length"] == 32


@pytest.mark.parametrize("epochs", [0.5, 2])
def test_run_length_follows_from_real_epochs(run: Run, small: Path, tmp_path: Path, epochs: float) -> None:
    flags = ["--data.total_tokens", "null", "--data.real_epochs", str(epochs), "--data.synthetic_fraction", "0.5"]
    assert run("fit", "--config", small, *flags) == 0
    plan = read_record(tmp_path / "run").plan
    real = next(stream for stream in plan["streams"] if stream["name"] == "real")
    exact_windows = real["windows_per_epoch"] * epochs / 0.5
    assert plan["steps"] == -(-exact_windows // 4)
    assert epochs <= real["windows"] / real["windows_per_epoch"] < epochs + 2 / real["windows_per_epoch"] + 1e-9


def test_from_a_users_file_to_a_run(run: Run, from_files: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    """Preparation happens once; other streams reuse it."""
    assert run("fit", "--config", from_files) == 0
    stores = tmp_path / "data" / "stores"
    assert {path.name for path in stores.iterdir()} == {"real", "validation", "generations", "thoughts", "tokenizer"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.suffix != ".lock"}
    capsys.readouterr()
    assert run("fit", "--config", from_files, "--data", "SimpleStream", "--run", "simple") == 0
    said = capsys.readouterr().err
    assert "tokenized" not in said
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.suffix != ".lock"}
    assert after == before


def test_corpus_then_tokenize_then_fit(run: Run, small: Path, data_set: DataSet, tmp_path: Path) -> None:
    rows = make_rows(30, seed=5)
    write_jsonl(tmp_path / "a.jsonl", rows[:20])
    write_jsonl(tmp_path / "b.jsonl", rows[20:])
    assert run("corpus", "--inputs", "[a.jsonl, b.jsonl]", "--validation_fraction", "0.2", "--output", "corpus") == 0
    assert (
        run("tokenize", "--corpus", "corpus", "--output", "stores", "--tokenizer.name", data_set.folder / "tokenizer")
        == 0
    )
    assert run("fit", "--config", small, "--data.stores", "stores") == 0
    sources = set(json.loads((tmp_path / "corpus" / "manifest.json").read_text())["settings"]["inputs"])
    assert sources == {"a.jsonl", "b.jsonl"}


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_measuring_a_run_gives_its_final_loss(verb: str, run: Run, small: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run("fit", "--config", small) == 0
    capsys.readouterr()
    assert run(verb, "--config", small) == 0
    name, value = capsys.readouterr().out.split()
    assert name == "iid"
    assert float(value) == pytest.approx(read_record(tmp_path / "run").losses["iid"]["nats_per_token"], abs=1e-5)


def test_a_run_is_measured_with_its_own_model_and_data(
    run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small) == 0
    for setting, known, asked in (
        ("model.cross_document_attention", True, False),
        ("data.separate_validation", False, True),
    ):
        assert run("validate", "--config", small, f"--{setting}", str(asked).lower()) == 2
        said = capsys.readouterr().err
        assert f"run holds a run with another {setting} ({known}, not {asked}): measure it with --config run" in said
    # What it runs on and how it was trained are no part of a loss.
    others = ("--trainer.precision", "bf16-mixed", "--model.attention", "sdpa", "--model.learning_rate", "0.5")
    assert run("validate", "--config", small, *others) == 0
    assert run("validate", "--config", "run/config.yaml") == 0


def test_a_run_without_a_validation_loss_says_so(
    run: Run, small: Path, data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data_set.folder, tmp_path / "stores")
    shutil.rmtree(tmp_path / "stores" / "validation")
    assert run("fit", "--config", small, "--data.stores", "stores") == 0
    assert "the stores hold no validation documents: no validation loss is measured" in capsys.readouterr().err


def test_a_precision_has_one_name_however_it_is_said(
    run: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said, name in (("null", "32-true"), ("32", "32-true"), ("32-true", "32-true"), ("bf16", "bf16-mixed")):
        assert fit_config([f"--config={small}", f"--trainer.precision={said}"])["trainer"]["precision"] == name
    assert run("fit", "--config", small) == 0
    saved = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(saved.read_text())
    # A run of an earlier version goes on, and is one setting with what was said otherwise.
    config["trainer"]["precision"] = None
    saved.write_text(yaml.safe_dump(config))
    capsys.readouterr()
    assert run("fit", "--config", small, "--trainer.precision", "32") == 0
    assert "is finished" in capsys.readouterr().err
    assert open_model(tmp_path / "run").precision == "32-true"
    assert run("fit", "--config", small, "--trainer.precision", "bf16") == 2
    assert "trainer.precision ('32-true', not 'bf16-mixed')" in capsys.readouterr().err
    record = read_record(tmp_path / "run")
    assert key_of(record) == key_of(replace(record, config=config))


def test_a_loss_that_is_no_number_is_said_of_a_finished_run(
    run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small) == 0
    record = read_record(Path("run"))
    nothing = {"nats_per_token": float("nan"), "bits_per_byte": float("nan")}
    replace(record, losses={"iid": nothing}).write(Path("run"))
    capsys.readouterr()
    assert run("fit", "--config", small) == 0
    assert re.search(r"validation loss, iid\W+not finite", capsys.readouterr().err)


def test_nothing_is_logged_where_lightning_is_told_so(run: Run, small: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(small.read_text())
    teacher = {"class_path": "megalit.callbacks.SelfDistillation", "init_args": {"teachers": "ema"}}
    config["trainer"] |= {"log_every_n_steps": 0, "callbacks": [teacher]}
    small.write_text(yaml.safe_dump(config))
    assert run("fit", "--config", small) == 0
    assert read_record(tmp_path / "run").status == "finished"


def test_measuring_without_a_checkpoint_says_what_to_do(run: Run, small: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run("validate", "--config", small) == 2
    assert "holds no checkpoint: train it with `megalit fit`" in capsys.readouterr().err


def test_two_processes_give_the_result_of_one(run: Run, from_files: Path, tmp_path: Path) -> None:
    """Preparation, plan, training and validation under DDP; the validation set is too small for both ranks."""
    flags = ["--data.context_length", "512", "--data.global_batch", "8", "--data.total_tokens", str(8 * 512 * 6)]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--run", "two"]
    process = start_interpreter("fit", "--config", from_files, *flags, *two, folder=tmp_path)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert said.count("validation loss, iid") == 1
    assert run("fit", "--config", from_files, *flags, "--run", "one") == 0
    one, both = read_record(tmp_path / "one"), read_record(tmp_path / "two")
    assert both.plan == one.plan
    assert (one.device_seconds, both.device_seconds) == pytest.approx((one.wall_seconds, 2 * both.wall_seconds))
    assert [loss for _, loss in losses(tmp_path / "two")] == pytest.approx(
        [loss for _, loss in losses(tmp_path / "one")], abs=1e-4
    )
    assert both.losses["iid"]["nats_per_token"] == pytest.approx(one.losses["iid"]["nats_per_token"], abs=1e-4)


def test_metrics_stand_at_the_step_that_they_are_of(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small, "--trainer.log_every_n_steps", "4") == 0
    rows = list(csv.DictReader((tmp_path / "run" / "metrics" / "version_0" / "metrics.csv").open()))
    logged = {int(row["step"]) + 1: float(row["train/loss"]) for row in rows if row["train/loss"]}
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    known = {point["step"]: point["losses"]["train"] for point in record["training_curve"]}
    assert set(logged) == set(range(4, 41, 4))
    for step, loss in logged.items():
        assert loss == pytest.approx(known[step], rel=1e-6)


def test_speed_is_logged(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small, "--trainer.log_every_n_steps", "4") == 0
    folder = tmp_path / "run" / "metrics" / "version_0"
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    rates = [float(row["throughput/tokens_per_second"]) for row in rows if row.get("throughput/tokens_per_second")]
    seconds = [float(row["throughput/seconds_per_step"]) for row in rows if row.get("throughput/seconds_per_step")]
    assert len(rates) == len(seconds) >= 8
    assert [rate * second for rate, second in zip(rates, seconds, strict=True)] == pytest.approx([128.0] * len(rates))
    assert list(folder.glob("events.out.tfevents.*"))


def test_a_run_is_exported_and_training_starts_from_it(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("export", "--run", "run", "--output", "hf") == 2
    assert run("fit", "--config", small) == 0
    assert run("export", "--run", "run", "--output", "hf", "--dtype", "float32") == 0
    assert run("export", "--run", "run", "--output", "hf") == 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert theirs.config.max_position_embeddings == 32
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000000040.ckpt"
    ours = load_model(checkpoint)
    tokens = torch.tensor([tokenizer("abc def ghi")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    more = ["--run", "more", "--model.weights", "hf", "--model.learning_rate", "1e-6"]
    assert run("fit", "--config", small, *more) == 0
    before, after = read_record(tmp_path / "run"), read_record(tmp_path / "more")
    assert after.losses["iid"]["nats_per_token"] == pytest.approx(before.losses["iid"]["nats_per_token"], abs=0.01)


def test_an_exported_model_attends_to_what_it_did_in_training(run: Run, small: Path, data_set: DataSet) -> None:
    assert run("fit", "--config", small, "--model.cross_document_attention", "false") == 0
    assert run("export", "--run", "run", "--output", "hf", "--dtype", "float32") == 0
    assert run("evaluate", "--run", "hf", "--suites", f"{{iid: '{data_set.folder}'}}") == 0
    measured = json.loads(Path("hf/evaluation.json").read_text())["suites"]["iid"]["nats_per_token"]
    assert measured == pytest.approx(read_record(Path("run")).losses["iid"]["nats_per_token"], abs=1e-5)
    assert load_model(Path("hf")).cross_document_attention is False
