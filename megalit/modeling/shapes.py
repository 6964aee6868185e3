"""Shapes of models, as data.

The large ones are those of the megadocs paper (arXiv 2603.18534) and its predecessor (arXiv
2509.14786); the tiny ones are for CPUs and tests.
"""

from dataclasses import dataclass

from megalit.errors import UserError


@dataclass(frozen=True)
class Shape:
    """Widths and depth of a Llama-style decoder.

    Attributes:
        hidden_size: width of the residual stream.
        intermediate_size: width of the SwiGLU feed-forward layer.
        layers: number of blocks.
        heads: attention heads; they divide ``hidden_size`` into even parts.
        kv_heads: key and value heads (grouped-query attention); they divide ``heads``.
        rope_theta: base of the rotary positions.
        norm_eps: epsilon of RMSNorm.
        tie_embeddings: use the embedding as the output head too.
        qk_norm: normalize each head's queries and keys (as Qwen3 does, arXiv 2505.09388).

    Raises:
        UserError: numbers that do not divide.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        if min(self.hidden_size, self.intermediate_size, self.layers, self.heads, self.kv_heads) < 1:
            raise UserError("model.shape has a size below 1: choose positive sizes")
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise UserError(
                f"model.shape: {self.heads} heads do not divide the width {self.hidden_size} into even parts: "
                "choose another number of heads"
            )
        if self.heads % self.kv_heads:
            raise UserError(f"model.shape: {self.kv_heads} kv_heads do not divide {self.heads} heads: choose a divisor")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads


SHAPES: dict[str, Shape] = {
    "nano": Shape(64, 192, 2, 2, 2),
    "tiny": Shape(128, 384, 4, 4, 4, tie_embeddings=True),
    "10m": Shape(256, 896, 8, 4, 4, tie_embeddings=True),
    "150m": Shape(512, 1792, 6, 8, 8),
    "300m": Shape(768, 2688, 12, 12, 12),
    "600m": Shape(1024, 3584, 24, 16, 8),
    "1.4b": Shape(2048, 7168, 16, 16, 8),
    "1.5b": Shape(1536, 5376, 36, 16, 8),
}


def shape_of(name_or_shape: str | Shape) -> Shape:
    """The shape of that name.

    Raises:
        UserError: no such name.
    """
    if isinstance(name_or_shape, Shape):
        return name_or_shape
    if name_or_shape not in SHAPES:
        raise UserError(f"model.shape '{name_or_shape}' is not known: choose one of {', '.join(SHAPES)}")
    return SHAPES[name_or_shape]
