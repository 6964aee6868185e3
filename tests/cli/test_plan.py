"""``megalit plan`` against the runs that it predicts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_sets import DataSet
from running import Run

from megalit.modeling.micro_batch import RESERVE
from megalit.scaling.records import read_record
from megalit.streams.plan_arrays import plans_folder


@pytest.fixture
def plan(run: Run, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``megalit plan --json`` and read what it says."""

    def planned(*arguments: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        assert run("plan", *arguments, "--json") == 0
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    return planned


def test_a_run_is_what_was_predicted(run: Run, plan: Any, small: Path, tmp_path: Path) -> None:
    predicted = plan("--config", small)
    assert not (tmp_path / "run").exists()
    assert run("fit", "--config", small) == 0
    record = read_record(tmp_path / "run")
    assert predicted["data"] == "stores"
    assert predicted["steps"] == record.steps
    assert predicted["tokens"] == sum(record.tokens_seen.values())
    assert predicted["unique_real_tokens"] == record.unique_real_tokens
    assert predicted["synthetic_share"] == record.synthetic_share
    assert {stream["name"]: stream["epochs"] for stream in predicted["streams"]} == pytest.approx(record.epochs)
    assert predicted["parameters"] == record.parameters
    assert predicted["flops"] == pytest.approx(record.flops)
    sizes = [path.stat().st_size for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert predicted["disk"]["checkpoint"] == pytest.approx(sizes[-1], rel=0.1)
    assert predicted["disk"]["checkpoints"] == 3 * predicted["disk"]["checkpoint"]


def test_a_checkpoint_is_as_large_as_predicted(run: Run, plan: Any, small: Path, tmp_path: Path) -> None:
    flags = ["--model.shape", "tiny", "--data.total_tokens", "256", "--trainer.limit_val_batches", "0"]
    predicted = plan("--config", small, *flags)
    assert run("fit", "--config", small, *flags) == 0
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert predicted["disk"]["checkpoint"] == pytest.approx(checkpoint.stat().st_size, rel=0.02)


@pytest.mark.parametrize(
    ("stream", "epoch_order"),
    [
        ("RealStream", "documents"),
        ("SimpleStream", "paper"),
        ("StitchedStream", "windows"),
        ("LatentThoughtStream", "paper"),
    ],
)
def test_plan_arrays_and_stores_take_the_room_that_was_predicted(
    plan: Any, small: Path, data_set: DataSet, tmp_path: Path, monkeypatch: Any, stream: str, epoch_order: str
) -> None:
    predicted = plan("--config", small, "--data", stream, "--data.epoch_order", epoch_order)["disk"]
    monkeypatch.setenv("MEGALIT_PLANS", str(tmp_path / "plans"))
    settings = yaml.safe_load(small.read_text())["data"]["init_args"]
    kept = {**settings, "epoch_order": epoch_order}
    if not stream.startswith(("Simple", "Stitched")):
        del kept["generations"]
    from megalit import streams

    data = getattr(streams, stream)(**kept)
    _ = data.plan
    arrays = sum(path.stat().st_size for path in plans_folder().rglob("*.npy"))
    assert predicted["tables"] + predicted["epoch"] == arrays
    stores = [path for store in data_set.stores.all for path in store.folder.iterdir()]
    assert predicted["stores"] == sum(path.stat().st_size for path in stores)
    assert predicted["store_files"] == len(stores)


def sizes(data_set: DataSet) -> list[str]:
    """What ``assume`` would be for the tests' stores."""
    manifest, generations = data_set.stores.real.manifest, data_set.stores.generations[0].manifest
    documents = manifest.items
    per_document = generations.items // documents
    assumed = {
        "documents": documents,
        "real_tokens": manifest.tokens + 2 * documents,
        "generation_tokens": {per_document: generations.tokens + 2 * generations.items},
        "vocabulary_size": manifest.vocabulary_size,
    }
    return ["--assume", json.dumps(assumed)]


@pytest.mark.parametrize(
    ("stream", "epoch_order"), [("RealStream", "paper"), ("SimpleStream", "documents"), ("StitchedStream", "paper")]
)
def test_sizes_that_are_right_give_the_plan_that_the_stores_give(
    plan: Any, small: Path, data_set: DataSet, stream: str, epoch_order: str
) -> None:
    flags = ["--data", stream, "--data.epoch_order", epoch_order, "--data.total_tokens", "null"]
    flags += ["--data.real_epochs", "3"]
    if stream != "RealStream":
        flags += ["--data.generations", "5"]
    of_stores = plan("--config", small, *flags)
    assumed = plan("--config", small, *flags, "--data.stores", "nowhere", *sizes(data_set))
    assert (of_stores["data"], assumed["data"]) == ("stores", "assumed")
    for name in ("streams", "steps", "tokens", "unique_real_tokens", "synthetic_share", "parameters", "flops"):
        assert assumed[name] == of_stores[name], name
    assert assumed["disk"]["epoch"] == of_stores["disk"]["epoch"]


def test_gpus_divide_what_can_be_divided(plan: Any, run: Run, small: Path, capsys: Any) -> None:
    flags = ["--config", small, "--trainer.accelerator", "gpu", "--trainer.precision", "bf16-mixed"]
    one, four = plan(*flags), plan(*flags, "--gpus", "4")
    assert four["time"]["device_hours"] == one["time"]["device_hours"]
    assert four["time"]["hours"] == pytest.approx(one["time"]["hours"] / 4)
    assert one["time"]["device_hours"] * 3600 * 989e12 * 0.4 == pytest.approx(one["flops"])
    assert (one["step"]["windows"], four["step"]["windows"]) == (4, 1)
    assert one["memory"][0]["communication"] == 0 < four["memory"][0]["communication"]
    assert all(entry["fits"] for entry in one["memory"])
    assert run("plan", *flags, "--gpus", "3") == 2
    assert "does not divide among 3 devices" in capsys.readouterr().err


def test_weights_are_planned_with_sizes_that_are_assumed(
    run: Run, plan: Any, small: Path, data_set: DataSet, tmp_path: Path
) -> None:
    """Nothing is known of the tokenizer of stores that are not there."""
    assert run("fit", "--config", small) == 0
    assert run("export", "--run", "run", "--output", "hf") == 0
    flags = ["--data.stores", "nowhere", "--model.weights", "hf", "--model.shape", "null", *sizes(data_set)]
    assert plan("--config", small, *flags)["data"] == "assumed"


def test_the_micro_batch_is_one_that_training_would_take(
    plan: Any, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six windows three or two make equal passes, four do not."""
    flags = ["--config", small, "--trainer.accelerator", "gpu", "--trainer.precision", "bf16-mixed"]
    flags += ["--data.global_batch", "6", "--model.micro_batch", "auto"]
    memory = {
        entry["micro_batch"]: entry["peak"] for entry in plan(*flags)["memory"] if not entry["gradient_checkpointing"]
    }
    for room, found in ((memory[6], 6), (memory[4], 3), (memory[2], 1)):
        monkeypatch.setattr("megalit.cli.plan.device_memory", lambda _, room=room: room / (1 - RESERVE))
        assert plan(*flags)["step"]["micro_batch"] == found


def test_the_tables_name_what_matters(run: Run, small: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run("plan", "--config", small) == 0
    said = capsys.readouterr().out
    for words in (
        "40 steps",
        "windows in a pass",
        "with checkpointing",
        "training FLOPs",
        "plan arrays",
        "checkpoints",
    ):
        assert words in said


@pytest.mark.parametrize(("precision", "slower"), [("32-true", True), ("bf16-mixed", False)])
def test_hours_are_said_to_be_those_of_bf16(
    run: Run, small: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, precision: str, slower: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    flags = ["--trainer.accelerator", "gpu", "--trainer.precision", precision]
    assert run("plan", "--config", small, *flags) == 0
    assert ("for trainer.precision bf16-mixed; 32-true takes" in capsys.readouterr().out) == slower


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.stores", "nowhere"], "nowhere holds no token stores"),
        (["--data.stores", "nowhere", "--assume.documents", "5", "--assume.real_tokens", "500"], "generation_tokens"),
        (["--data.stores", "nowhere", "--assume.documents", "-5"], "choose 0 or more"),
        (["--mfu", "1.5"], "--mfu is 1.5"),
        (["--trainer.precision", "16-mixed"], "not 16-mixed"),
        (["--trainer.max_steps", "5"], "trainer.max_steps"),
    ],
)
def test_what_cannot_be_planned_ends_in_one_line(
    run: Run, small: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert run("plan", "--config", small, *flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("megalit: error:")
    assert words in line
