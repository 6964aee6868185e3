"""Batch scripts, run by bash with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megalit.errors import UserError
from megalit.launch import Array, SlurmSettings, Submission
from megalit.launch.script import Script

# srun takes its own options off and runs the rest; the program writes down its arguments and does as it is told.
COMMANDS = {
    "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "scancel": 'echo "scancel $*" >> called',
    "scontrol": 'if [ "$1" = -o ]; then echo "$STATE"; else echo "$*" >> called; fi',
    "program": 'printf "%s\\0" "$@" > arguments; grep SigIgn /proc/self/status > ignored; eval "$DOES"',
}
RUNNING = "JobId=7 JobState=RUNNING Reason=None"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose ``bin`` stands in for SLURM."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for name, does in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{does}\n")
        path.chmod(0o755)
    return tmp_path


def script(*command: str, array: Array | None = None, **different: object) -> Script:
    wanted = replace(SlurmSettings(python="program"), **different)  # type: ignore[arg-type]
    command = command or ("fit", "--config", "c.yaml")
    behaviour = {"saves_itself": command[0] == "fit", "continues": command[0] != "prepare"}
    return Submission(Path("out")).script(wanted, command, array, **behaviour)


def start(made: Script, does: str = "", state: str = RUNNING, **variables: str) -> "subprocess.Popen[str]":
    Path("job.sh").write_text(made.render())
    job = {"SLURM_JOB_ID": "7", "STATE": state, "DOES": does, **variables}
    environment = {**os.environ, **job, "PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", "job.sh"], env=environment, stderr=subprocess.PIPE, text=True)


def finish(made: Script, does: str = "", state: str = RUNNING, **variables: str) -> int:
    process = start(made, does, state, **variables)
    _, errors = process.communicate(timeout=30)
    assert errors == ""
    return process.returncode


def called() -> str:
    return Path("called").read_text().strip() if Path("called").exists() else ""


def arguments() -> list[str]:
    return Path("arguments").read_text().split("\0")[:-1]


@pytest.mark.usefixtures("here")
class TestScript:
    def test_the_programs_exit_code_is_the_jobs(self) -> None:
        assert finish(script()) == 0
        assert arguments() == ["-m", "megalit", "fit", "--config", "c.yaml"]
        assert finish(script(), "exit 3") == 3
        assert called() == ""

    @pytest.mark.parametrize("code", [75, 130, 143])
    def test_a_job_that_was_stopped_before_it_was_done_goes_back_into_the_queue(self, code: int) -> None:
        assert finish(script(), f"exit {code}") == code
        assert called() == "requeue 7"

    @pytest.mark.parametrize(
        ("state", "requeued"),
        [("JobState=COMPLETING Reason=TimeLimit", True), ("JobState=COMPLETING Reason=None", False), ("", False)],
    )
    def test_a_job_that_its_user_cancels_does_not(self, state: str, requeued: bool) -> None:
        assert finish(script(), "exit 75", state) == 75
        assert called() == ("requeue 7" if requeued else "")

    def test_nor_one_that_begins_anew_each_time_and_has_too_little_time(self) -> None:
        assert finish(script("prepare"), "exit 143", "JobState=COMPLETING Reason=TimeLimit") == 143
        assert called() == ""
        assert finish(script("prepare"), "exit 143") == 143
        assert called() == "requeue 7"

    def test_nor_where_that_is_not_wanted(self) -> None:
        assert finish(script(requeue=False), "exit 75") == 75
        assert called() == ""

    def test_a_task_of_an_array_knows_its_part_and_its_name(self) -> None:
        made = script("generate", "--config", "c.yaml", array=Array(4, "--shard {index}/{count}", "2"))
        assert "#SBATCH --array=2\n" in made.render()
        task = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
        assert finish(made, "exit 130", **task) == 130
        assert arguments()[2:] == ["generate", "--config", "c.yaml", "--shard", "2/4"]
        assert called() == "requeue 7_2"

    def test_the_shell_outlives_sigterm(self) -> None:
        process = start(script(), "touch begun; sleep 1; exit 75")
        while not Path("begun").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75

    def test_a_verb_that_does_not_handle_the_signal_is_asked_to_end(self) -> None:
        made = script("generate")
        assert "#SBATCH --signal=B:USR1@120" in made.render()
        process = start(made, "touch begun; until [ -e called ]; do sleep 0.05; done; exit 130")
        while not Path("begun").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) in (130, 138)
        assert called().splitlines() == ["scancel --signal=TERM 7", "requeue 7"]

    def test_the_signal_does_not_kill_a_program_that_is_just_starting(self) -> None:
        assert "#SBATCH --signal=USR1@120" in script().render()
        finish(script())
        ignored = int(Path("ignored").read_text().split()[1], 16)
        assert ignored >> (signal.SIGUSR1 - 1) & 1

    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(words=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1), max_size=3))
    def test_arguments_arrive_as_they_are(self, words: list[str]) -> None:
        assert finish(script("fit", *words)) == 0
        assert arguments()[3:] == words

    def test_what_a_site_needs_stands_in_the_script(self) -> None:
        made = script(
            nodes=2,
            tasks_per_node=4,
            gpus_per_node=4,
            cpus_per_task=8,
            memory="64G",
            time="12:00:00",
            partition="gpu",
            account="me",
            constraint="h100",
            options={"exclude": "node7", "exclusive": None},
            prologue=["echo loaded > loaded"],
            environment={"NAME": "two words"},
            container="env -u NOTHING",
        )
        lines = [line.removeprefix("#SBATCH ") for line in made.render().splitlines() if line.startswith("#SBATCH")]
        for wanted in (
            *("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=8", "--mem=64G"),
            *("--time=12:00:00", "--partition=gpu", "--account=me", "--constraint=h100", "--exclude=node7"),
            *("--exclusive", "--requeue", "--open-mode=append"),
        ):
            assert wanted in lines
        assert finish(made, 'echo "$NAME" > name') == 0
        assert Path("name").read_text() == "two words\n"
        assert Path("loaded").exists()

    def test_a_sites_own_template(self) -> None:
        Path("mine.jinja").write_text("#!/bin/bash\n# {{ job.settings.nodes }} nodes\n{{ job.program }}\n")
        assert finish(script(template="mine.jinja", nodes=3), "exit 4") == 4
        assert "# 3 nodes" in Path("job.sh").read_text()

    def test_a_template_that_cannot_be_used(self) -> None:
        with pytest.raises(UserError, match=r"nowhere.jinja does not exist"):
            script(template="nowhere.jinja").render()
        Path("bad.jinja").write_text("{{ job.nonsense }}")
        with pytest.raises(UserError, match=r"bad.jinja cannot be filled in .*nonsense"):
            script(template="bad.jinja").render()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (Array(0), "at least 1"),
        (Array(4, "", "4"), "ends with 3"),
        (Array(4, "", "0-9"), "ends with 3"),
        (Array(4, "", "all"), "write them as"),
        (Array(4, "--part {number}"), "use {index} and {count}"),
        (Array(4, "--part {"), "use {index} and {count}"),
    ],
)
def test_arrays_that_cannot_be(array: Array, message: str) -> None:
    with pytest.raises(UserError, match=message):
        array.check()


def test_arrays_that_can_be() -> None:
    for indices in ("3", "0-3", "0-3,5", "0-6:2", "0-7%2"):
        Array(8, "--shard {index}/{count}", indices).check()


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({}, None),
        ({"gres": "tmp:1G"}, None),
        ({"gpus_per_node": 4}, 4),
        ({"gpus_per_node": "h100:4"}, 4),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:2"}, 2),
        ({"gres": "tmp:1G,gpu:h100:4(S:0-1)"}, 4),
        ({"options": {"gpus-per-node": "h100:4"}}, 4),
        ({"options": {"gres": "gres/gpu:3"}}, 3),
        ({"options": {"gpus": 8}}, 8),
        ({"options": {"gpus": "h100:16"}, "nodes": 2}, 8),
    ],
)
def test_gpus_are_counted_wherever_they_are_asked_for(asked: dict[str, Any], gpus: int | None) -> None:
    assert SlurmSettings(**asked).gpus == gpus


def test_gpus_without_a_number_are_refused() -> None:
    with pytest.raises(UserError, match="how many GPUs 'h100' are cannot be read"):
        _ = SlurmSettings(gpus_per_node="h100").gpus


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"options": {"gpus": 8}, "nodes": 3}, "options.gpus is 8, which 3 nodes do not share: set gpus_per_node"),
        ({"options": {"gpus-per-task": 1}}, "options.gpus-per-task does not say how many GPUs a node has"),
        ({"options": {"gpus-per-socket": 2}}, "options.gpus-per-socket does not say how many GPUs a node has"),
    ],
)
def test_gpus_that_cannot_be_counted_for_a_node_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = SlurmSettings(**asked).gpus


@pytest.mark.parametrize("option", ["nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu"])
def test_the_number_of_processes_is_no_option_that_the_program_is_not_told(option: str) -> None:
    with pytest.raises(UserError, match=f"options.{option} is not told to the program: set .* instead"):
        SlurmSettings(options={option: 8}).check()
