"""Hard-label self-distillation from the files in configs/: the commands in the recipe's header, one after the other."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from running import Run

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "distillation" / "hard.yaml"

TEACHER = """
run: runs/teacher
prepare:
  folder: data/mine
  corpus: {inputs: [documents.jsonl], validation_fraction: 0.2}
  tokenizer: {vocabulary_size: 300}
data:
  class_path: RealStream
  init_args: {context_length: 32, global_batch: 4, total_tokens: 2000}
model: {shape: nano, learning_rate: 0.01}
trainer: {accelerator: cpu, devices: 1, limit_val_batches: 0}
"""


def commands() -> list[list[str]]:
    """The arguments of the commands in the recipe's header."""
    lines = [line.removeprefix("#") for line in RECIPE.read_text().splitlines() if line.startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return [shlex.split(line)[1:] for line in text.splitlines() if line.strip().startswith("megalit ")]


@pytest.mark.parametrize("base", ["configs/quickstart.yaml", "configs/megadocs/base.yaml"])
@pytest.mark.parametrize("name", ["distillation/hard", "stream/samples"])
def test_the_files_go_on_top_of_any_run(
    base: str, name: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert run("fit", "--config", base, "--config", f"configs/{name}.yaml", "--print_config") == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    data = resolved["data"]
    assert data["class_path"].endswith("SampleStream")
    assert data["init_args"]["context_length"] == (256 if "quickstart" in base else 4096)
    if name == "distillation/hard":
        # As the paper's own run in full.
        paper = yaml.safe_load((ROOT / "configs/megadocs/self_distillation.yaml").read_text())
        for key in ("real_epochs", "synthetic_fraction"):
            assert data["init_args"][key] == paper["data"]["init_args"][key]
        assert data["init_args"]["total_tokens"] is None
        assert {key: resolved["model"][key] for key in paper["model"]} == paper["model"]


def test_the_recipes_commands_train_a_student(run: Run, from_files: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    Path("mine.yaml").write_text(TEACHER)
    assert run("fit", "--config", "mine.yaml") == 0
    small = {
        "generate": ["--total_tokens", "300", "--sampling.max_tokens", "31", "--engine.batch_size", "4"],
        "fit": ["--data.real_epochs", "0.1"],
    }
    given = commands()
    assert [arguments[0] for arguments in given] == ["export", "generate", "tokenize", "fit"]
    for arguments in given:
        assert run(*arguments, *small.get(arguments[0], [])) == 0, arguments
    record = json.loads(Path("runs/student/record.json").read_text())
    streams = {part["name"]: part for part in record["plan"]["streams"]}
    assert streams["samples"]["share"] == 0.75
    assert streams["real"]["share"] == 0.25
    assert record["tokens_seen"]["samples"] > record["tokens_seen"]["real"] > 0
