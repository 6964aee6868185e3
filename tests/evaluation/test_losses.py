"""Losses of tokens: against a literal computation, in any batch, under any number of ranks, for ensembles."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_sets import DataSet
from torch import Tensor

from megalit.errors import UserError
from megalit.evaluation.ensembles import logit_curve, probability_curve
from megalit.evaluation.losses import averaged, batches, ensemble_losses, inference, member_logits, token_losses
from megalit.modeling import head
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.shapes import Shape
from megalit.streams.loading import SuiteWindows
from megalit.streams.suites import suite_of

LENGTH = 32


def build(seed: int = 1, shape: Shape | str = "nano", **settings: Any) -> LanguageModel:
    model = LanguageModel(shape, seed=seed, init_std=0.2, **{"vocabulary_size": 300, **settings})
    model.configure_model()
    return model


def suite(data_set: DataSet, length: int = LENGTH, separate: bool = False, stride: int | None = None) -> SuiteWindows:
    assert data_set.stores.validation is not None
    return suite_of(data_set.stores.validation, length, separate, stride)


def documents(data_set: DataSet) -> list[list[int]]:
    """The held-out documents with BOS and EOS, in the order of the store."""
    store = data_set.stores.validation
    assert store is not None
    lengths = store.items(["tokens"])["tokens"].to_pylist()
    bos, eos = store.manifest.bos, store.manifest.eos
    return [[bos, *store.read(item, 0, length).tolist(), eos] for item, length in enumerate(lengths)]


def losses_of(model: LanguageModel, tokens: list[int]) -> Tensor:
    """Loss of every token but the first, each with all tokens before it."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]]))[0]
    return F.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")


def test_every_token_but_the_first_is_scored_once_in_order(data_set: DataSet) -> None:
    model = build()
    stream = [token for document in documents(data_set) for token in document]
    expected = [losses_of(model, stream[first : first + LENGTH + 1]) for first in range(0, len(stream) - 1, LENGTH)]
    found = token_losses(model, suite(data_set), batch=3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.cat(expected), atol=1e-5)
    np.testing.assert_allclose(token_losses(model, suite(data_set), batch=1000), found, atol=1e-5)
    assert model.training  # as it was before


@pytest.mark.parametrize("stride", [1, 7, LENGTH])
def test_a_sliding_window_scores_every_token_once_with_all_the_context_it_holds(data_set: DataSet, stride: int) -> None:
    model = build()
    expected = []
    for document in documents(data_set):
        scored = 1
        while scored < len(document):
            end = min(len(document), LENGTH + 1 if scored == 1 else scored + stride)
            window = document[max(0, end - LENGTH - 1) : end]
            expected.append(losses_of(model, window)[-(end - scored) :])
            scored = end
    assert max(map(len, documents(data_set))) > 2 * LENGTH
    found = token_losses(model, suite(data_set, separate=True, stride=stride))
    assert len(found) == sum(len(document) - 1 for document in documents(data_set))
    np.testing.assert_allclose(found, torch.cat(expected), atol=1e-5)


def test_autocast_follows_the_precision(data_set: DataSet) -> None:
    model = build()
    whole, mixed = (token_losses(model, suite(data_set), precision=name) for name in ("32-true", "bf16-mixed"))
    assert 0 < np.abs(whole - mixed).max() < 0.3


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_members_are_averaged_as_written_down(data_set: DataSet, average: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Members of other widths and depths, one vocabulary, more than one chunk in a batch.
    monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", 300 * 2 * 50)
    models = [build(1), build(2, Shape(48, 64, 1, 3, 3))]
    found = []
    for _, batch in batches(suite(data_set), 4, torch.device("cpu")):
        with inference(models):
            for logits, targets in member_logits(models, batch):
                found.append(-averaged(logits, average)[torch.arange(len(targets)), targets])
    stream = [token for document in documents(data_set) for token in document]
    expected = []
    for first in range(0, len(stream) - 1, LENGTH):
        window = torch.tensor(stream[first : first + LENGTH + 1])
        with torch.no_grad():
            one, other = (model(window[None, :-1])[0] for model in models)
        if average == "logits":
            mixed = (0.5 * one + 0.5 * other).softmax(-1)
        else:
            mixed = 0.5 * one.softmax(-1) + 0.5 * other.softmax(-1)
        expected.append(-mixed.log()[torch.arange(len(window) - 1), window[1:]])
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_members_are_averaged_in_float32_whatever_they_are_computed_in(
    data_set: DataSet, average: Any, precision: str
) -> None:
    models = [build(seed) for seed in range(3)]
    windows = suite(data_set)
    total = 0.0
    with inference(models, precision):
        for _, batch in batches(windows, 4, torch.device("cpu")):
            for logits, targets in member_logits(models, batch):
                mixed = averaged(logits, average)
                assert mixed.dtype == torch.float32
                total -= float(mixed.gather(1, targets[:, None]).double().sum())
            losses = ensemble_losses(models, batch, average)
            assert losses.dtype == torch.float32
    # The other ways to the same numbers make no average of matrices.
    if average == "logits":
        expected = logit_curve(models, windows, precision=precision)[-1]
    else:
        expected = probability_curve([token_losses(model, windows, precision=precision) for model in models])[-1]
    assert total / windows.targets == pytest.approx(expected, abs=1e-5)


def test_an_ensemble_of_equals_is_its_member(data_set: DataSet) -> None:
    model = build()
    alone = token_losses(model, suite(data_set))
    for average in ("logits", "probabilities"):
        found = []
        for _, batch in batches(suite(data_set), 8, torch.device("cpu")):
            with inference([model]):
                for logits, targets in member_logits([model] * 3, batch):
                    found.append(F.nll_loss(averaged(logits, average), targets, reduction="none"))
        np.testing.assert_allclose(torch.cat(found), alone, atol=1e-5)


def test_what_cannot_be_measured_is_named(data_set: DataSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocabularies of 300 and 301 tokens"):
        next(member_logits([build(), build(vocabulary_size=301)], {}))
    model = build()
    model.lm_head.weight.data[7, 3] = torch.nan
    with pytest.raises(UserError, match="losses that are not finite in windows 0 to 1"):
        token_losses(model, suite(data_set), batch=2)
