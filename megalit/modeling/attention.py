"""Causal attention: one function for each backend, over the whole window or inside its documents.

``auto`` is torch's own choice, which on NVIDIA GPUs in half precision is a fused kernel: cuDNN's or FlashAttention 2.
FlashAttention 3 and 4 are activated in torch's registry, so that torch's operator runs on them; FlashAttention 2 of
the ``flash-attn`` package and torch's FlexAttention are called directly.

Shape suffixes: B windows, T tokens, H heads, K key/value heads, E head size.
"""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from megalit.errors import UserError, missing_extra, reason

Backend = Literal["auto", "sdpa", "flash2", "flash3", "flash4", "flex"]

# torch 2.11 takes grouped heads without being told.
_TELLS_GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters

# Where kernels come from that are not torch's own. Later versions of FlashAttention 4 return more than torch 2.13
# takes.
_PACKAGES: dict[str, str] = {"flash2": "flash-attn", "flash3": "flash-attn-3", "flash4": "flash-attn-4==4.0.0b18"}

# Cumulative document lengths are padded to a multiple of this, so that their number seldom changes a shape.
_LENGTHS = 64


@dataclass(frozen=True)
class Documents:
    """Which positions may see each other, where attention stays inside documents.

    Attributes:
        number: of each position's document, ``(B, T)``; only positions of one number see each other. None: all do.
        ends: cumulative lengths of the documents of all windows end to end, padded with their total, int32.
        longest: no document is longer.
        mask: a flex block mask, or a dense mask ``(B, 1, T, T)`` where the backend needs one.
    """

    number: Tensor | None = None
    ends: Tensor | None = None
    longest: int = 0
    mask: Any = None


def resolve(backend: Backend, device: torch.device, masked: bool) -> Backend:
    """The backend that ``auto`` stands for on a device, or the named one if it is there.

    Raises:
        UserError: it needs a GPU or a package that is not there.
    """
    on_gpu = device.type == "cuda"
    if backend == "auto":
        return "flex" if on_gpu and masked else "sdpa"
    if backend != "sdpa" and not on_gpu:
        # FlexAttention runs elsewhere too, but has no backward pass there.
        raise UserError(
            f"model.attention is {backend} and the device is {device.type}: it needs an NVIDIA GPU, choose auto or sdpa"
        )
    if backend == "flash3" and torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] != 9:
        raise UserError("model.attention is flash3 and the GPU is no Hopper (H100, H200): choose auto")
    if backend == "flash2" and not _has_flash2():
        raise missing_extra("flash-attn", "flash-attn", "model.attention flash2")
    if backend in ("flash3", "flash4"):
        _activate(backend)
    return backend


def _has_flash2() -> bool:
    # FlashAttention 4 lies in a package of the same name.
    found = importlib.util.find_spec
    return found("flash_attn") is not None and found("flash_attn.flash_attn_interface") is not None


def try_kernel(backend: Backend, device: torch.device, masked: bool, heads: tuple[int, int, int]) -> None:
    """Run a kernel of another package than torch once, forward and backward, on a short window.

    That a package is there does not say that it runs with this torch, on this GPU, with these heads.

    Args:
        backend: a resolved one.
        device: where it is to run.
        masked: whether attention stays inside documents.
        heads: numbers of heads and of key/value heads, and their size.

    Raises:
        UserError: it does not run.
    """
    if backend not in _PACKAGES:
        return
    number, kv_number, size = heads
    length = 128
    tokens_BT = torch.arange(length, dtype=torch.int32, device=device)[None] % 48
    try:
        # A validation runs in inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            q_BHTE, k_BKTE, v_BKTE = (
                torch.ones(1, n, length, size, dtype=torch.bfloat16, device=device, requires_grad=True)
                for n in (number, kv_number, kv_number)
            )
            documents = split_documents(tokens_BT, 0, backend) if masked else None
            attend(q_BHTE, k_BKTE, v_BKTE, backend, documents).sum().backward()
    except Exception as error:
        raise UserError(
            f"model.attention is {backend} and its kernel does not run here ({reason(error)}): "
            f"pip install '{_PACKAGES[backend]}', or choose auto"
        ) from error


def _activate(backend: str) -> None:
    from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

    implementation = "FA3" if backend == "flash3" else "FA4"
    # It holds for the whole process, so another model may have activated the other one since.
    if current_flash_attention_impl() == implementation:
        return
    try:
        activate_flash_attention_impl(implementation)
    except Exception as error:
        raise UserError(
            f"model.attention is {backend} and torch cannot activate it ({reason(error)}): "
            f"pip install '{_PACKAGES[backend]}', or choose auto"
        ) from error


def whole_window(tokens_BT: Tensor, backend: Backend) -> Documents | None:
    """What a backend needs to attend over the whole window: flex its block mask, made outside of compiled blocks."""
    if backend != "flex":
        return None
    return Documents(mask=_causal_block_mask(tokens_BT.shape[1], tokens_BT.device))


def split_documents(tokens_BT: Tensor, bos: int, backend: Backend) -> Documents:
    """Documents begin at BOS; what stands before the first BOS of a window is the end of another one."""
    begins = tokens_BT == bos
    number = begins.cumsum(1)
    if backend == "flex":
        return Documents(number, mask=_block_mask(number))
    if backend == "sdpa":
        length = tokens_BT.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens_BT.device).tril()
        return Documents(number, mask=(causal & (number[:, :, None] == number[:, None, :]))[:, None])
    begins = begins.clone()
    begins[:, 0] = True
    starts = begins.flatten().nonzero().flatten()
    room = -(-(len(starts) + 1) // _LENGTHS) * _LENGTHS
    ends = torch.full((room,), tokens_BT.numel(), dtype=torch.int32, device=tokens_BT.device)
    ends[: len(starts)] = starts
    return Documents(number, ends=ends, longest=tokens_BT.shape[1])


def _block_mask(number_BT: Tensor) -> Any:
    def same_document(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (number_BT[b, q] == number_BT[b, k])

    windows, length = number_BT.shape
    kind = number_BT.device.type
    return _create_block_mask(kind)(same_document, windows, None, length, length, device=number_BT.device)


def attend(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, backend: Backend, documents: Documents | None) -> Tensor:
    """Causal attention, ``(B, H, T, E)``, of a resolved backend."""
    return _BACKENDS[backend](q_BHTE, k_BKTE, v_BKTE, documents)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, documents: Documents | None) -> Tensor:
    mask = None if documents is None else documents.mask
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda and q.dtype == torch.float32:
        # Of grouped heads in float32, torch has no kernel on GPUs that does not make the whole matrix of scores.
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def _registered(q: Tensor, k: Tensor, v: Tensor, documents: Documents | None) -> Tensor:
    if documents is None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    heads: list[Any] = [*_end_to_end(q, k, v), documents.ends, documents.ends, documents.longest, documents.longest]
    grouped: dict[str, Any] = {"enable_gqa": q.shape[1] != k.shape[1]} if _TELLS_GROUPED else {}
    out: Any = varlen_attn(*heads, window_size=(-1, 0), **grouped)
    return _windows(out, q)


def _flash2(q: Tensor, k: Tensor, v: Tensor, documents: Documents | None) -> Tensor:
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    if documents is None:
        out: Tensor = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True)
        return out.transpose(1, 2)
    ends, longest = documents.ends, documents.longest
    return _windows(flash_attn_varlen_func(*_end_to_end(q, k, v), ends, ends, longest, longest, causal=True), q)


def _flex(q: Tensor, k: Tensor, v: Tensor, documents: Documents | None) -> Tensor:
    mask = _causal_block_mask(q.shape[2], q.device) if documents is None else documents.mask
    # In a compiled block it is compiled with the block; a function compiled apart would break its graph.
    function: Any = flex_attention if torch.compiler.is_compiling() else _flex_attention(q.device.type)
    out: Tensor = function(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out


@cache
def _flex_attention(device: str) -> Callable[..., Any]:
    # Uncompiled it makes the whole matrix of scores.
    function: Any = flex_attention
    return torch.compile(function) if device == "cuda" else function


@cache
def _causal_block_mask(length: int, device: torch.device) -> Any:
    # Kept for training too, where it is first made in a validation.
    with torch.inference_mode(False):
        return _create_block_mask(device.type)(lambda b, h, q, k: q >= k, None, None, length, length, device=device)


@cache
def _create_block_mask(device: str) -> Callable[..., Any]:
    # Uncompiled it makes the whole mask, element by element.
    function: Any = create_block_mask
    return torch.compile(function) if device == "cuda" else function


def _end_to_end(*parts: Tensor) -> list[Tensor]:
    """Heads of all windows' tokens, ``(B * T, heads, E)``."""
    return [part.transpose(1, 2).flatten(0, 1) for part in parts]


def _windows(out: Tensor, q_BHTE: Tensor) -> Tensor:
    return out.unflatten(0, (q_BHTE.shape[0], q_BHTE.shape[2])).transpose(1, 2)


_BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Documents | None], Tensor]] = {
    "sdpa": _sdpa,
    "flash2": _flash2,
    "flash3": _registered,
    "flash4": _registered,
    "flex": _flex,
}
