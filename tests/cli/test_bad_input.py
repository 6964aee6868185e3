"""Every failure a user can cause: one line with cause and remedy, exit code 2, nothing half-written."""

import gzip
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from data_sets import DataSet, make_rows, write_jsonl
from forks import fork
from running import Run

Refused = Callable[..., str]


@pytest.fixture
def refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused; give its one line."""

    def command(*arguments: str | Path) -> str:
        before = {path for path in tmp_path.rglob("*") if not path.name.endswith(".lock")}
        capsys.readouterr()
        assert run(*arguments) == 2
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("megalit: error:")]
        assert len(errors) == 1
        assert captured.err.rstrip().endswith(errors[0])
        assert "Traceback" not in captured.err
        run_folder = {path for path in tmp_path.rglob("*") if not path.name.endswith(".lock")} - before
        assert not [path for path in run_folder if "run" in path.parts[len(tmp_path.parts) :][:1]]
        return errors[0]

    return command


SHARDED = '{"class_path": "ModelParallelStrategy", "init_args": {"data_parallel_size": 1, "tensor_parallel_size": 1}}'
SWA = '[{"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.01}}]'
CONFIGURATION = {
    ("--bogus", "1"): "--bogus",
    ("--data.bogus", "1"): "data.bogus: there is no such setting",
    ("--model.bogus", "1"): "--model.bogus",
    ("--trainer.bogus", "1"): "--trainer.bogus",
    ("--data", "NoStream"): "no class 'NoStream'",
    ("--data.generations", "many"): "data.generations: Expected a int",
    ("--data.real_document", "middle"): "Literal['last', 'first', 'absent']",
    ("--data.synthetic_fraction", "1.5"): "data.synthetic_fraction is 1.5: choose a value in [0, 1]",
    ("--data.synthetic_fraction", "-0.1"): "data.synthetic_fraction is -0.1: choose a value in [0, 1]",
    ("--data.synthetic_fraction", "0.123456789"): "use at most 4 decimals",
    ("--data.total_tokens", "null"): "give exactly one of data.real_epochs and data.total_tokens",
    ("--data.real_epochs", "2"): "give exactly one of data.real_epochs and data.total_tokens",
    ("--data.total_tokens", "0"): "data.total_tokens is 0: choose a positive value",
    ("--data.generations", "0"): "data.generations is 0: ask for at least 1",
    ("--data.generations", "9"): "has 5: lower data.generations to 5",
    ("--data.context_length", "1000000"): "the real documents have",
    ("--data.context_length", "0"): "data.context_length is 0",
    ("--data.stores", "nowhere"): "holds no token store of real documents",
    ("--model.shape", "huge"): "choose one of nano",
    ("--model.vocabulary_size", "20"): "the token stores need",
    ("--trainer.max_steps", "5"): "use data.real_epochs or data.total_tokens",
    ("--trainer.gradient_clip_val", "1"): "use model.gradient_clip",
    ("--checkpoint.keep", "0"): "checkpoint.keep is 0",
    ("--trainer.limit_train_batches", "3"): "trainer.limit_train_batches is set",
    ("--trainer.fast_dev_run", "true"): "trainer.fast_dev_run is set",
    ("--data.seed", "-1"): "data.seed is -1",
    ("--data.num_workers", "-1"): "data.num_workers is -1",
    ("--data.global_batch_tokens", "-128"): "no multiple of data.context_length",
    ("--model.attention", "flash3"): "it needs an NVIDIA GPU",
    ("--model.regularization.dropout", "1.0"): "model.regularization.dropout is 1.0",
    ("--model.gradient_clip", "0"): "model.gradient_clip is 0.0: choose a positive value, or null",
    ("--trainer.accelerator", "gpu"): "trainer's settings do not work together or not here",
    ("--trainer.strategy", "fsdp"): "trainer's settings do not work together or not here",
    ("--trainer.val_check_interval", "100000"): "trainer.val_check_interval is 100000 steps and the run has",
    ("--trainer.val_check_interval", "00:00:10:00"): "is a time, which ranks would measure each for itself: give steps",
    ("--trainer.precision", "bf16-true"): "in which weight decay and small steps are rounded away: use bf16-mixed",
    ("--trainer.precision", "16-true"): "trainer.precision is 16-true, which this model does not train in",
    ("--trainer.strategy", SHARDED): "there is one device: set trainer.strategy to auto",
    ("--trainer.callbacks", SWA): "which averages nothing here: use EMAWeightAveraging, or a WeightAveraging",
    ("--config", "absent.yaml"): "absent.yaml",
}


@pytest.mark.parametrize("flags", CONFIGURATION, ids=" ".join)
def test_configurations_that_cannot_work(flags: tuple[str, str], refused: Refused, small: Path) -> None:
    assert CONFIGURATION[flags] in refused("fit", "--config", small, *flags)


def test_an_unknown_key_in_a_file_is_named(refused: Refused, small: Path) -> None:
    small.write_text(small.read_text() + "modell: {shape: nano}\n")
    assert "modell" in refused("fit", "--config", small)


def test_real_epochs_have_no_meaning_without_a_real_stream(refused: Refused, small: Path) -> None:
    flags = ("--data.synthetic_fraction", "1", "--data.total_tokens", "null", "--data.real_epochs", "2")
    assert "give data.total_tokens instead" in refused("fit", "--config", small, *flags)


def test_a_folder_that_holds_something_else_is_not_used(refused: Refused, small: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    assert "holds no run (chapter.tex)" in refused("fit", "--config", small, "--run", "thesis")


def _write(tmp_path: Path, name: str, data: bytes) -> str:
    (tmp_path / name).write_bytes(data)
    return name


ROW = {"id": "a", "text": "some words"}
INPUTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing": (lambda p: "absent.jsonl", "absent.jsonl does not exist"),
    "no gzip": (lambda p: _write(p, "x.jsonl.gz", b"plain"), "x.jsonl.gz is not what its ending says"),
    "cut gzip": (lambda p: _write(p, "x.jsonl.gz", gzip.compress(os.urandom(999))[:-20]), "x.jsonl.gz"),
    "no parquet": (lambda p: _write(p, "x.parquet", b"plain"), "x.parquet is not a readable Parquet file"),
    "no JSON": (lambda p: _write(p, "x.jsonl", b"{}]\n"), "x.jsonl line 1 is not JSON"),
    "ending": (lambda p: _write(p, "x.csv", b"a,b\n"), "x.csv has an ending that is not known"),
    "no text": (lambda p: _write(p, "x.jsonl", b'{"id": "a"}\n'), "x.jsonl line 1 has no 'text'"),
    "no id": (lambda p: _write(p, "x.jsonl", b'{"text": "a"}\n'), "x.jsonl line 1 has no 'id'"),
    "twice": (
        lambda p: _write(p, "x.jsonl", (json.dumps(ROW) + "\n").encode() * 2),
        "x.jsonl line 2 repeats the id 'a'",
    ),
    "id": (lambda p: _write(p, "x.jsonl", b'{"id": "\\ud800", "text": "a"}\n'), "'id' holds text that is not Unicode"),
    "style": (
        lambda p: _write(p, "x.jsonl", b'{"id": "a", "text": "b", "generations": [{"style": "\\ud800", "text": "c"}]}'),
        "'style' holds text that is not Unicode",
    ),
    "deep": (lambda p: _write(p, "x.jsonl", b'{"id": ' + b"[" * 100_000), "line 1 is not JSON that can be read"),
    "long": (lambda p: _write(p, "x.jsonl", b'{"id": ' + b"1" * 5000 + b"}"), "line 1 is not JSON that can be read"),
    "empty": (lambda p: _write(p, "x.jsonl", b""), "the corpus is empty"),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("verb", ["corpus", "fit"])
def test_inputs_that_cannot_be_read(name: str, verb: str, refused: Refused, from_files: Path, tmp_path: Path) -> None:
    make, message = INPUTS[name]
    source = make(tmp_path)
    if verb == "corpus":
        line = refused("corpus", "--inputs", f"[{source}]", "--output", "data/corpus")
    else:
        line = refused("fit", "--config", from_files, "--prepare.corpus.inputs", f"[{source}]")
    assert message in line
    assert [path.name for path in (tmp_path / "data").glob("**/*") if path.suffix != ".lock"] == []


def test_synthetic_data_is_asked_for_and_there_is_none(refused: Refused, from_files: Path, tmp_path: Path) -> None:
    rows = [{"id": row["id"], "text": row["text"]} for row in make_rows(40)]
    write_jsonl(tmp_path / "documents.jsonl", rows)
    assert "holds no generations" in refused("fit", "--config", from_files)
    assert "holds no thoughts" in refused("fit", "--config", from_files, "--data", "LatentThoughtStream")


def test_a_preparation_with_other_settings_is_not_mixed_in(run: Run, refused: Refused, from_files: Path) -> None:
    assert run("fit", "--config", from_files, "--run", "first") == 0
    line = refused("fit", "--config", from_files, "--prepare.corpus.validation_fraction", "0.3")
    assert "was built with validation_fraction 0.2, and 0.3 is asked for" in line
    line = refused("fit", "--config", from_files, "--prepare.tokenizer.vocabulary_size", "400")
    assert "was built with vocabulary_size 300, and 400 is asked for" in line


def test_an_input_that_has_changed_is_noticed(run: Run, refused: Refused, from_files: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", from_files, "--run", "first") == 0
    write_jsonl(tmp_path / "documents.jsonl", make_rows(41))
    assert "documents.jsonl has changed since" in refused("fit", "--config", from_files)


def test_a_copy_of_an_input_is_the_same_input(run: Run, from_files: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", from_files, "--run", "first") == 0
    os.utime(tmp_path / "documents.jsonl", (1, 1))
    [corpus] = tmp_path.glob("**/corpus/manifest.json")
    before = json.loads(corpus.read_text())["inputs"]
    assert run("fit", "--config", from_files, "--run", "second") == 0
    # It is read once, and not at each start from then on.
    assert json.loads(corpus.read_text())["inputs"][0]["state"] != before[0]["state"]
    # The stores, too, belong to a corpus that is built from the copy.
    shutil.rmtree(corpus.parent)
    assert run("fit", "--config", from_files, "--run", "third") == 0


def test_stores_of_another_tokenizer_are_not_mixed_in(
    run: Run, refused: Refused, data_set: DataSet, tmp_path: Path
) -> None:
    shutil.copytree(data_set.folder, tmp_path / "stores")
    write_jsonl(tmp_path / "d.jsonl", make_rows(20, seed=3))
    assert run("corpus", "--inputs", "[d.jsonl]", "--validation_fraction", "0.3", "--output", "c") == 0
    assert "was not made by megalit" in refused("tokenize", "--corpus", "c", "--output", "stores")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corpus", "s/real"], "s/real holds no corpus but something else: name a folder that `megalit corpus`"),
        (["--corpus", "noise"], "noise holds no corpus but something else"),
        (["--corpus", "c", "--generations", "[c]"], "c holds no generations but something else: name a folder that"),
        (["--corpus", "c", "--generations", "[s/generations]"], "s/generations holds no generations but"),
    ],
)
def test_folders_that_are_mixed_up(flags: list[str], message: str, made: Path, refused: Refused) -> None:
    assert message in refused("tokenize", *flags, "--output", "other")
    assert not [path for path in made.glob("other*/**/*") if path.suffix != ".lock"], "not even a tokenizer"


@pytest.mark.parametrize("name", ["noise.002", ".noise"])
def test_generations_that_would_be_a_part_of_a_set_or_hidden(name: str, made: Path, refused: Refused) -> None:
    (made / "noise").rename(made / name)
    said = f"a store named '{name}' would be hidden, or a part of another set: rename the folder of the generations"
    assert said in refused("tokenize", "--corpus", "c", "--generations", f"[{name}]", "--output", "other")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "(guard.action was 'drop' and is 'report'): go back to what it was built with, or choose another folder"),
        (["--corpus", "other", "--guard.action", "drop"], "(corpus.inputs[0] was 'd.jsonl' and is 'e.jsonl')"),
    ],
)
def test_stores_that_were_built_from_something_else_say_what(
    flags: list[str], message: str, run: Run, refused: Refused, tmp_path: Path
) -> None:
    for name, output in (("d.jsonl", "c"), ("e.jsonl", "other")):
        write_jsonl(tmp_path / name, make_rows(20, seed=3))
        assert run("corpus", "--inputs", f"[{name}]", "--validation_fraction", "0.3", "--output", output) == 0
    assert run("tokenize", "--corpus", "c", "--guard.action", "drop", "--output", "s") == 0
    assert message in refused("tokenize", "--corpus", "c", "--output", "s", *flags)


@pytest.fixture
def made(run: Run, tmp_path: Path) -> Path:
    """A folder with a corpus, generations and stores."""
    write_jsonl(tmp_path / "d.jsonl", make_rows(20, seed=3))
    assert run("corpus", "--inputs", "[d.jsonl]", "--validation_fraction", "0.3", "--output", "c") == 0
    noise = ["--recipe", "TokenNoise", "--engine", "Scripted", "--cleaning.copy_threshold", "null"]
    assert run("generate", *noise, "--generations", "1", "--corpus", "c", "--output", "noise") == 0
    assert run("tokenize", "--corpus", "c", "--generations", "[noise]", "--output", "s") == 0
    return tmp_path


def test_the_number_of_noisy_generations_is_the_verbs_own(refused: Refused) -> None:
    """A recipe's count would be left out without a word."""
    noise = ["--recipe", "TokenNoise", "--recipe.count", "7", "--engine", "Scripted"]
    assert "recipe.count is how many a preparation makes" in refused("generate", *noise)


@pytest.mark.parametrize("name", ["absent/tokenizer", "./absent"])
def test_a_tokenizer_that_is_not_there(
    name: str, run: Run, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asks no hub: where there is no network, it would be asked again and again for most of a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_jsonl(tmp_path / "d.jsonl", make_rows(20, seed=3))
    assert run("corpus", "--inputs", "[d.jsonl]", "--validation_fraction", "0.3", "--output", "c") == 0
    assert name in refused("tokenize", "--corpus", "c", "--output", "s", "--tokenizer.name", name)


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv = ["megalit", *sys.argv[1:]]
runpy.run_module("megalit", run_name="__main__")
"""


@pytest.mark.parametrize("stage", ["corpus", "checkpoint"])
def test_a_disk_that_is_full(stage: str, small: Path, tmp_path: Path) -> None:
    """The kernel refuses to write beyond a limit, as a full disk or a quota does; then there is room again."""
    if stage == "corpus":
        write_jsonl(tmp_path / "d.jsonl", make_rows(300))
        arguments = ["corpus", "--inputs", "[d.jsonl]", "--output", "made"]
        limit = 20_000
    else:
        arguments = ["fit", "--config", str(small), "--run", "made", "--trainer.logger", "false"]
        limit = 400_000
    script = tmp_path / "limited.py"
    script.write_text(LIMITED.format(limit=limit))
    process = fork(script, *arguments, folder=tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "the disk is full or a quota is reached" in said.splitlines()[-1]
    assert "Traceback" not in said
    left = [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp") or ".building-" in path.name]
    assert left == []
    script.write_text(LIMITED.format(limit=resource.RLIM_INFINITY))
    again = fork(script, *arguments, folder=tmp_path)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
