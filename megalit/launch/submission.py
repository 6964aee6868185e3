"""Submitting a verb: its configuration resolved, its code copied, its script handed to SLURM."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import megalit
from megalit.errors import UserError
from megalit.files import JOBS, new_folder, write_atomic
from megalit.launch.script import Array, Script, SlurmSettings
from megalit.scaling.records import COMMIT, git_commit

# What users set for sbatch in their shell's profile, and the option that each stands for.
_DEFAULTS = {
    "SLURM_CONF": "conf",
    "SLURM_CLUSTERS": "clusters",
    "SBATCH_CLUSTERS": "clusters",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_TIMELIMIT": "time",
}


@dataclass(frozen=True)
class Job:
    """A job that was submitted: its id, the output of it or of its tasks, and its script."""

    id: str
    log: Path
    script: Path

    @property
    def following(self) -> str:
        """The command that shows its output."""
        log = str(self.log).replace("%A", self.id).replace("%j", self.id).replace("%a", "*")
        return f"tail -F {log}"


class Submission:
    """One use of the launcher: a snapshot of the code, and the jobs that run it.

    Everything is in ``slurm/TIME/`` of a folder of results: ``code/``, and for each job its configuration and its
    script. The jobs' output is in ``slurm/``.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: Path) -> None:
        self.logs = folder.absolute() / JOBS
        self.folder = self.logs / _new_name(self.logs)

    def script(
        self,
        settings: SlurmSettings,
        command: Sequence[str],
        array: Array | None = None,
        after: str | None = None,
        saves_itself: bool = False,
        continues: bool = True,
    ) -> Script:
        """The script of a job (the arguments are :class:`~megalit.launch.script.Script`'s).

        Raises:
            UserError: settings that cannot work.
        """
        settings.check()
        if array is not None:
            array.check()
        return Script(
            settings=settings,
            command=command,
            code=self.folder / "code",
            logs=self.logs,
            folder=Path.cwd(),
            array=array,
            after=after,
            saves_itself=saves_itself,
            continues=continues,
        )

    def configuration(self, name: str) -> Path:
        """Where a job's configuration goes."""
        return self.folder / f"{name}.yaml"

    def submit(self, script: Script, name: str, configuration: Mapping[str, Any] | None = None) -> Job:
        """Write the script ``name`` and its configuration, and hand it to SLURM.

        Raises:
            UserError: there is no SLURM, or it refuses the job.
        """
        if shutil.which("sbatch") is None:
            raise UserError(
                "sbatch is not there: submit where SLURM's commands are, or look at the script by --dry_run"
            )
        text = script.render()
        if not script.code.exists():
            _snapshot(script.code)
        if configuration is not None:
            dumped = yaml.safe_dump(dict(configuration), sort_keys=False)
            write_atomic(self.configuration(name), lambda file: file.write(dumped.encode()))
        path = self.folder / f"{name}.sh"
        write_atomic(path, lambda file: file.write(text.encode()))
        # A job that submits another one does not hand down what SLURM told it about itself. What a user has set for all
        # of sbatch would go before the script's own options, so it is kept for those that the script leaves open.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        said = {option.split("=")[0].removeprefix("--") for option in script.options}
        kept = [variable for variable, option in _DEFAULTS.items() if option not in said]
        environment |= {key: os.environ[key] for key in kept if key in os.environ}
        answer = subprocess.run(
            ["sbatch", "--parsable", str(path)], capture_output=True, text=True, env=environment, check=False
        )
        if answer.returncode:
            raise UserError(f"SLURM refuses the job ({_last_line(answer.stderr)}): the script is {path}")
        # With several clusters it says which one behind a semicolon.
        return Job(answer.stdout.strip().split(";")[0], script.log, path)


def resolve(verb: str, arguments: Sequence[str]) -> dict[str, Any]:
    """A verb's whole configuration, as its ``--print_config`` says it.

    Raises:
        UserError: the verb refuses the arguments.
    """
    # This very package answers, wherever the command is given.
    path = [str(Path(megalit.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "megalit", verb, *arguments, "--print_config"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        check=False,
    )
    if asked.returncode:
        raise UserError(_last_line(asked.stderr).removeprefix("megalit: error: "))
    printed: dict[str, Any] = yaml.safe_load(asked.stdout)
    return printed


def _new_name(folder: Path) -> str:
    """A name that no other submission takes, from this process or another."""
    name = first = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    number = 1
    while (folder / name).exists():
        number += 1
        name = f"{first}-{number}"
    return name


def _snapshot(code: Path) -> None:
    """Copy this package, and note the commit that it is from."""
    package = Path(megalit.__file__).parent
    with new_folder(code) as temporary:
        shutil.copytree(package, temporary / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        (temporary / COMMIT).write_text(git_commit() or "")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
