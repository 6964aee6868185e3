"""``megalit generate`` as its users meet it: killed, divided, told to end, and refused."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from running import Run, start
from scripted import CONFIG


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
    scripted: Path, run: Run, tmp_path: Path, kills: int
) -> None:
    assert run("generate", "--config", scripted, "--output", "undisturbed") == 0
    scripted.write_text(CONFIG.replace("SECONDS", "0.05" if kills == 3 else "0.3"))
    in_flight = ["--config", str(scripted)]
    assert kill_until_finished(tmp_path, in_flight, kills, 0) >= min(kills, 2)
    assert table(tmp_path / "out") == table(tmp_path / "undisturbed")


def test_a_torn_segment_two_shards_and_another_division(scripted: Path, run: Run, tmp_path: Path) -> None:
    assert run("generate", "--config", scripted, "--output", "undisturbed") == 0
    scripted.write_text(CONFIG.replace("SECONDS", "0.05"))
    shards = [start("generate", "--config", scripted, "--shard", f"{n}/2", folder=tmp_path) for n in range(2)]
    while sum(path.stat().st_size > 4000 for path in (tmp_path / "out" / "journal").glob("*.jsonl")) < 2:
        assert any(process.poll() is None for process in shards)
        time.sleep(0.05)
    for process in shards:
        process.kill()
        process.communicate()
    torn(tmp_path)
    shards = [start("generate", "--config", scripted, "--shard", f"{n}/3", folder=tmp_path) for n in range(3)]
    for process in shards:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert table(tmp_path / "out") == table(tmp_path / "undisturbed")


def test_a_full_disk_loses_nothing(scripted: Path, run: Run, tmp_path: Path) -> None:
    assert run("generate", "--config", scripted, "--output", "undisturbed") == 0
    # No file may grow beyond this: the journal's segment fills up in the middle of a record.
    command = f"ulimit -f 8; exec megalit generate --config {scripted}"
    limited = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert limited.returncode == 2
    assert "the disk is full or a quota is reached" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert sum(path.stat().st_size for path in (tmp_path / "out" / "journal").glob("*")) > 4000
    assert run("generate", "--config", scripted) == 0
    assert table(tmp_path / "out") == table(tmp_path / "undisturbed")


def test_a_process_that_is_told_to_end_says_how_to_go_on(scripted: Path, tmp_path: Path) -> None:
    scripted.write_text(CONFIG.replace("SECONDS", "0.3"))
    process = start("generate", "--config", scripted, folder=tmp_path)
    while not list((tmp_path / "out" / "journal").glob("*.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the same command continues" in errors
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "out" / "status" / "0-of-1.json").read_text())["state"] == "stopped"


def test_status_adds_the_shards_up(
    scripted: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "--config", scripted, "--shard", "0/2") == 0
    assert "other shards have" in capsys.readouterr().err
    file = Path("out/status/0-of-2.json")
    before = file.read_text()
    assert run("generate", "--config", scripted, "--shard", "0/2") == 0
    assert file.read_text() == before, "a shard that has nothing left to make changes nothing"
    file.write_text(
        json.dumps(json.loads(before) | {"state": "running", "done": 1})
    )  # killed behind its last generation
    assert run("generate", "--config", scripted, "--shard", "0/2") == 0
    assert json.loads(file.read_text())["state"] == "finished"
    assert run("generate", "--config", scripted, "--shard", "1/2") == 0
    capsys.readouterr()
    assert run("generate", "--output", "out", "--status") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["shards"] == 2
    assert status["done"] == status["total"] == pq.read_metadata("out/generations.parquet").num_rows
    files = {path.name for path in Path("out/status").iterdir()}
    assert files == {"0-of-2.json", "1-of-2.json"}


def test_the_report_says_what_the_generations_are_like(
    scripted: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    # Every other completion is one and the same text: its second sibling has nothing new.
    engine = ["--engine.texts", '["the same words again and again, always.", "{words}", "I cannot do that."]']
    assert run("generate", "--config", scripted, "--recipe", "Rephrase", *engine) == 0
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
    assert run("generate", "--config", scripted, "--recipe", "Rephrase", *engine) == 0
    assert "is finished" in capsys.readouterr().err
    assert table(Path("out")) == before


def test_the_report_tells_texts_from_what_the_model_wrote(
    scripted: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Draft, review and revision are of the same length here."""
    assert run("generate", "--config", scripted, "--sampling.max_tokens", "15", "--cleaning.truncated", "keep") == 0
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
    scripted: Path, run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    capsys.readouterr()
    assert run("generate", "--config", scripted, *arguments) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert BAD[arguments] in errors[0]


def test_another_recipe_needs_another_folder(scripted: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--config", scripted) == 0
    before = table(Path("out"))
    assert run("generate", "--config", scripted, "--recipe.rounds", "2") == 2
    assert "holds generations with recipe" in capsys.readouterr().err
    assert table(Path("out")) == before


def test_a_mistyped_model_does_not_take_the_folder(
    scripted: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run("generate", "--config", scripted, "--engine", "Transformers", "--engine.model", "some/typo") == 2
    assert "engine.model some/typo cannot be loaded" in capsys.readouterr().err
    assert run("generate", "--config", scripted) == 0
    assert table(Path("out"))


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("configs/generate/*.yaml")), ids=lambda p: p.stem
)
def test_shipped_configurations_are_read(path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--config", path, "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["recipe"]["class_path"]
