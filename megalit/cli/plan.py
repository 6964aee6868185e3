"""``megalit plan``: what the run of a configuration will take, before anything runs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser

from megalit.cli.console import make_console
from megalit.cli.fit_config import FitParser, WithoutTrainer, parse_fit
from megalit.cli.prediction import Disk, Prediction, Time, print_prediction
from megalit.errors import UserError
from megalit.modeling.decoder import Decoder
from megalit.modeling.memory import Step, step_memory
from megalit.modeling.micro_batch import RESERVE, next_smaller
from megalit.scaling.devices import device_memory, peak_flops
from megalit.scaling.records import precision_name
from megalit.streams import StreamDataModule
from megalit.streams.assumed import AssumedData, assume_run
from megalit.streams.plan import RunPlan
from megalit.streams.remote import is_remote
from megalit.streams.sizes import DataSizes, sizes_of_assumed, sizes_of_mixture

# A tensor in a checkpoint besides its numbers: its name, its place in the archive.
_TENSOR_OVERHEAD = 350


class PlanCLI(WithoutTrainer):
    """Parses what ``fit`` parses and runs nothing."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--gpus", type=int, help="Devices of the run (default: the trainer's devices and nodes).")
        parser.add_argument("--gpu", type=str, default="H100", help="Their name, as NVIDIA's sheets have it.")
        parser.add_argument("--mfu", type=float, default=0.4, help="Share of their peak that training reaches.")
        parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
        parser.add_class_arguments(AssumedData, "assume", help="Sizes that stand in where there are no stores.")


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit plan --config …``."""
    cli = parse_fit(PlanCLI, arguments)
    prediction = predict(cli)
    if cli.config_init.json:
        json.dump(prediction.to_json(), sys.stdout, indent=2)
        print()
    else:
        print_prediction(prediction, make_console())


def predict(cli: FitParser) -> Prediction:
    """What the run of a parsed configuration will take.

    Raises:
        UserError: a run that cannot work, or whose data is neither there nor assumed.
    """
    config: Any = cli.config_init
    plan, sizes = _data(cli.datamodule, config)
    model = _on_meta(cli.model, plan)
    on_gpu = config.trainer.accelerator != "cpu"
    devices = config.gpus or _devices(config.trainer)
    if plan.global_batch % devices:
        raise UserError(
            f"data.global_batch is {plan.global_batch} windows and does not divide among {devices} devices: "
            "choose another number of --gpus, or a multiple"
        )
    if not 0 < config.mfu <= 1:
        raise UserError(f"--mfu is {config.mfu}: choose a share in (0, 1]")
    total, inner = model.parameter_counts()
    flops = model.flops_per_token(plan.context_length) * plan.tokens
    memory = device_memory(config.gpu) if on_gpu else None
    own = _step(config, model, plan, devices, memory)
    return Prediction(
        run=config.run,
        plan=plan,
        parameters={"total": total, "non_embedding": inner},
        flops=flops,
        step=own,
        memory={(step.micro_batch, step.checkpointing): step_memory(model, step) for step in _others(own)},
        time=_time(config, flops, devices, on_gpu),
        disk=Disk(data=sizes, checkpoint=_checkpoint(model, own), kept=_kept(config.checkpoint, plan.steps)),
        device_memory=memory,
    )


def _data(data: StreamDataModule, config: Any) -> tuple[RunPlan, DataSizes]:
    """The run's plan and what its data takes: of the stores, or of what is assumed."""
    if data.stores is not None and (is_remote(data.stores) or any(Path(data.stores).glob("[!.]*/manifest.json"))):
        sizes = sizes_of_mixture(data.mixture)
        data.mixture.forget_plans()
        return data.plan, sizes
    assumed: AssumedData = config.assume
    if not assumed.is_given:
        where = f"{data.stores} holds no token stores" if data.stores else "no token stores are named"
        raise UserError(
            f"{where}, so the run's length is not known: build them, or give assume.documents and assume.real_tokens "
            "(configs/megadocs/assume.yaml has those of the megadocs paper)"
        )
    run = assume_run(data.settings, *data.components(), assumed)
    return run.plan, sizes_of_assumed(run, data.epoch_order)


def _on_meta(model: Any, plan: RunPlan) -> Any:
    """The model with its parameters but without their memory."""
    model.check_plan(plan)
    model.check_weights(plan)
    model.vocabulary_size = model.vocabulary_size or plan.vocabulary_size
    model.bos = plan.bos if model.bos is None else model.bos
    with torch.device("meta"):
        # Not the training model's own: it would read, compile and shard the weights.
        Decoder.configure_model(model)
    return model


def _devices(trainer: Any) -> int:
    devices, nodes = trainer.devices, trainer.num_nodes
    if isinstance(devices, list):
        devices = len(devices)
    return int(devices) * nodes if str(devices).isdigit() else nodes


def _step(config: Any, model: Any, plan: RunPlan, devices: int, memory: float | None) -> Step:
    windows = plan.global_batch // devices
    strategy = config.trainer.strategy
    step = Step(
        devices=devices,
        sharded="ModelParallel" in (strategy if isinstance(strategy, str) else type(strategy).__name__),
        windows=windows,
        micro_batch=min(model.micro_batch, windows) if isinstance(model.micro_batch, int) else windows,
        context_length=plan.context_length,
        precision=precision_name(config.trainer.precision),
        device="cpu" if config.trainer.accelerator == "cpu" else "cuda",
        checkpointing=model.gradient_checkpointing,
    )
    if model.micro_batch == "auto" and memory is not None:
        while step.micro_batch > 1 and step_memory(model, step).peak > (1 - RESERVE) * memory:
            step = replace(step, micro_batch=next_smaller(step.micro_batch, windows))
    return step


def _others(step: Step) -> list[Step]:
    """The step with other micro-batches, with and without checkpointing."""
    sizes = {2**power for power in range(step.windows.bit_length())} | {step.micro_batch, step.windows}
    return [
        replace(step, micro_batch=size, checkpointing=checkpointing)
        for size in sorted(sizes)
        for checkpointing in (False, True)
    ]


def _time(config: Any, flops: float, devices: int, on_gpu: bool) -> Time | None:
    peak = peak_flops(config.gpu) if on_gpu else None
    if peak is None:
        return None
    return Time(config.gpu, devices, config.mfu, flops / (peak * config.mfu) / 3600)


def _kept(checkpoint: Any, steps: int) -> int:
    """How many checkpoints a run of so many steps leaves."""
    for_good = steps // checkpoint.keep_every_n_steps if checkpoint.keep_every_n_steps else 0
    return int(checkpoint.keep + for_good)


def _checkpoint(model: Any, step: Step) -> int:
    """Weights and optimizer states, whole, whatever the strategy."""
    tensors = sum(1 for _ in model.parameters())
    whole = step_memory(model, replace(step, devices=1, sharded=False))
    return whole.weights + whole.optimizer + 4 * tensors * _TENSOR_OVERHEAD
