"""Every backend is causal attention; masked by document, it is a dense mask."""

import math
import sys
from typing import Any

import pytest
import torch

from megalit.errors import UserError
from megalit.modeling import attention
from megalit.modeling.attention import Backend, attend, resolve, split_documents, try_kernel
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.shapes import Shape

BOS = 0
HERE = [
    "sdpa",
    "flex",
    *(pytest.param(name, marks=pytest.mark.gpu) for name in ("auto", "flash2", "flash3", "flash4")),
]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("masked", [False, True])
def test_backends_equal_a_dense_mask(backend: Backend, masked: bool) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    random = torch.Generator().manual_seed(0)
    windows, heads, kv_heads, length, size = 2, 4, 2, 256, 64
    q, k, v = (
        torch.randn(windows, n, length, size, generator=random).to(device, dtype) for n in (heads, kv_heads, kv_heads)
    )
    for part in (q, k, v):
        part.requires_grad_(backend != "flex" or device.type == "cuda")
    tokens = torch.randint(1, 9, (windows, length), generator=random)
    # The first window begins inside a document, the second with one; two documents are empty but for BOS.
    for window, places in enumerate([(40, 41, 200), (0, 128, 255)]):
        tokens[window, list(places)] = BOS
    tokens = tokens.to(device)
    allowed = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if masked:
        number = (tokens == BOS).cumsum(1)
        allowed = allowed & (number[:, None, :, None] == number[:, None, None, :])
    on_gpu = device.type == "cuda"
    try:
        resolved = resolve(backend, device, masked) if on_gpu else backend
        if on_gpu:
            try_kernel(resolved, device, masked, (heads, kv_heads, size))
    except UserError as error:
        if not backend.startswith("flash"):
            raise
        pytest.skip(str(error))  # its package is not there, or does not run on this GPU with this torch
    out = attend(q, k, v, resolved, split_documents(tokens, BOS, resolved) if masked else None)
    expected = dense(q.float(), k.float(), v.float(), allowed)
    loose = {"atol": 2e-2, "rtol": 2e-2} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(out.float(), expected, **loose)
    if backend == "flex" and not on_gpu:  # it has no backward pass there
        return
    direction = torch.randn(expected.shape, generator=random).to(device)
    ours = torch.autograd.grad((out.float() * direction).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * direction).sum(), (q, k, v))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.float(), other.float(), atol=10 * loose["atol"], rtol=loose["rtol"])


def test_a_masked_window_gives_each_document_what_it_gives_alone() -> None:
    model = LanguageModel(
        Shape(32, 48, 2, 2, 2, qk_norm=True),
        vocabulary_size=40,
        init_std=0.3,
        cross_document_attention=False,
        bos=BOS,
    )
    model.configure_model()
    documents = [torch.cat([torch.tensor([BOS]), torch.randint(1, 40, (n,))]) for n in (5, 17, 8)]
    together = torch.cat(documents)[None]
    with torch.no_grad():
        found = model(together)[0].split([len(document) for document in documents])
        for document, logits in zip(documents, found, strict=True):
            # Rotary positions are relative, so it does not matter where a document stands.
            torch.testing.assert_close(logits, model(document[None])[0], atol=1e-4, rtol=1e-4)
        across = LanguageModel(model.shape, vocabulary_size=40)
        across.configure_model()
        across.load_state_dict(model.state_dict())
        assert not torch.allclose(across(together)[0, -1], found[-1][-1], atol=1e-2)


@pytest.mark.parametrize("backend", ["flash2", "flash3", "flash4", "flex"])
def test_kernels_of_gpus_are_refused_elsewhere(backend: Backend) -> None:
    with pytest.raises(UserError, match=f"model.attention is {backend} and the device is cpu"):
        resolve(backend, torch.device("cpu"), False)


def test_kernels_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    # None in their place makes an import fail, where the packages are installed too.
    for module in ("flash_attn_interface", "flash_attn.cute.interface"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"flash-attn.*megalit\[flash-attn\]"):
        resolve("flash2", torch.device("cuda"), False)
    for backend in ("flash3", "flash4"):
        with pytest.raises(UserError, match="torch cannot activate it .*: pip install 'flash-attn-"):
            resolve(backend, torch.device("cuda"), False)  # type: ignore[arg-type]


@pytest.mark.parametrize("masked", [False, True])
def test_a_kernel_that_does_not_run_is_told_before_training(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package may be there and be too new, or refuse this GPU, these heads, or documents, or a backward pass."""
    device, heads = torch.device("cpu"), (4, 2, 16)
    monkeypatch.setitem(attention._BACKENDS, "flash4", attention._sdpa)
    whole, parts = attention.split_documents, []

    def split(tokens: torch.Tensor, bos: int, backend: Backend) -> Any:
        parts.append(int(whole(tokens, bos, backend).number[:, -1]))  # type: ignore[index]
        return whole(tokens, bos, "sdpa")

    monkeypatch.setattr(attention, "split_documents", split)
    with torch.inference_mode():
        try_kernel("flash4", device, masked, heads)
    assert parts == ([3] if masked else [])

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: torch.Tensor) -> torch.Tensor:
            return q.clone()

        @staticmethod
        def backward(ctx: Any, *_: Any) -> Any:
            raise RuntimeError("windowed attention not supported\nmore of it")

    monkeypatch.setitem(attention._BACKENDS, "flash4", lambda q, k, v, documents: Backward.apply(q))
    with pytest.raises(UserError, match=r"run here \(windowed attention not supported\): pip install 'flash-attn-4"):
        try_kernel("flash4", device, masked, heads)


def test_flash_attention_4_is_not_taken_for_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.endswith("_interface") else name)
    with pytest.raises(UserError, match=r"megalit\[flash-attn\]"):
        resolve("flash2", torch.device("cuda"), False)


def test_without_bos_documents_cannot_be_told_apart() -> None:
    model = LanguageModel("nano", vocabulary_size=40, cross_document_attention=False)
    with pytest.raises(UserError, match="set model.bos"):
        model.configure_model()


@pytest.mark.gpu
def test_memory_is_linear_in_the_context() -> None:
    def peak(length: int) -> int:
        model = LanguageModel(Shape(256, 512, 2, 4, 4), vocabulary_size=512, gradient_checkpointing=True)
        model.configure_model()
        model.cuda()
        batch = {name: torch.ones(1, length, dtype=torch.int32, device="cuda") for name in ("tokens", "targets")}
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            model.term_sums(batch).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    peak(1024)
    assert peak(131_072) < 2.5 * peak(65_536)
