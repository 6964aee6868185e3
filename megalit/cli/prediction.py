"""What ``megalit plan`` says: a run's length, memory, time and disk, as tables or JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from megalit.cli.tables import plan_table, with_lines
from megalit.modeling.memory import Step, StepMemory
from megalit.streams.plan import RunPlan
from megalit.streams.sizes import DataSizes


@dataclass(frozen=True)
class Time:
    """How long training takes: ``device_hours`` at ``mfu`` of the peak of ``devices`` devices called ``device``."""

    device: str
    devices: int
    mfu: float
    device_hours: float

    @property
    def hours(self) -> float:
        return self.device_hours / self.devices


@dataclass(frozen=True)
class Disk:
    """Bytes on disk: the data, one checkpoint, and how many of these are kept."""

    data: DataSizes
    checkpoint: int
    kept: int

    @property
    def checkpoints(self) -> int:
        """With the one that is being written before the oldest goes."""
        return (self.kept + 1) * self.checkpoint


@dataclass(frozen=True)
class Prediction:
    """What a run will take.

    Attributes:
        run: its folder.
        plan: its data plan.
        parameters: total, and without embeddings and output head.
        flops: of training; recomputation and validation do not count.
        step: how a step is spread, as configured.
        memory: of a device, by windows in a pass and gradient checkpointing.
        time: None where the device's peak is not known.
        disk: stores, plan arrays, checkpoints.
        device_memory: bytes that a device has, or None where that is not known.
    """

    run: str
    plan: RunPlan
    parameters: dict[str, int]
    flops: float
    step: Step
    memory: dict[tuple[int, bool], StepMemory]
    time: Time | None
    disk: Disk
    device_memory: float | None

    def to_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "run": self.run,
            "data": "stores" if self.disk.data.measured else "assumed",
            "streams": [{**asdict(stream), "epochs": stream.epochs} for stream in plan.streams],
            "steps": plan.steps,
            "tokens": plan.tokens,
            "unique_real_tokens": plan.unique_real_tokens,
            "synthetic_share": plan.synthetic_share,
            "parameters": self.parameters,
            "flops": self.flops,
            "step": asdict(self.step),
            "memory": [
                {
                    "micro_batch": micro_batch,
                    "gradient_checkpointing": checkpointing,
                    **asdict(memory),
                    "fits": None if self.device_memory is None else memory.peak < self.device_memory,
                }
                for (micro_batch, checkpointing), memory in self.memory.items()
            ],
            "time": None if self.time is None else {**asdict(self.time), "hours": self.time.hours},
            "disk": {
                **asdict(self.disk.data),
                "checkpoint": self.disk.checkpoint,
                "checkpoints": self.disk.checkpoints,
            },
        }


def print_prediction(prediction: Prediction, console: Console) -> None:
    """Print it as tables."""
    title = "plan" if prediction.disk.data.measured else "plan (no stores: sizes are assumed)"
    console.print(plan_table(prediction.plan, title))
    console.print(_memory(prediction))
    console.print(_costs(prediction))


def _memory(prediction: Prediction) -> Group:
    step = prediction.step
    own = prediction.memory[step.micro_batch, step.checkpointing]
    spread = "sharded" if step.sharded else "each with the whole model"
    table = Table(title=f"memory of each of {step.devices} devices, {spread}, {step.precision}", title_justify="left")
    table.add_column("windows in a pass", justify="right")
    for name in ("activations", "head", "most at once", "with checkpointing"):
        table.add_column(name, justify="right")
    for (size, checkpointing), memory in prediction.memory.items():
        if checkpointing:
            continue
        mark = "→ " if size == step.micro_batch else ""
        less = prediction.memory[size, True]
        table.add_row(
            f"{mark}{size}",
            size_of(memory.activations),
            size_of(memory.head),
            _peak(memory, prediction.device_memory),
            _peak(less, prediction.device_memory),
        )
    said = (
        f"weights {size_of(own.weights)}, gradients {size_of(own.gradients)}, optimizer {size_of(own.optimizer)}, "
        f"communication {size_of(own.communication)}, half-precision copies {size_of(own.copies)}; not counted: the "
        "device's context and the allocator's rounding"
    )
    return with_lines(table, [said])


def _peak(memory: StepMemory, available: float | None) -> str:
    fits = "" if available is None or memory.peak < available else " (too much)"
    return f"{size_of(memory.peak)}{fits}"


def _costs(prediction: Prediction) -> Table:
    table = Table(title="costs", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    total, inner = prediction.parameters["total"], prediction.parameters["non_embedding"]
    table.add_row("parameters", f"{total:,} ({inner:,} without embeddings and head)")
    table.add_row("training FLOPs", f"{prediction.flops:.3e}")
    time = prediction.time
    if time is None:
        table.add_row("time", "the device's peak is not known: name it with --gpu")
    else:
        table.add_row(
            f"time at {time.mfu:.0%} MFU",
            f"{time.device_hours:,.1f} {time.device} hours, {time.hours:,.1f} hours on {time.devices}",
        )
        if "bf16" not in prediction.step.precision:  # whose peak it is
            said = f"for trainer.precision bf16-mixed; {prediction.step.precision} takes several times as long"
            table.add_row("", said)
    data, disk = prediction.disk.data, prediction.disk
    table.add_row("token stores", f"{size_of(data.stores)} in {data.store_files:,} files")
    table.add_row("plan arrays on each node", size_of(data.plan_arrays))
    table.add_row(f"checkpoints ({disk.kept} kept, 1 in the writing)", f"{size_of(disk.checkpoints)}")
    return table


def size_of(count: float) -> str:
    """Bytes in words, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
