"""Sharding over GPUs with FSDP2 (PyTorch FSDP, arXiv 2304.11277), and gradients that may be sharded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from megalit.errors import UserError


def check_sizes(strategy: ModelParallelStrategy, devices: int) -> None:
    """Refuse sizes with which not all devices would share the model.

    Raises:
        UserError: there is one device, or the strategy's sizes are not those of one group of all devices.
    """
    _refuse_one(devices)
    data, tensor = strategy._data_parallel_size, strategy._tensor_parallel_size
    # Lightning's own: a group of the devices of each node shares each matrix.
    data = strategy.num_nodes if data == "auto" else data
    tensor = strategy.num_processes if tensor == "auto" else tensor
    if (data, tensor) != (devices, 1):
        raise UserError(
            f"the strategy's data_parallel_size is {data} and its tensor_parallel_size {tensor}, on {devices} devices: "
            f"set {devices} and 1"
        )


def _refuse_one(devices: int) -> None:
    # It could be trained and not be measured: torch gathers no weights under inference mode where nothing is split.
    if devices == 1:
        raise UserError("the model is to be sharded, and there is one device: set trainer.strategy to auto")


def shard(model: Any, mesh: DeviceMesh, mixed: bool = False) -> None:
    """Shard each block, the rest of the transformer and the head over the data-parallel ranks.

    Args:
        model: a built decoder.
        mesh: of Lightning's strategy.
        mixed: it is trained under autocast in bfloat16. Blocks and head are then gathered in that type, which they
            compute in anyway, and their gradients are summed over ranks in float32 (the head's, over chunks, too, but
            rounded between the two). The embedding stays in float32: a frequent token's gradient is a sum over all its
            places.

    Raises:
        UserError: there is one device; embedding and head are one matrix, which cannot be sharded in two places; or
            the mesh splits matrices, which this model does not do.
    """
    _refuse_one(torch.distributed.get_world_size())
    ranks = mesh["data_parallel"]
    if ranks.size() != torch.distributed.get_world_size():
        raise UserError(
            f"the strategy splits the {torch.distributed.get_world_size()} devices in {ranks.size()} data-parallel "
            "groups: set its tensor_parallel_size to 1 and data_parallel_size to the number of devices"
        )
    if model.shape.tie_embeddings:
        raise UserError(
            "the model is to be sharded and its embeddings are tied: choose a model.shape without tie_embeddings"
        )
    policy = MixedPrecisionPolicy()
    if mixed:
        # What comes in has its type already, or is meant to keep it: rotary angles.
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.transformer.layers:
        fully_shard(layer, mesh=ranks, mp_policy=policy)
    fully_shard(model.transformer, mesh=ranks)
    fully_shard(model.lm_head, mesh=ranks, mp_policy=policy)


@contextmanager
def without_gradient_sync(model: Any) -> Iterator[None]:
    """Keep the gradients of a micro-batch on their rank until the last one."""
    parts = (model.transformer, model.lm_head)
    for part in parts:
        part.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        for part in parts:
            part.set_requires_gradient_sync(True)


def clip_gradients(model: nn.Module, largest: float | None) -> Tensor:
    """Clip the gradient's norm over all parameters, and give what it was: a scalar."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if largest is not None:
        factor = torch.clamp(largest / (norm + 1e-6), max=1.0)
        # Where the factor is 1 the pass over all gradients is saved; to look at it on a GPU would wait for the device.
        if factor.device.type != "cpu" or factor < 1:
            torch._foreach_mul_(gradients, factor)
    return norm
