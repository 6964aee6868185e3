"""A batch script: settings of a job, rendered through a template."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError

from megalit.errors import UserError

TEMPLATE = "slurm.sh.jinja"
# Options of sbatch that the program is told of, too, by a setting that stands for them.
_TOLD = {
    "nodes": "nodes",
    "ntasks": "nodes and tasks_per_node",
    "ntasks-per-node": "tasks_per_node",
    "ntasks-per-gpu": "tasks_per_node",
}


@dataclass(frozen=True)
class SlurmSettings:
    """What a job asks of SLURM, and what stands around the program. Null leaves a choice to the cluster.

    Attributes:
        name: of the job.
        nodes: how many.
        tasks_per_node: processes on each node (default: for `fit` one for each GPU, else 1).
        cpus_per_task: CPU cores of each process.
        gpus_per_node: GPUs of each node, such as 4 or h100:4.
        memory: of each node, such as 64G.
        time: limit, such as "24:00:00" (in quotes).
        partition: where the job runs.
        account: who pays.
        qos: quality of service.
        constraint: features that nodes must have.
        gres: other generic resources of each node, such as gpu:h100:4.
        signal: sent before the time limit: `fit` saves and goes back into the queue.
        signal_seconds: how long before; it has to be enough for a step, a validation and a checkpoint.
        requeue: put a job that was stopped before it was done back into the queue.
        options: further options of sbatch by their long names, such as {exclude: node7, exclusive: null}.
        environment: variables for the program.
        prologue: shell lines before the program, such as module load cuda.
        srun: further words for srun, such as --container-image=image.sqsh.
        container: words before the program, such as apptainer exec --nv image.sif.
        python: Python that runs the program (default: this one).
        template: a script of your site's own instead of the one in the package; Jinja, with the same variables.
    """

    name: str = "megalit"
    nodes: int = 1
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | str | None = None
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    signal: Literal["USR1", "USR2"] = "USR1"
    signal_seconds: int = 120
    requeue: bool = True
    options: dict[str, str | int | None] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    prologue: list[str] = field(default_factory=list)
    srun: str = ""
    container: str = ""
    python: str | None = None
    template: str | None = None

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            UserError: a number below 1, an option that has a setting of its own, or a job's name under which Lightning
                does not see SLURM.
        """
        for name in ("nodes", "tasks_per_node", "cpus_per_task", "signal_seconds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: choose at least 1")
        for name, setting in _TOLD.items():
            if name in self.options:
                raise UserError(f"options.{name} is not told to the program: set {setting} instead")
        if self.name in ("bash", "interactive"):
            raise UserError(f"a job named {self.name} counts as interactive, and its nodes would not work together: "
                            "choose another name")  # fmt: skip

    @property
    def gpus(self) -> int | None:
        """GPUs of each node, wherever they are asked for; None where they are not.

        Raises:
            UserError: their number cannot be read.
        """
        for name in ("gpus-per-task", "gpus-per-socket"):
            # A process that sees its own GPUs alone would not find those that it is told its node has.
            if self.options.get(name) is not None:
                raise UserError(f"options.{name} does not say how many GPUs a node has: set gpus_per_node instead")
        asked = self.gpus_per_node or self.options.get("gpus-per-node")
        resources = str(self.gres or self.options.get("gres") or "").split(",")
        asked = asked or next((part for part in resources if re.match(r"(gres[:/])?gpu\b", part)), None)
        if asked is not None:
            return _count(asked)
        if self.options.get("gpus") is None:
            return None
        whole = _count(self.options["gpus"])
        if whole % self.nodes:
            raise UserError(
                f"options.gpus is {whole}, which {self.nodes} nodes do not share: set gpus_per_node instead"
            )
        return whole // self.nodes


def _count(asked: object) -> int:
    """The number in what SLURM is asked for: "gpu" alone is one; what stands in brackets is where they are."""
    count = re.sub(r"\(.*\)", "", str(asked)).split(":")[-1]
    if count.isdecimal() or count == "gpu":
        return int(count) if count.isdecimal() else 1
    raise UserError(f"how many GPUs '{asked}' are cannot be read: write their number behind it, as in h100:4")


@dataclass(frozen=True)
class Array:
    """The tasks of a job array.

    Attributes:
        count: tasks that the work is divided among.
        each: words that tell a task its part, such as ``--shard {index}/{count}``.
        indices: tasks that are submitted, as SLURM writes them (``2``, ``0-3,7``, ``0-99%4``); default: all.
    """

    count: int
    each: str = ""
    indices: str | None = None

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            UserError: no task, one that there is not, or words with other places to fill.
        """
        if self.count < 1:
            raise UserError(f"array is {self.count}: choose at least 1 task")
        indices = self.numbers
        if not re.fullmatch(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?", indices):
            raise UserError(f"indices are {indices}: write them as 2, or 0-3,7, or 0-99%4")
        largest = max(map(int, re.findall(r"\d+", re.sub(r"[:%]\d+", "", indices))))
        if largest >= self.count:
            raise UserError(f"indices are {indices}, and an array of {self.count} ends with {self.count - 1}")
        try:
            self.words("0")
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"each is '{self.each}': use {{index}} and {{count}} in it, and no other braces") from error

    @property
    def numbers(self) -> str:
        """The tasks that are submitted."""
        return self.indices or f"0-{self.count - 1}"

    def words(self, index: str) -> list[str]:
        """What a task's command has besides."""
        return [word.format(index=index, count=self.count) for word in shlex.split(self.each)]


@dataclass(frozen=True)
class Script:
    """All that a template is given (as ``job``).

    Attributes:
        settings: of the job.
        command: a verb of megalit and its arguments.
        code: folder that holds the package.
        logs: folder of the job's output.
        folder: where the program runs.
        array: its tasks, if it is an array.
        after: job that must have succeeded before.
        saves_itself: the program handles the signal; for another one the shell asks it to end.
        continues: the program goes on where it was stopped, so that there is sense in starting it again after the
            time limit.
    """

    settings: SlurmSettings
    command: Sequence[str]
    code: Path
    logs: Path
    folder: Path
    array: Array | None = None
    after: str | None = None
    saves_itself: bool = False
    continues: bool = True

    @property
    def log(self) -> Path:
        """The job's output, with SLURM's place for the job's id."""
        return self.logs / ("%A_%a.log" if self.array else "%j.log")

    @cached_property
    def options(self) -> list[str]:
        """Options of sbatch, one a line."""
        wanted = self.settings
        signal = f"{'' if self.saves_itself else 'B:'}{wanted.signal}@{wanted.signal_seconds}"
        values: dict[str, str | int | bool | None] = {
            "job-name": wanted.name,
            "nodes": wanted.nodes,
            "ntasks-per-node": wanted.tasks_per_node or 1,
            "cpus-per-task": wanted.cpus_per_task or False,
            "gpus-per-node": wanted.gpus_per_node or False,
            "gres": wanted.gres or False,
            "mem": wanted.memory or False,
            "time": wanted.time or False,
            "partition": wanted.partition or False,
            "account": wanted.account or False,
            "qos": wanted.qos or False,
            "constraint": wanted.constraint or False,
            "array": self.array.numbers if self.array else False,
            "dependency": f"afterok:{self.after}" if self.after else False,
            "kill-on-invalid-dep": "yes" if self.after else False,
            "signal": signal if self.continues else False,
            "requeue" if wanted.requeue else "no-requeue": None,
            "open-mode": "append",
            "output": str(self.log),
            "chdir": str(self.folder),
            **wanted.options,
        }
        return [
            f"--{name}" if value is None else f"--{name}={shlex.quote(str(value))}"
            for name, value in values.items()
            if value is not False
        ]

    @property
    def program(self) -> str:
        """The words of the program for the shell, with an array's index where it belongs."""
        words = [self.settings.python or sys.executable, "-m", "megalit", *self.command]
        quoted = [shlex.quote(word) for word in words]
        if self.array:
            place = "INDEX-OF-THE-TASK"
            each = (shlex.quote(word) for word in self.array.words(place))
            quoted += [word.replace(place, '"$SLURM_ARRAY_TASK_ID"') for word in each]
        return " ".join([*([self.settings.container] if self.settings.container else []), *quoted])

    def render(self) -> str:
        """The script.

        Raises:
            UserError: the template is missing or cannot be filled in.
        """
        environment = Environment(
            loader=PackageLoader("megalit.launch"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,
        )
        environment.filters["quote"] = lambda value: shlex.quote(str(value))
        path = self.settings.template
        try:
            if path is None:
                template = environment.get_template(TEMPLATE)
            elif Path(path).is_file():
                template = environment.from_string(Path(path).read_text())
            else:
                raise UserError(f"template {path} does not exist: name a file, or leave it out for the package's own")
            return template.render(job=self)
        except TemplateError as error:
            raise UserError(f"template {path or TEMPLATE} cannot be filled in ({error}): mend it") from error
