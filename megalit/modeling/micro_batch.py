"""The largest micro-batch that fits on a GPU."""

import gc
from typing import Any

import torch

from megalit.errors import UserError
from megalit.modeling.decoder import TrainingPlan
from megalit.modeling.out_of_memory import is_out_of_memory

# Share of the GPU's memory that stays free: fragmentation, communication, validation.
RESERVE = 0.05


def find_micro_batch(model: Any, plan: TrainingPlan) -> int | None:
    """Divide a rank's share of the batch until a forward and backward pass fits, optimizer state included.

    All passes of a step have the same size then: for another one at the end, the blocks would be compiled anew for any
    size, which takes more memory.

    Returns:
        Windows in a pass, the same on every rank; None (all of the share) without a GPU.

    Raises:
        UserError: the model is sharded: a rank whose memory runs out in a pass would leave the others waiting in it.
    """
    if getattr(model, "device_mesh", None) is not None:
        raise UserError("model.micro_batch is auto and the model is sharded: give a number of windows")
    if model.device.type != "cuda":
        return None
    share: int = model.trainer.datamodule.global_batch // model.trainer.world_size
    size = share
    while size > 1 and not _fits(model, plan, size, passes=1 if size == share else 2):
        size = next_smaller(size, share)
    torch.cuda.reset_peak_memory_stats(model.device)
    if model.trainer.world_size > 1:
        smallest = torch.tensor(size, device=model.device)
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
        size = int(smallest)
    if size < share:
        # Or compiled code would take the number of windows for one that varies.
        torch._dynamo.reset()
    model.print(f"micro-batch: {size} of {share} windows in a pass")
    return size


def next_smaller(size: int, share: int) -> int:
    """The windows of a pass to try when ``size`` of them do not fit: at most half, and a divisor of a rank's share."""
    return max(part for part in range(1, size // 2 + 1) if share % part == 0)


def _fits(model: Any, plan: TrainingPlan, windows: int, passes: int) -> bool:
    """Whether so many windows fit in a pass, the second of which finds the gradients of the first."""
    # AdamW keeps two numbers for each weight once it has stepped.
    reserved: list[torch.Tensor] = []
    try:
        reserved = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
        total = torch.cuda.get_device_properties(model.device).total_memory
        reserved.append(torch.empty(int(RESERVE * total), dtype=torch.uint8, device=model.device))
        for _ in range(passes):
            _pass(model, windows, plan.context_length)
        return True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        reserved.clear()
        model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()


def _pass(model: Any, windows: int, length: int) -> None:
    """Forward and backward; a function of its own, so that nothing of it is left when memory is given back."""
    # Any token but BOS: a window of these would be as many documents, which kernels for documents keep rows for.
    tokens = torch.full((windows, length), int(model.bos == 0), dtype=torch.int32, device=model.device)
    with model.trainer.precision_plugin.train_step_context():
        loss = model.term_sums({"tokens": tokens, "targets": tokens}).sum()
    loss.backward()
