"""``megalit generate`` as its users meet it: killed, divided, raised, and on to training."""

import json
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from data_sets import DataSet, make_rows, write_jsonl
from running import Run, start

from megalit.streams.store_set import open_stores

CONFIG = """
corpus: corpus
output: out
generations: 3
recipe: {class_path: CritiqueAndRevise, init_args: {chunk_tokens: 40}}
engine: {class_path: Scripted, init_args: {seconds: SECONDS}}
cleaning: {copy_threshold: null}
"""


@pytest.fixture
def config(tmp_path: Path, run: Run) -> Path:
    """A configuration of a scripted engine on a corpus of the user's."""
    write_jsonl(tmp_path / "documents.jsonl", [{k: row[k] for k in ("id", "text")} for row in make_rows(40)])
    assert run("corpus", "--inputs", "[documents.jsonl]", "--output", "corpus", "--validation_fraction", "0.2") == 0
    path = tmp_path / "generate.yaml"
    path.write_text(CONFIG.replace("SECONDS", "0"))
    return path


def table(folder: Path) -> bytes:
    return (folder / "generations.parquet").read_bytes()


def kill_until_finished(folder: Path, arguments: list[str], kills: int, random_seed: int) -> int:
    """Give the same command again and again, killed at random moments; give how often it was killed at work."""
    draw = random.Random(random_seed)
    killed = 0
    while True:
        process = start("generate", *arguments, folder=folder)
        try:
            journal = folder / "out" / "journal"
            size = sum(path.stat().st_size for path in journal.glob("*.jsonl"))
            if killed < kills:
                # Wait until it works, then a random while.
                while process.poll() is None and sum(p.stat().st_size for p in journal.glob("*.jsonl")) == size:
                    time.sleep(0.005)
                process.wait(draw.uniform(0, 0.25))
            else:
                process.wait(120)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        _, errors = process.communicate()
        if process.returncode == 0:
            return killed
        assert process.returncode == -signal.SIGKILL, errors


def torn(folder: Path) -> None:
    """Cut the newest segment inside its last line, as a machine that loses power does."""
    newest = max((folder / "out" / "journal").glob("*.jsonl"))
    newest.write_bytes(newest.read_bytes()[:-7])


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_table_is_as_if_undisturbed(
    config: Path, run: Run, tmp_path: Path, kills: int
) -> None:
    assert run("generate", "--config", config, "--output", "undisturbed") == 0
    config.write_text(CONFIG.replace("SECONDS", "0.05" if kills == 3 else "0.3").replace("out\n", "out\n", 1))
    in_flight = ["--config", str(config)]
    assert kill_until_finished(tmp_path, in_flight, kills, 0) >= min(kills, 2)
    assert table(tmp_path / "out") == table(tmp_path / "undisturbed")


def test_a_torn_segment_two_shards_and_another_division(config: Path, run: Run, tmp_path: Path) -> None:
    assert run("generate", "--config", config, "--output", "undisturbed") == 0
    config.write_text(CONFIG.replace("SECONDS", "0.05"))
    shards = [start("generate", "--config", config, "--shard", f"{n}/2", folder=tmp_path) for n in range(2)]
    while sum(path.stat().st_size > 4000 for path in (tmp_path / "out" / "journal").glob("*.jsonl")) < 2:
        assert any(process.poll() is None for process in shards)
        time.sleep(0.05)
    for process in shards:
        process.kill()
        process.communicate()
    torn(tmp_path)
    shards = [start("generate", "--config", config, "--shard", f"{n}/3", folder=tmp_path) for n in range(3)]
    for process in shards:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert table(tmp_path / "out") == table(tmp_path / "undisturbed")


def test_a_full_disk_loses_nothing(config: Path, run: Run, tmp_path: Path) -> None:
    assert run("generate", "--config", config, "--output", "undisturbed") == 0
    # No file may grow beyond this: the journal's segment fills up in the middle of a record.
    command = f"ulimit -f 8; exec megalit generate --config {config}"
    limited = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert limited.returncode == 2
    assert "the disk is full or a quota is reached" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert sum(path.stat().st_size for path in (tmp_path / "out" / "journal").glob("*")) > 4000
    assert run("generate", "--config", config) == 0
    assert table(tmp_path / "out") == table(tmp_path / "undisturbed")


def test_a_process_that_is_told_to_end_says_how_to_go_on(config: Path, tmp_path: Path) -> None:
    config.write_text(CONFIG.replace("SECONDS", "0.3"))
    process = start("generate", "--config", config, folder=tmp_path)
    while not list((tmp_path / "out" / "journal").glob("*.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the same command continues" in errors
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "out" / "status" / "0-of-1.json").read_text())["state"] == "stopped"


def test_status_adds_the_shards_up(config: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--config", config, "--shard", "0/2") == 0
    assert "other shards have" in capsys.readouterr().err
    file = Path("out/status/0-of-2.json")
    before = file.read_text()
    assert run("generate", "--config", config, "--shard", "0/2") == 0
    assert file.read_text() == before, "a shard that has nothing left to make changes nothing"
    file.write_text(
        json.dumps(json.loads(before) | {"state": "running", "done": 1})
    )  # killed behind its last generation
    assert run("generate", "--config", config, "--shard", "0/2") == 0
    assert json.loads(file.read_text())["state"] == "finished"
    assert run("generate", "--config", config, "--shard", "1/2") == 0
    capsys.readouterr()
    assert run("generate", "--output", "out", "--status") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["shards"] == 2
    assert status["done"] == status["total"] == pq.read_metadata("out/generations.parquet").num_rows
    files = {path.name for path in Path("out/status").iterdir()}
    assert files == {"0-of-2.json", "1-of-2.json"}


def test_the_report_says_what_the_generations_are_like(
    config: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    # Every other completion is one and the same text: its second sibling has nothing new.
    engine = ["--engine.texts", '["the same words again and again, always.", "{words}", "I cannot do that."]']
    assert run("generate", "--config", config, "--recipe", "Rephrase", *engine) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["declined_by_reason"]["refusal"] == report["declined_attempts"] > 0
    assert report["accept_rate"] == pytest.approx(
        report["accepted"] / (report["accepted"] + report["declined_attempts"])
    )
    assert report["new_against_document"] == 1.0
    assert report["new_among_siblings"][0] == 1.0 > report["new_among_siblings"][2]
    assert set(report["words_percentiles"]) == {"5", "25", "50", "75", "95"}
    assert report["text_tokens_percentiles"] == report["tokens_percentiles"], "of a rephrase all is text"
    assert report["cut_share"] == 0
    assert Path("out/report.png").stat().st_size > 10_000
    assert "attempts accepted" in capsys.readouterr().err
    before = table(Path("out"))
    # A report of before these figures is shown without them.
    Path("out/report.json").write_text(
        json.dumps({key: value for key, value in report.items() if key not in ("text_tokens_percentiles", "cut_share")})
    )
    assert run("generate", "--config", config, "--recipe", "Rephrase", *engine) == 0
    assert "is finished" in capsys.readouterr().err
    assert table(Path("out")) == before


def test_the_report_tells_texts_from_what_the_model_wrote(
    config: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Draft, review and revision are of the same length here."""
    assert run("generate", "--config", config, "--sampling.max_tokens", "15", "--cleaning.truncated", "keep") == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["tokens_percentiles"] == {key: 3 * n for key, n in report["text_tokens_percentiles"].items()}
    assert report["cut_share"] == 1
    said = capsys.readouterr().err
    assert "tokens of a generation's text: median" in said
    assert "100.0% of generations were cut at the length limit" in said


BAD: dict[tuple[str, ...], str] = {
    ("--recipe", "null"): "recipe and engine are not both named",
    ("--recipe", "Nothing"): "recipe: there is no class 'Nothing' to choose",
    ("--recipe.chunk_tokens", "0"): "recipe.chunk_tokens is 0",
    ("--engine", "Scripted", "--engine.bogus", "1"): "bogus",
    ("--engine.texts", "[]"): "engine.texts is empty",
    ("--generations", "0"): "generations and attempts are not both at least 1",
    ("--total_tokens", "5"): "total_tokens bounds samples without a document",
    ("--sampling.temperature", "-1"): "sampling.temperature is -1",
    ("--cleaning.copy_threshold", "2"): "cleaning.copy_threshold is 2",
    ("--shard", "2/2"): "give i/n",
    ("--corpus", "nowhere"): "holds no finished corpus",
    ("--output", "corpus"): "was not made by `megalit generate`",
    ("--output", "nothing", "--status"): "holds no status of a shard",
    ("--recipe", "Rephrase", "--recipe.styles", "[nothing]"): "prompt nothing does not exist",
    ("--engine", "Transformers", "--engine.model", "./nowhere"): "engine.model ./nowhere does not exist",
    ("--engine", "Vllm", "--engine.model", "corpus"): "engine.model corpus holds no config.json",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_ends_in_one_line(
    config: Path, run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    capsys.readouterr()
    assert run("generate", "--config", config, *arguments) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert BAD[arguments] in errors[0]


def test_another_recipe_needs_another_folder(config: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--config", config) == 0
    before = table(Path("out"))
    assert run("generate", "--config", config, "--recipe.rounds", "2") == 2
    assert "holds generations with recipe" in capsys.readouterr().err
    assert table(Path("out")) == before


def test_a_mistyped_model_does_not_take_the_folder(
    config: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run("generate", "--config", config, "--engine", "Transformers", "--engine.model", "some/typo") == 2
    assert "engine.model some/typo cannot be loaded" in capsys.readouterr().err
    assert run("generate", "--config", config) == 0
    assert table(Path("out"))


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("configs/generate/*.yaml")), ids=lambda p: p.stem
)
def test_shipped_configurations_are_read(path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--config", path, "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["recipe"]["class_path"]


FIT = """
data:
  class_path: STREAM
  init_args: {stores: stores, context_length: 32, global_batch: 4, total_tokens: 2000SETTINGS}
model: {shape: nano}
trainer: {accelerator: cpu, devices: 1, limit_val_batches: 0}
"""


def fit(run: Run, stream: str, **settings: Any) -> dict[str, Any]:
    """Train a little; give the run's record."""
    text = FIT.replace("STREAM", stream).replace("SETTINGS", "".join(f", {k}: {v}" for k, v in settings.items()))
    Path("fit.yaml").write_text(text)
    name = f"{stream}-{len(list(Path().glob('run-*')))}"
    assert run("fit", "--config", "fit.yaml", "--run", f"run-{name}") == 0
    record: dict[str, Any] = json.loads(Path(f"run-{name}", "record.json").read_text())
    return record


def synthetic_stream(record: dict[str, Any]) -> dict[str, Any]:
    stream: dict[str, Any] = next(part for part in record["plan"]["streams"] if part["name"] != "real")
    return stream


def tokenize(run: Run, *generations: str) -> int:
    listed = ["--generations", f"[{', '.join(generations)}]"]
    return run("tokenize", "--corpus", "corpus", "--output", "stores", "--tokenizer.vocabulary_size", "300", *listed)


def test_generations_thoughts_and_samples_go_on_to_training(config: Path, run: Run) -> None:
    assert run("generate", "--config", config) == 0
    assert run("generate", "--config", config, "--output", "thoughts", "--recipe", "LatentThoughts") == 0
    samples = ["--recipe", "Unconditional", "--total_tokens", "500", "--output", "samples"]
    assert run("generate", "--config", config, *samples) == 0
    assert tokenize(run, "out", "thoughts", "samples") == 0
    stores = open_stores(Path("stores"))
    assert [store.folder.name for store in stores.generations] == ["out"]
    assert stores.thoughts is not None
    assert [store.folder.name for store in stores.samples] == ["samples"]
    for stream in ("StitchedStream", "SimpleStream"):
        assert 0 < synthetic_stream(fit(run, stream, generations=3))["synthetic_fraction"] < 1
    assert fit(run, "LatentThoughtStream")["synthetic_share"] > 0
    drawn = synthetic_stream(fit(run, "SampleStream"))
    assert drawn["synthetic_fraction"] > 0.9  # all but BOS and EOS
    assert drawn["unique_tokens"] > stores.samples[0].manifest.tokens


def test_a_folder_of_stores_holds_one_set_of_thoughts(
    config: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so before it holds a second one, with which no stream would open it."""
    for splits in (2, 4):
        flags = ["--output", f"thoughts-{splits}", "--recipe", "LatentThoughts", "--recipe.splits", str(splits)]
        assert run("generate", "--config", config, *flags) == 0
    assert tokenize(run, "thoughts-2") == 0
    assert tokenize(run, "thoughts-2") == 0
    capsys.readouterr()
    assert tokenize(run, "thoughts-4") == 2
    said = "stores would hold several sets of thoughts (thoughts-2, thoughts-4): give each its own folder"
    assert said in capsys.readouterr().err
    assert open_stores(Path("stores")).thoughts is not None
    assert fit(run, "LatentThoughtStream")["synthetic_share"] > 0


def test_later_generations_become_a_further_store(config: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--config", config, "--generations", "2") == 0
    assert tokenize(run, "out") == 0
    first = open_stores(Path("stores")).generations[0].manifest
    assert tokenize(run, "out") == 0  # nothing new, nothing done
    assert run("generate", "--config", config, "--generations", "4", "--sampling.temperature", "0.7") == 0
    capsys.readouterr()
    assert tokenize(run, "out") == 0
    assert tokenize(run, "out") == 0
    stores = open_stores(Path("stores")).generations
    assert [store.folder.name for store in stores] == ["out", "out.002"]
    assert stores[0].manifest == first
    assert stores[1].manifest.items == first.items
    assert set(stores[1].items(["generation"]).column(0).to_pylist()) == {2, 3}
    assert run("generate", "--config", config, "--generations", "5") == 0
    assert tokenize(run, "out") == 0
    assert len(open_stores(Path("stores")).generations) == 3
    assert fit(run, "StitchedStream", generations=5)["synthetic_share"] > 0
    # What was made again is no addition.
    Path("out").rename("renamed")
    capsys.readouterr()
    assert tokenize(run, "renamed") == 2
    assert "holds generations of the recipe and model of 'renamed'" in capsys.readouterr().err
    Path("renamed").rename("out")
    redo = ["--generations", "5", "--sampling.seed", "9", "--redo", "true"]
    assert run("generate", "--config", config, *redo) == 0
    capsys.readouterr()
    assert tokenize(run, "out") == 2
    assert "have been made again since" in capsys.readouterr().err


def test_documents_with_fewer_generations(config: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["--engine.texts", '["{words}", "I cannot do that."]', "--recipe", "Rephrase", "--attempts", "1"]
    assert run("generate", "--config", config, *texts) == 0
    assert tokenize(run, "out") == 0
    Path("fit.yaml").write_text(FIT.replace("STREAM", "SimpleStream").replace("SETTINGS", ", generations: 3"))
    capsys.readouterr()
    assert run("fit", "--config", "fit.yaml") == 2
    assert "or set data.incomplete to accept" in capsys.readouterr().err
    rows = pq.read_metadata("out/generations.parquet").num_rows
    tokens = open_stores(Path("stores")).generations[0].manifest.tokens
    real = open_stores(Path("stores")).real.manifest
    counts = Counter(open_stores(Path("stores")).generations[0].items(["document_id"]).column(0).to_pylist())
    few, none = sum(counts[name] < 3 for name in counts), real.items - len(counts)
    for stream in ("SimpleStream", "StitchedStream"):
        synthetic = synthetic_stream(fit(run, stream, generations=3, incomplete="accept"))
        capsys.readouterr()
        assert run("inspect", "fit.yaml") == 0
        words = f"{few + none} documents have fewer than 3 generations, {none} of them none"
        assert words in capsys.readouterr().out
        # Every generation there is takes part once, between a BOS and an EOS.
        assert synthetic["unique_tokens"] == tokens + real.tokens + 2 * (rows + real.items)


def test_fit_names_the_command_where_generations_are_missing(
    config: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("fit.yaml").write_text(
        """
prepare: {folder: data, corpus: {inputs: [documents.jsonl], validation_fraction: 0.2}, generations: [out],
          tokenizer: {vocabulary_size: 300}}
data: {class_path: StitchedStream, init_args: {generations: 3, context_length: 32, global_batch: 4, total_tokens: 2000}}
model: {shape: nano}
trainer: {accelerator: cpu, devices: 1, limit_val_batches: 0}
"""
    )
    assert run("fit", "--config", "fit.yaml") == 2
    assert "megalit generate --output out" in capsys.readouterr().err
    assert run("generate", "--config", config, "--corpus", "data/corpus") == 0
    assert run("fit", "--config", "fit.yaml") == 0


def test_generations_of_another_text_are_refused(
    config: Path, run: Run, data_set: DataSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "--config", config) == 0
    rows = [{"id": row["id"], "text": row["text"] + " more"} for row in make_rows(40)]
    write_jsonl(Path("documents.jsonl"), rows)
    assert run("corpus", "--inputs", "[documents.jsonl]", "--output", "other", "--validation_fraction", "0.2") == 0
    assert run("tokenize", "--corpus", "other", "--output", "stores", "--generations", "[out]") == 0
    capsys.readouterr()
    Path("fit.yaml").write_text(FIT.replace("STREAM", "SimpleStream").replace("SETTINGS", ""))
    assert run("fit", "--config", "fit.yaml") == 2
    assert "made from another text of the document" in capsys.readouterr().err
