"""A Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no bias.

Modules carry the names of transformers' ``LlamaModel``, so that weights map one to one.

Shape suffixes: B windows, T tokens, D hidden, H heads, K key/value heads, E head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megalit.errors import UserError
from megalit.modeling.attention import Backend, Documents, attend
from megalit.modeling.shapes import Shape


@dataclass(frozen=True)
class Regularization:
    """Noise in training that keeps a model from learning repeated data by heart.

    Attributes:
        dropout: of each block's two contributions to the residual stream (arXiv 1207.0580).
        stochastic_depth: chance that a window skips the last block; the chance rises linearly with depth
            (arXiv 1603.09382, section 3).

    Raises:
        UserError: a value outside [0, 1).
    """

    dropout: float = 0.0
    stochastic_depth: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < 1:
                raise UserError(f"model.regularization.{name} is {value}: choose a value in [0, 1)")

    @property
    def is_on(self) -> bool:
        return any(vars(self).values())


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


class RMSNorm(nn.RMSNorm):
    """RMSNorm (arXiv 1910.07467) in the type of its input: of two types, torch takes a slow path."""

    def forward(self, x: Tensor) -> Tensor:
        # Autocast on CUDA would compute it, and give its output, in float32.
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal self-attention with grouped queries; see :mod:`megalit.modeling.attention`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_size = shape.head_size
        self.backend: Backend = "sdpa"
        self.q_proj = nn.Linear(shape.hidden_size, shape.heads * shape.head_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shape.kv_heads * shape.head_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shape.kv_heads * shape.head_size, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_size, shape.hidden_size, bias=False)
        if shape.qk_norm:
            self.q_norm = RMSNorm(shape.head_size, eps=shape.norm_eps)
            self.k_norm = RMSNorm(shape.head_size, eps=shape.norm_eps)
        self.qk_norm = shape.qk_norm

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor, documents: Documents | None) -> Tensor:
        q_BHTE = self._heads(self.q_proj(x_BTD))
        k_BKTE = self._heads(self.k_proj(x_BTD))
        v_BKTE = self._heads(self.v_proj(x_BTD))
        if self.qk_norm:
            q_BHTE, k_BKTE = self.q_norm(q_BHTE), self.k_norm(k_BKTE)
        # Angles and norms are float32; the backends want all three of one type.
        q_BHTE = rotate(q_BHTE, cos_TE, sin_TE).to(v_BKTE.dtype)
        k_BKTE = rotate(k_BKTE, cos_TE, sin_TE).to(v_BKTE.dtype)
        out_BHTE = attend(q_BHTE, k_BKTE, v_BKTE, self.backend, documents)
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
    """One pre-norm decoder layer.

    Args:
        shape: widths.
        dropout: see :class:`Regularization`.
        skip: chance that a window skips this layer in training.
    """

    def __init__(self, shape: Shape, dropout: float = 0.0, skip: float = 0.0) -> None:
        super().__init__()
        self.dropout, self.skip = dropout, skip
        self.input_layernorm = RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor, documents: Documents | None) -> Tensor:
        kept = self._kept(x_BTD)
        x_BTD = x_BTD + self._noisy(self.self_attn(self.input_layernorm(x_BTD), cos_TE, sin_TE, documents), kept)
        return x_BTD + self._noisy(self.mlp(self.post_attention_layernorm(x_BTD)), kept)

    def _noisy(self, x_BTD: Tensor, kept_B11: Tensor | None) -> Tensor:
        if self.dropout:
            x_BTD = F.dropout(x_BTD, self.dropout, self.training)
        return x_BTD if kept_B11 is None else x_BTD * kept_B11

    def _kept(self, x_BTD: Tensor) -> Tensor | None:
        """0 for a window that skips the layer, else a factor that keeps the expected output."""
        if not self.skip or not self.training:
            return None
        kept = torch.rand(len(x_BTD), 1, 1, device=x_BTD.device) >= self.skip
        return kept.to(x_BTD.dtype) / (1 - self.skip)


class Transformer(nn.Module):
    """Tokens to hidden states; the output head stands apart (:mod:`megalit.modeling.head`).

    Args:
        shape: widths and depth.
        vocabulary_size: rows of the embedding.
        init_std: standard deviation of the normal initialisation of every matrix.
        regularization: noise in training.

    Attributes:
        gradient_checkpointing: keep only the input of each layer and compute the rest again in the backward pass.
    """

    def __init__(
        self,
        shape: Shape,
        vocabulary_size: int,
        init_std: float = 0.02,
        regularization: Regularization | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.gradient_checkpointing = False
        noise = regularization or Regularization()
        skips = [noise.stochastic_depth * (layer + 1) / shape.layers for layer in range(shape.layers)]
        self.embed_tokens = nn.Embedding(vocabulary_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape, noise.dropout, skip) for skip in skips)
        self.norm = RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=init_std)

    def set_attention(self, backend: Backend) -> None:
        """Let every layer use this (resolved) backend."""
        for layer in self.layers:
            attention: Any = layer.self_attn
            attention.backend = backend

    def forward(self, tokens_BT: Tensor, documents: Documents | None = None) -> Tensor:
        """Final hidden states, ``(B, T, D)``, of tokens ``(B, T)``."""
        cos_TE, sin_TE = rotary_angles(tokens_BT.shape[1], self.shape, tokens_BT.device)
        x_BTD = self.embed_tokens(tokens_BT)
        kind = tokens_BT.device.type
        if torch.is_autocast_enabled(kind):
            # The residual stream too: in float32 it would double the traffic of every norm and addition.
            x_BTD = x_BTD.to(torch.get_autocast_dtype(kind))
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x_BTD = checkpoint(layer, x_BTD, cos_TE, sin_TE, documents, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, cos_TE, sin_TE, documents)
        return self.norm(x_BTD)
