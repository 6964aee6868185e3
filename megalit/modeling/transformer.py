"""A Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no bias.

Modules carry the names of transformers' ``LlamaModel``, so that weights map one to one.

Shape suffixes: B windows, T tokens, D hidden, H heads, K key/value heads, E head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megalit.modeling.shapes import Shape


def rotary_angles(length: int, shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions, each of shape ``(length, head_size)``, float32."""
    exponents = torch.arange(0, shape.head_size, 2, dtype=torch.float32, device=device) / shape.head_size
    frequencies = shape.rope_theta**-exponents
    angles_TE = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies).repeat(1, 2)
    return angles_TE.cos(), angles_TE.sin()


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Apply rotary positions (RoFormer, arXiv 2104.09864) in Llama's half-split layout."""
    first, second = x_BHTE.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x_BHTE * cos_TE + turned * sin_TE).to(x_BHTE.dtype)


class Attention(nn.Module):
    """Causal self-attention over the whole window, across documents and megadocs.

    ``scaled_dot_product_attention`` picks FlashAttention where the device has it.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_size = shape.head_size
        self.grouped = shape.heads != shape.kv_heads
        self.q_proj = nn.Linear(shape.hidden_size, shape.heads * shape.head_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shape.kv_heads * shape.head_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shape.kv_heads * shape.head_size, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_size, shape.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        q_BHTE = self._heads(self.q_proj(x_BTD))
        k_BKTE = self._heads(self.k_proj(x_BTD))
        v_BKTE = self._heads(self.v_proj(x_BTD))
        out_BHTE = F.scaled_dot_product_attention(
            rotate(q_BHTE, cos_TE, sin_TE),
            rotate(k_BKTE, cos_TE, sin_TE),
            v_BKTE,
            is_causal=True,
            enable_gqa=self.grouped,
        )
        return self.o_proj(out_BHTE.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_TE, sin_TE)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Transformer(nn.Module):
    """Tokens to hidden states; the output head stands apart (:mod:`megalit.modeling.head`).

    Args:
        shape: widths and depth.
        vocabulary_size: rows of the embedding.
        init_std: standard deviation of the normal initialisation of every matrix.
    """

    def __init__(self, shape: Shape, vocabulary_size: int, init_std: float = 0.02) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(vocabulary_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=init_std)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Final hidden states, ``(B, T, D)``, of tokens ``(B, T)``."""
        cos_TE, sin_TE = rotary_angles(tokens_BT.shape[1], self.shape, tokens_BT.device)
        x_BTD = self.embed_tokens(tokens_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_TE, sin_TE)
        return self.norm(x_BTD)
