"""Memory of a training step, by arithmetic: what each device holds, and when it holds the most.

Counted are the tensors of :class:`megalit.modeling.language_model.LanguageModel`'s step, uncompiled, one by one: what
autograd saves of a block, what the head makes for a chunk of logits, what the strategy keeps besides the weights. Not
counted: the device's context, libraries' workspaces and the allocator's rounding (1 to 7 GB on a GPU). Compiled
blocks save less.
"""

from dataclasses import dataclass
from typing import Any

from megalit.errors import UserError
from megalit.modeling.decoder import Decoder
from megalit.modeling.head import CHUNK_LOGITS, chunk_positions
from megalit.modeling.shapes import Shape


@dataclass(frozen=True)
class Step:
    """How a training step is spread over devices and passes.

    Attributes:
        devices: that share a global batch.
        sharded: weights, gradients and optimizer states are spread over them (FSDP2), else each has all (DDP).
        windows: a device's share of the global batch.
        micro_batch: windows in a pass.
        context_length: tokens in a window.
        precision: Lightning's: ``32-true`` or ``bf16-mixed``.
        device: ``cuda`` or ``cpu``: the size of a chunk of logits.
        checkpointing: only each layer's input is kept, and the rest is computed again.
    """

    devices: int
    sharded: bool
    windows: int
    micro_batch: int
    context_length: int
    precision: str
    device: str
    checkpointing: bool

    @property
    def passes(self) -> int:
        return -(-self.windows // self.micro_batch)

    @property
    def weight_bytes(self) -> int:
        return 4  # whatever the computation's type

    @property
    def casts(self) -> bool:
        """Whether weights are cast for the computation; sharded ones are gathered in its type."""
        return self.precision == "bf16-mixed" and not self.sharded

    @property
    def activation_bytes(self) -> int:
        return 4 if self.precision == "32-true" else 2


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device.

    Attributes:
        weights, gradients, optimizer: what lasts from step to step.
        communication: buffers of gradients (DDP), or what is gathered for the layer at work (FSDP2).
        copies: of the weights in the type of the computation, where they differ.
        activations: what the backward pass needs of a micro-batch's blocks.
        head: logits of one chunk with their gradients, and the gradients of the head.
        batch: tokens and targets.
        peak: the most at one time. The parts do not all fall together: in a single pass gradients come as activations
            go.
    """

    weights: int
    gradients: int
    optimizer: int
    communication: int
    copies: int
    activations: int
    head: int
    batch: int
    peak: int


def step_memory(model: Decoder, step: Step) -> StepMemory:
    """Memory of one training step of a model, whose weights may lie on the ``meta`` device.

    Raises:
        UserError: a precision that it does not train in.
    """
    if step.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"memory is known for trainer.precision 32-true and bf16-mixed, not {step.precision}")
    shape, vocabulary = model.shape, model.lm_head.weight.shape[0]
    total, inner = model.parameter_counts()
    head_weight = vocabulary * shape.hidden_size
    outer = total - inner
    shards = step.devices if step.sharded else 1

    weights = -(-total * step.weight_bytes // shards)
    # Until the last pass of a step, gradients stay whole on each device.
    whole_gradients = step.sharded and step.passes > 1
    gradients = total * step.weight_bytes // (1 if whole_gradients else shards)
    optimizer = _optimizer_numbers(model) * step.weight_bytes // shards
    largest_block = _block_parameters(shape)
    communication = 0
    if step.sharded:
        # Two blocks, for the next is fetched ahead; embedding and head stay gathered until their backward pass. All but
        # the embedding in the type of the computation (megalit.modeling.sharding.shard).
        gathered = (2 * largest_block + head_weight) * step.activation_bytes
        communication = gathered + (outer - head_weight) * step.weight_bytes
    elif step.devices > 1:
        communication = total * step.weight_bytes

    # Lightning's autocast casts a weight anew in each use, and the backward pass needs what the forward pass has used:
    # of all blocks, or of the one that is computed again.
    copies = 2 * (largest_block if step.checkpointing else inner) if step.casts else 0
    copies_in_head = 0 if step.checkpointing else copies
    tokens = step.micro_batch * step.context_length
    one_block = tokens * _block_bytes(model, step)
    ends = tokens * shape.hidden_size * (_norm_bytes(step) + step.activation_bytes)  # of the last norm
    kept = tokens * shape.hidden_size * step.activation_bytes if step.checkpointing else one_block
    activations = shape.layers * kept + ends
    head, head_left = _head(step, tokens, shape.hidden_size, vocabulary)
    batch = step.windows * step.context_length * 8 + tokens * 8

    lasting = weights + optimizer + communication + batch
    accumulated = gradients if step.passes > 1 else 0
    in_head = lasting + accumulated + copies_in_head + activations + head
    # The last block's backward pass: all activations are there still, and the head's gradient already. The feed-forward
    # layer's gradients come before what they are computed from goes.
    temporary = tokens * 2 * (shape.hidden_size + shape.intermediate_size) * step.activation_bytes
    recomputed = one_block if step.checkpointing else 0
    head_gradient = head_weight * step.weight_bytes // shards if accumulated == 0 else 0
    in_backward = lasting + accumulated + copies + activations + head_left + head_gradient + temporary + recomputed
    # The first block's backward pass comes last: where it is computed again, beside nearly all gradients.
    embedding = (outer - head_weight) * step.weight_bytes
    in_first_block = lasting + gradients - embedding // shards + temporary + recomputed + copies
    in_optimizer = lasting + gradients
    # Summing one more pass' gradient of the embedding needs it twice.
    at_end = lasting + gradients + (outer * step.weight_bytes if accumulated else 0)
    if step.sharded and not accumulated:
        # Embedding and head are summed over devices when no block is gathered any more: their gradients are whole
        # then, beside what is sent of them in float32.
        blocks = 2 * largest_block * step.activation_bytes
        at_end += head_weight * step.activation_bytes + embedding + 4 * outer - blocks
    return StepMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        communication=communication,
        copies=copies,
        activations=activations,
        head=head,
        batch=batch,
        peak=max(in_head, in_backward, in_first_block if step.checkpointing else 0, in_optimizer, at_end),
    )


def _optimizer_numbers(model: Decoder) -> int:
    """Two numbers for each weight; of Muon's matrices one."""
    settings: Any = getattr(model, "optimizer_settings", None)
    total, _ = model.parameter_counts()
    if settings is None or settings.name != "muon":
        return 2 * total
    matrices = sum(p.numel() for layer in model.transformer.layers for p in layer.parameters() if p.ndim == 2)
    return 2 * total - matrices


def _block_parameters(shape: Shape) -> int:
    kv_size = shape.kv_heads * shape.head_size
    matrices = 2 * shape.hidden_size**2 + 2 * shape.hidden_size * kv_size
    matrices += 3 * shape.hidden_size * shape.intermediate_size
    return matrices + 2 * shape.hidden_size + (2 * shape.head_size if shape.qk_norm else 0)


def _block_bytes(model: Decoder, step: Step) -> int:
    """What autograd saves of one block for a token."""
    shape, size = model.shape, step.activation_bytes
    kv_size = shape.kv_heads * shape.head_size
    # What the norms give; queries, keys, values and what attention gives; gate, up, SiLU's result and the product.
    numbers = 2 * shape.hidden_size + 2 * shape.hidden_size + 2 * kv_size + 4 * shape.intermediate_size
    normed = 2 * shape.hidden_size + (shape.hidden_size + kv_size if shape.qk_norm else 0)
    # In float32: each head's logarithm of the softmax' sum.
    dropped = 2 * shape.hidden_size if model.regularization.dropout else 0
    mask = dropped * (size if step.device == "cpu" else 1)
    return numbers * size + normed * _norm_bytes(step) + 4 * shape.heads + mask


def _norm_bytes(step: Step) -> int:
    """What RMSNorm saves of a number of its input.

    The input itself, in one kernel on a GPU; on a CPU the input and the result before the weight, both in float32.
    (The scale of each row is small beside them.)
    """
    return 8 if step.device == "cpu" else step.activation_bytes


def _head(step: Step, tokens: int, hidden: int, vocabulary: int) -> tuple[int, int]:
    """The most bytes while the last chunk is at work, and what of them the backward pass needs."""
    size = step.activation_bytes
    chunk = CHUNK_LOGITS.get(step.device, CHUNK_LOGITS["cpu"])
    positions = min(tokens, chunk_positions(chunk, vocabulary))
    several = positions < tokens
    weight = vocabulary * hidden
    # Logits, their softmax and the gradients of both in float32; the last chunk's gradient, where there was one. Then
    # the logits with their gradient, and the chunk's share of the weight's, which is added to the sum in float32.
    losses = positions * vocabulary * (size + 12 + (size if several else 0))
    products = positions * vocabulary * 2 * size + weight * size
    cast = 2 * weight if step.casts else 0
    left = tokens * hidden * size + weight * (size if step.sharded else step.weight_bytes)
    if several:
        losses += 4 * weight
    if several or step.precision != "32-true":
        products += 4 * weight
    return max(losses, products) + tokens * hidden * size + cast, left
