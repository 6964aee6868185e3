"""``megalit slurm`` up to SLURM's door: what it submits, and what it refuses."""

import os
from pathlib import Path

import pytest
import yaml
from running import Run

from megalit.cli import VERBS, slurm
from megalit.launch import SlurmSettings, Submission

GENERATE = """
corpus: corpus
output: out
recipe: {class_path: Rephrase}
engine: {class_path: Scripted}
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for sbatch, which keeps the scripts that it is given and numbers them from 1."""
    folder = tmp_path / "queue"
    folder.mkdir()
    (folder / "sbatch").write_text(
        f'#!/bin/bash\ncd {folder}; number=$(($(ls *.sh 2>/dev/null | wc -l) + 1))\ncp "$2" $number.sh; echo $number\n'
    )
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def options(script: Path) -> list[str]:
    lines = script.read_text().splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


def test_only_what_goes_on_where_it_was_comes_back_at_its_time_limit(tmp_path: Path) -> None:
    """What begins anew would be requeued at its time limit for ever."""
    scripts = {
        verb: slurm._script(Submission(tmp_path), verb, SlurmSettings(), None, None, ()).render()
        for verb in VERBS
        if verb != "slurm"
    }
    going_on = {"fit", "generate", "ensemble", "sweep"}
    assert set(slurm.TRAITS) <= set(scripts)
    for mark in ("#SBATCH --signal=", "Reason=TimeLimit"):
        assert {verb for verb, script in scripts.items() if mark in script} == going_on
    # A node that fails or a preemption sends every job back.
    assert all("#SBATCH --requeue\n" in script for script in scripts.values())


@pytest.mark.parametrize("asked", [("--gres", "gpu:h100:4"), ("--nodes", "2", "--options", "{gpus: 8}")])
def test_a_process_is_started_on_each_gpu_wherever_they_are_asked_for(
    asked: tuple[str, ...], run: Run, from_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*asked, "--prepare", "false", "--dry_run", "--", "fit", "--config", from_files)
    assert run("slurm", *given) == 0
    assert "#SBATCH --ntasks-per-node=4\n" in capsys.readouterr().out


def test_what_users_set_for_all_of_sbatch_fills_in_what_is_left_open(
    run: Run, from_files: Path, queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = queue / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("#!/bin/bash\n", f"#!/bin/bash\nenv > {queue}/environment\n", 1))
    for name, value in (("ACCOUNT", "mine"), ("PARTITION", "old"), ("CPU_BIND", "cores")):
        monkeypatch.setenv(f"SBATCH_{name}", value)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert run("slurm", "--partition", "gpu", "--prepare", "false", "--", "fit", "--config", from_files) == 0
    found = (queue / "environment").read_text().splitlines()
    assert [line for line in found if line.startswith(("SBATCH_", "SLURM_"))] == ["SBATCH_ACCOUNT=mine"]


def test_a_run_is_submitted_behind_its_preparation_with_code_and_configuration(
    run: Run, from_files: Path, queue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.yaml").write_text(
        "partition: gpu\naccount: me\nsignal: USR2\ngpus_per_node: 4\n"
        "preparation: {partition: cpu, cpus_per_task: 16}\n"
    )
    given = (
        "--config",
        "site.yaml",
        "--nodes",
        "2",
        "--",
        "fit",
        "--config",
        from_files,
        "--model.learning_rate",
        "0.5",
    )
    assert run("slurm", *given) == 0
    said = capsys.readouterr()
    assert said.out == "2\n"
    assert f"tail -F {tmp_path}/run/slurm/2.log" in said.err
    preparation, fit = options(queue / "1.sh"), options(queue / "2.sh")
    for wanted in ("--partition=cpu", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=16", "--account=me"):
        assert wanted in preparation
    assert not [option for option in preparation if "gpu" in option]
    for wanted in ("--partition=gpu", "--nodes=2", "--ntasks-per-node=4", "--dependency=afterok:1"):
        assert wanted in fit
    (kept,) = [path for path in (tmp_path / "run" / "slurm").iterdir() if path.is_dir()]
    configuration = yaml.safe_load((kept / "fit.yaml").read_text())
    assert configuration["model"]["learning_rate"] == 0.5
    assert configuration["trainer"]["num_nodes"] == 2
    assert configuration["preemption"]["signals"] == ["SIGUSR1", "SIGTERM", "SIGUSR2"]
    assert configuration["trainer"]["devices"] == 4
    assert (kept / "code" / "megalit" / "callbacks" / "preemption.py").is_file()
    assert (kept / "code" / "COMMIT").exists()
    assert str(kept / "code") in (queue / "2.sh").read_text()
    # What lies there now keeps neither the run from starting nor the same command from another submission.
    here = ("--trainer.num_nodes", "1", "--trainer.devices", "1", "--data.total_tokens", "500")
    assert run("fit", "--config", kept / "fit.yaml", *here) == 0
    assert run("slurm", *given) == 0
    assert capsys.readouterr().out == "3\n"  # the data are there by now
    assert not [option for option in options(queue / "3.sh") if "dependency" in option]


@pytest.mark.parametrize("written", ['preparation: {time: "4:00:00"}', "preparation:\n  time: '4:00:00'\n"])
def test_hours_in_quotes_are_hours_for_the_preparation_too(
    written: str, run: Run, from_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """YAML takes them for 14,400, which are minutes to SLURM; without quotes they are refused, as at the top."""
    (tmp_path / "site.yaml").write_text(f'time: "24:00:00"\noptions: {{gpus: 4}}\n{written}')
    command = ("--config", "site.yaml", "--dry_run", "--", "fit", "--config", from_files)
    assert run("slurm", *command) == 0
    preparation, fit = capsys.readouterr().out.split("#!/bin/bash\n")[1:]
    assert "#SBATCH --time=4:00:00\n" in preparation
    assert "gpu" not in preparation
    assert "#SBATCH --time=24:00:00\n" in fit
    (tmp_path / "site.yaml").write_text("preparation: {time: 4:00:00}")
    assert run("slurm", *command) == 2
    assert "preparation.time: Expected a str" in capsys.readouterr().err


def test_an_array_divides_the_work(run: Run, queue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "generate.yaml").write_text(GENERATE)
    given = ("--array", "8", "--indices", "0-7%2", "--after", "77", "--", "generate", "--config", "generate.yaml")
    assert run("slurm", *given) == 0
    assert capsys.readouterr().out == "1\n"
    assert "--array=0-7%2" in options(queue / "1.sh")
    assert "--dependency=afterok:77" in options(queue / "1.sh")
    assert '--shard "$SLURM_ARRAY_TASK_ID"/8' in (queue / "1.sh").read_text()
    assert (tmp_path / "out" / "slurm").is_dir()


def test_a_dry_run_prints_and_writes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "generate.yaml").write_text(GENERATE)
    assert run("slurm", "--time", "01:00:00", "--dry_run", "--", "generate", "--config", "generate.yaml") == 0
    said = capsys.readouterr().out
    assert said.startswith("#!/bin/bash\n#SBATCH --job-name=megalit\n")
    assert "#SBATCH --time=01:00:00" in said
    assert {path.name for path in tmp_path.iterdir()} == {"generate.yaml"}


REFUSED = {
    (): "no verb is given to submit: put it behind `--`",
    ("--nodes", "2", "fit"): "no verb is given to submit",
    ("--", "train"): "'train' is no verb to submit: choose one of",
    ("--", "slurm"): "'slurm' is no verb to submit",
    ("--bogus", "1", "--", "fit"): "--bogus",
    ("--nodes", "0", "--", "fit"): "nodes is 0: choose at least 1",
    ("--nodes", "many", "--", "fit"): "nodes: Expected a int",
    ("--name", "bash", "--", "fit"): "counts as interactive",
    ("--signal", "0", "--", "fit"): "signal: Expected a Literal['USR1', 'USR2']",
    ("--template", "none.jinja", "--", "corpus"): "template none.jinja does not exist",
    ("--array", "4", "--", "fit"): "would train in one run folder",
    ("--array", "4", "--", "corpus"): "`corpus` does not divide its work as generate, ensemble and sweep do",
    ("--nodes", "2", "--", "generate"): "would make the same generations: give --array",
    ("--nodes", "2", "--array", "3", "--", "ensemble", "--members", "3"): "would train the same members: give --array",
    ("--tasks_per_node", "2", "--", "ensemble"): "would train the same members",
    ("--", "fit", "--data", "RealStream", "--data.real_epochs", "1"): "no token stores are named: set data.stores",
    ("--each", "--shard {index}", "--", "generate"): "give --array",
    ("--preparation", "{nonsense: 1}", "--", "corpus"): "preparation.nonsense: there is no such setting",
    ("--preparation", "{nodes: two}", "--", "corpus"): "preparation.nodes: Expected a int",
    ("--preparation", "{memory: 64}", "--", "corpus"): "preparation.memory: Expected a str",
    ("--options", "{gpus-per-task: 1, ntasks-per-node: 8}", "--", "fit"): "set gpus_per_node instead",
    ("--options", "{ntasks-per-node: 8}", "--", "fit"): "set tasks_per_node instead",
    ("--", "generate", "--bogus", "1"): "--bogus",
    ("--config", "none.yaml", "--", "corpus"): "none.yaml",
}


@pytest.mark.parametrize("given", REFUSED)
def test_bad_input_ends_in_one_line(
    given: tuple[str, ...], run: Run, queue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("slurm", *given) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert REFUSED[given] in said
    assert not list(queue.glob("*.sh"))
    assert {path.name for path in tmp_path.iterdir()} <= {"queue"}


def test_without_slurm_or_where_it_refuses(
    run: Run, queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "generate.yaml").write_text(GENERATE)
    command = ("slurm", "--", "generate", "--config", "generate.yaml")
    (queue / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition specified: none' >&2; exit 1\n")
    assert run(*command) == 2
    assert "SLURM refuses the job (sbatch: error: invalid partition specified: none)" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert run(*command) == 2
    assert "sbatch is not there" in capsys.readouterr().err


def test_a_checkpoint_that_lightning_would_load_unasked_is_refused(
    run: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hpc_ckpt_1.ckpt").touch()
    assert run("fit", "--config", small) == 2
    assert (
        "hpc_ckpt_1.ckpt was saved by Lightning and is no checkpoint of megalit: move it away"
        in capsys.readouterr().err
    )


def test_members_of_an_ensemble_are_tasks_of_an_array(
    run: Run, small: Path, queue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        "--array",
        3,
        "--dry_run",
        "--signal",
        "USR2",
        "--",
        "ensemble",
        "--members",
        3,
        "--chain_weight",
        0.3,
        "--config",
        small,
    )
    assert run("slurm", *given, "--run", "three") == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-2" in script
    (command,) = [line for line in script.splitlines() if "megalit ensemble" in line]
    assert "three/slurm" in command
    assert "--members 3 --chain_weight 0.3 --only" in command
    # A member handles what its job is signalled with.
    assert run("slurm", *(part for part in given if part != "--dry_run"), "--run", "three") == 0
    (kept,) = [path for path in Path("three/slurm").iterdir() if path.is_dir()]
    configuration = yaml.safe_load((kept / "ensemble.yaml").read_text())
    assert configuration["preemption"]["signals"] == ["SIGUSR1", "SIGTERM", "SIGUSR2"]
