"""The chunked head equals the plain one in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from megalit.modeling import head
from megalit.modeling.head import CrossEntropy, token_losses


@pytest.mark.parametrize("chunk_logits", [1, 400, 10**9])
def test_values_and_gradients_match_the_plain_version(chunk_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_LOGITS", chunk_logits)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=random, requires_grad=True)
    weight = torch.randn(31, 8, generator=random, requires_grad=True)
    targets = torch.randint(31, (23,), generator=random)
    targets[[0, 5, 22]] = -100

    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected = torch.autograd.grad(plain, (hidden, weight))
    loss = CrossEntropy()(hidden, weight, targets)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), expected)

    each = token_losses(hidden, weight, targets)
    assert (each[[0, 5, 22]] == 0).all()
    torch.testing.assert_close(each.sum(), plain)
