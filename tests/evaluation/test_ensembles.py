"""Averages of members: against the formulas written out, and the weights against a search."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_sets import DataSet
from scipy.optimize import minimize_scalar

from megalit.errors import UserError
from megalit.evaluation.ensembles import (
    greedy_members,
    kept_losses,
    logit_curve,
    mixture_losses,
    mixture_weights,
    probability_curve,
    select,
)
from megalit.evaluation.losses import token_losses
from megalit.modeling import head
from megalit.modeling.decoder import Decoder
from megalit.streams import RealStream


def members(data: RealStream, shapes: tuple[str, ...] = ("nano", "tiny", "nano")) -> list[Decoder]:
    """Models of different shapes whose distributions differ a lot."""
    made = [Decoder(shape, data.plan.vocabulary_size, init_std=0.3, seed=seed) for seed, shape in enumerate(shapes)]
    for model in made:
        model.configure_model()
    return made


@pytest.mark.parametrize("chunk_logits", [200, 2**24])
def test_curves_are_those_of_whole_logits(
    data_set: DataSet, chunk_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", chunk_logits)
    data = RealStream(stores=str(data_set.folder), context_length=32, global_batch=4, total_tokens=128)
    suite, models = data.suites["iid"], members(data)
    whole = suite.batch(range(suite.windows))
    targets = whole["targets"].flatten().long()
    with torch.no_grad():
        logits = torch.stack([model(whole["tokens"]).flatten(0, 1) for model in models])
    of_logits = [float(F.cross_entropy(logits[:k].mean(0), targets)) for k in (1, 2, 3)]
    mixed = [logits[:k].softmax(-1).mean(0).log() for k in (1, 2, 3)]
    of_probabilities = [float(F.nll_loss(one, targets)) for one in mixed]
    assert logit_curve(models, suite, batch=3) == pytest.approx(of_logits, rel=1e-5)
    losses = [token_losses(model, suite, batch=3) for model in models]
    assert probability_curve(losses, part=100) == pytest.approx(of_probabilities, rel=1e-5)


def test_equal_members_change_nothing() -> None:
    losses = np.random.default_rng(0).exponential(3, size=50)
    np.testing.assert_allclose(mixture_losses(np.stack([losses] * 4)), np.stack([losses] * 4))


def test_weights_are_those_of_the_lowest_loss() -> None:
    random = np.random.default_rng(1)
    losses = np.stack([random.exponential(3.0, 4000), random.exponential(2.5, 4000)])

    def loss(share: float) -> float:
        return float(-np.log(share * np.exp(-losses[0]) + (1 - share) * np.exp(-losses[1])).mean())

    best = minimize_scalar(loss, bounds=(0, 1), method="bounded").x
    np.testing.assert_allclose(mixture_weights(losses), [best, 1 - best], atol=1e-3)


def test_losses_beyond_what_a_float_can_raise_e_to_are_weighed() -> None:
    losses = np.stack([np.full(10, 2000.0), np.full(10, 1999.0)])
    np.testing.assert_allclose(mixture_weights(losses), [0, 1], atol=1e-3)


def test_a_member_that_only_harms_is_left_out() -> None:
    random = np.random.default_rng(2)
    # Two good members that err in different places, and one that is always wrong.
    losses = np.stack([random.exponential(1.0, 999), np.full(999, 30.0), random.exponential(1.2, 999)])
    assert greedy_members(losses) == [0, 2]
    selection = select(list(losses.astype(np.float32)), np.full(27, 37))
    assert selection.members == [0, 2]
    assert selection.weights[1] < 1e-4
    assert selection.selected < selection.equal
    assert selection.weighted < selection.equal


def test_a_selection_is_not_measured_on_what_it_was_made_on() -> None:
    """Member 0 knows the first half and member 1 the second: what is chosen on the first is wrong for the second."""
    early, late = np.repeat([0.1, 5.0], 50), np.repeat([5.0, 0.1], 50)
    selection = select([early.astype(np.float32), late.astype(np.float32)], np.ones(100, dtype=np.int64))
    assert selection.members == [0]
    assert selection.selected == pytest.approx(5.0)


def test_losses_are_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(5, dtype=np.float32)

    for _ in range(3):
        np.testing.assert_array_equal(kept_losses(tmp_path / "iid.npy", 5, compute), np.arange(5))
    assert len(calls) == 1
    with pytest.raises(UserError, match="does not hold the losses of this suite"):
        kept_losses(tmp_path / "iid.npy", 6, compute)
