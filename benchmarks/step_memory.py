"""Memory of a training step over two processes, as `megalit plan` predicts it against what torch's allocator held.

DDP and FSDP2 over gloo on the CPU: weights, gradients, optimizer and buffers are shared among processes there as on
GPUs. (One process is measured in tests/modeling/test_memory.py.) Prints one JSON line: predicted over measured.

    python benchmarks/step_memory.py
"""

import gc
import itertools
import json
import os
import socket
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from megalit.modeling import sharding
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.memory import Step, step_memory
from megalit.modeling.shapes import Shape

WORLD, WINDOWS, CONTEXT, VOCABULARY = 2, 4, 128, 8000
SHAPE = Shape(512, 1536, 6, 8, 8)
# Sharded, windows in a pass, gradient checkpointing.
CASES = [(False, 4, False), (False, 2, False), (False, 4, True), (True, 4, False), (True, 2, False), (True, 4, True)]
PRECISIONS = ("32-true", "bf16-mixed")
STEPS = 9


class Terms(torch.nn.Module):
    """What DDP wraps: the loss of a batch."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model.term_sums(batch)


def measure(sharded: bool, micro_batch: int, checkpointing: bool, precision: str) -> float:
    """Predicted over measured peak of one case, on this process."""
    model = LanguageModel(SHAPE, vocabulary_size=VOCABULARY, gradient_checkpointing=checkpointing, seed=0)
    model.configure_model()
    model.train()
    predicted = step_memory(model, Step(WORLD, sharded, WINDOWS, micro_batch, CONTEXT, precision, "cpu", checkpointing))
    mixed = precision == "bf16-mixed"
    run: Any = Terms(model)
    if sharded:
        sharding.shard(model, init_device_mesh("cpu", (WORLD,), mesh_dim_names=("data_parallel",)), mixed=mixed)
    else:
        run = DistributedDataParallel(run)
    optimizer: Any = model.configure_optimizers()
    size = (WINDOWS, CONTEXT)
    batch = {name: torch.randint(1, VOCABULARY, size, dtype=torch.int32) for name in ("tokens", "targets")}

    # As Lightning runs a step that optimizes by hand: all of it under autocast, which keeps no copies for other passes.
    @torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False)
    def step() -> None:
        for first in range(0, WINDOWS, micro_batch):
            part = {name: value[first : first + micro_batch] for name, value in batch.items()}
            waiting = sharding.without_gradient_sync(model) if sharded else run.no_sync()
            with nullcontext() if first + micro_batch == WINDOWS else waiting:
                loss = run(part).sum()
                loss.backward()
                del loss
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    gc.collect()
    # What was there before the step; FSDP2 gathers anew in each.
    lasting = predicted.weights + predicted.optimizer + (0 if sharded else predicted.communication)
    # gloo's threads let go of buffers when they come to it, so peaks of FSDP2 differ from step to step.
    return predicted.peak / (lasting + statistics.median(peak(step) for _ in range(STEPS)))


def peak(step: Callable[[], None]) -> int:
    """The most bytes that a step held at one time beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    now = most = 0
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        now += change
        most = max(most, now)
    return most


def work(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(WORLD))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    found = {}
    for precision, (sharded, micro_batch, checkpointing) in itertools.product(PRECISIONS, CASES):
        strategy = "fsdp2" if sharded else "ddp"
        name = f"{strategy}, {precision}, {WINDOWS // micro_batch} passes{', checkpointing' * checkpointing}"
        found[name] = round(measure(sharded, micro_batch, checkpointing, precision), 3)
        dist.barrier()
    if rank == 0:
        print(json.dumps({"benchmark": "step_memory", **found, "torch": torch.__version__}))
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        chosen = free.getsockname()[1]
    multiprocessing.spawn(work, (chosen,), nprocs=WORLD)
