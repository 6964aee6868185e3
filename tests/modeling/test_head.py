"""The chunked head equals the plain one in value and gradient."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megalit.modeling import head
from megalit.modeling.head import CrossEntropy, Head, LossTerm, Rows, ZLoss

VOCABULARY, POSITIONS = 31, 23


class Confidence:
    """A term of a user's: the sum of the largest logits, at all positions."""

    name = "confidence"

    def __call__(self, logits_NV: torch.Tensor, rows: Rows) -> torch.Tensor:
        return (rows["weights"] * logits_NV.float().amax(dim=-1)).sum()


def inputs() -> tuple[Head, torch.Tensor, dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    module = Head(8, VOCABULARY)
    module.weight.data = torch.randn(VOCABULARY, 8, generator=random)
    hidden = torch.randn(POSITIONS, 8, generator=random, requires_grad=True)
    targets = torch.randint(VOCABULARY, (POSITIONS,), generator=random)
    targets[[0, 5, 22]] = -100
    return module, hidden, {"targets": targets, "weights": torch.rand(POSITIONS, generator=random)}


def plain(module: Head, hidden: torch.Tensor, rows: Rows, names: list[str]) -> torch.Tensor:
    logits = hidden @ module.weight.T
    valid = rows["targets"] != -100
    values = {
        "cross_entropy": F.cross_entropy(logits, rows["targets"], reduction="sum"),
        "z_loss": 0.1 * (logits.logsumexp(-1)[valid] ** 2).sum(),
        "confidence": (rows["weights"] * logits.max(-1).values).sum(),
    }
    return torch.stack([values[name] for name in names])


@pytest.mark.parametrize("chunk_logits", [1, 400, 10**9])
@pytest.mark.parametrize("terms", [[CrossEntropy()], [CrossEntropy(), ZLoss(0.1)], [ZLoss(0.1), Confidence()]])
@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients_match_the_plain_version(
    chunk_logits: int, terms: list[LossTerm], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled and chunk_logits != 400:
        pytest.skip("compiled once")
    monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", chunk_logits)
    module, hidden, rows = inputs()
    if compiled:
        module.evaluate = torch.compile(module.evaluate)
    expected = plain(module, hidden, rows, [term.name for term in terms])
    of_plain = torch.autograd.grad(expected.sum() / 7, (hidden, module.weight))
    sums = module(hidden, rows, terms)
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(torch.autograd.grad(sums.sum() / 7, (hidden, module.weight)), of_plain)

    each = module(hidden, rows)
    assert (each[[0, 5, 22]] == 0).all()
    torch.testing.assert_close(each.sum(), plain(module, hidden, rows, ["cross_entropy"])[0])


def test_chunks_are_summed_in_float32_whatever_the_default_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's bf16-true makes bfloat16 the default: sums of chunks would keep two or three digits."""
    monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", 400)
    module, hidden, rows = inputs()
    expected = module(hidden, rows, [CrossEntropy()])
    before = torch.ones(()).dtype
    torch.set_default_dtype(torch.bfloat16)
    try:
        sums = module(hidden, rows, [CrossEntropy()])
    finally:
        torch.set_default_dtype(before)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, expected)


def test_the_weights_gradient_is_not_rounded_to_the_type_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast each chunk's share is bfloat16; their sum keeps what float32 holds of it."""
    monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", 400)
    module, hidden, rows = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        module(hidden, rows, [CrossEntropy()]).sum().backward()
    grad = module.weight.grad
    assert grad is not None
    assert grad.dtype == torch.float32
    assert (grad != grad.bfloat16()).any()


def test_chunks_are_even_where_they_are_large() -> None:
    assert head.chunk_positions(2**29, 128_256) == 4096
    assert head.chunk_positions(2**24, 128_256) == 128
    assert head.chunk_positions(400, 300) == 1
    assert head.chunk_positions(400, 4000) == 1


def test_logits_of_a_large_vocabulary_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that a forward and backward pass makes is as large as a few rows of logits."""
    monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", 4 * 128_256)
    module = Head(4, 128_256)
    hidden = torch.randn(64, 4, requires_grad=True)
    rows = {"targets": torch.randint(128_256, (64,))}
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            nonlocal largest
            out = function(*arguments, **(keywords or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        module(hidden, rows, [CrossEntropy(), ZLoss(1e-4)]).sum().backward()
        module(hidden, rows)
    assert hidden.grad is not None
    assert 4 * 128_256 <= largest < 8 * 128_256


def test_half_precision_is_cast_as_autocast_would() -> None:
    module, hidden, rows = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        sums = module(hidden, rows, [CrossEntropy()])
        logits = F.linear(hidden, module.weight)
    assert logits.dtype == torch.bfloat16
    expected = F.cross_entropy(logits.float(), rows["targets"], reduction="sum")
    torch.testing.assert_close(sums[0], expected)
    (grad,) = torch.autograd.grad(sums.sum(), module.weight)
    assert grad.dtype == torch.float32
