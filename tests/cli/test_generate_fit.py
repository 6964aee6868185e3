"""From ``megalit generate`` to training: what ``tokenize`` and ``fit`` make of generations, thoughts and samples."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_sets import DataSet, make_rows, write_jsonl
from running import Run

from megalit.streams.store_set import open_stores

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


def test_generations_thoughts_and_samples_go_on_to_training(scripted: Path, run: Run) -> None:
    assert run("generate", "--config", scripted) == 0
    assert run("generate", "--config", scripted, "--output", "thoughts", "--recipe", "LatentThoughts") == 0
    samples = ["--recipe", "Unconditional", "--total_tokens", "500", "--output", "samples"]
    assert run("generate", "--config", scripted, *samples) == 0
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
    scripted: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so before it holds a second one, with which no stream would open it."""
    for splits in (2, 4):
        flags = ["--output", f"thoughts-{splits}", "--recipe", "LatentThoughts", "--recipe.splits", str(splits)]
        assert run("generate", "--config", scripted, *flags) == 0
    assert tokenize(run, "thoughts-2") == 0
    assert tokenize(run, "thoughts-2") == 0
    capsys.readouterr()
    assert tokenize(run, "thoughts-4") == 2
    said = "stores would hold several sets of thoughts (thoughts-2, thoughts-4): give each its own folder"
    assert said in capsys.readouterr().err
    assert open_stores(Path("stores")).thoughts is not None
    assert fit(run, "LatentThoughtStream")["synthetic_share"] > 0


def test_later_generations_become_a_further_store(scripted: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--config", scripted, "--generations", "2") == 0
    assert tokenize(run, "out") == 0
    first = open_stores(Path("stores")).generations[0].manifest
    assert tokenize(run, "out") == 0  # nothing new, nothing done
    assert run("generate", "--config", scripted, "--generations", "4", "--sampling.temperature", "0.7") == 0
    capsys.readouterr()
    assert tokenize(run, "out") == 0
    assert tokenize(run, "out") == 0
    stores = open_stores(Path("stores")).generations
    assert [store.folder.name for store in stores] == ["out", "out.002"]
    assert stores[0].manifest == first
    assert stores[1].manifest.items == first.items
    assert set(stores[1].items(["generation"]).column(0).to_pylist()) == {2, 3}
    assert run("generate", "--config", scripted, "--generations", "5") == 0
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
    assert run("generate", "--config", scripted, *redo) == 0
    capsys.readouterr()
    assert tokenize(run, "out") == 2
    assert "have been made again since" in capsys.readouterr().err


def test_documents_with_fewer_generations(scripted: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["--engine.texts", '["{words}", "I cannot do that."]', "--recipe", "Rephrase", "--attempts", "1"]
    assert run("generate", "--config", scripted, *texts) == 0
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
    scripted: Path, run: Run, capsys: pytest.CaptureFixture[str]
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
    assert run("generate", "--config", scripted, "--corpus", "data/corpus") == 0
    assert run("fit", "--config", "fit.yaml") == 0


def test_generations_of_another_text_are_refused(
    scripted: Path, run: Run, data_set: DataSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "--config", scripted) == 0
    rows = [{"id": row["id"], "text": row["text"] + " more"} for row in make_rows(40)]
    write_jsonl(Path("documents.jsonl"), rows)
    assert run("corpus", "--inputs", "[documents.jsonl]", "--output", "other", "--validation_fraction", "0.2") == 0
    assert run("tokenize", "--corpus", "other", "--output", "stores", "--generations", "[out]") == 0
    capsys.readouterr()
    Path("fit.yaml").write_text(FIT.replace("STREAM", "SimpleStream").replace("SETTINGS", ""))
    assert run("fit", "--config", "fit.yaml") == 2
    assert "made from another text of the document" in capsys.readouterr().err
