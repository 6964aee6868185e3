"""Losses of a suite: by position, by context length, on several ranks, over seeds."""

import math
from pathlib import Path

import measuring_ranks
import numpy as np
import pytest
import torch
from data_sets import DataSet
from forks import fork
from test_losses import LENGTH, build, documents, losses_of, suite

from megalit.errors import UserError
from megalit.evaluation.losses import token_losses
from megalit.evaluation.measuring import by_context_length, by_position, context_lengths, measure
from megalit.evaluation.results import Evaluation, Spread, over_runs, read_evaluation
from megalit.streams.store import TokenStore
from megalit.streams.suites import suite_of


def test_a_suites_loss_is_the_mean_over_its_targets_in_nats_and_bits(data_set: DataSet) -> None:
    model = build()
    losses = token_losses(model, suite(data_set)).astype(np.float64)
    found = measure([model], suite(data_set), batch=5)
    assert found.nats_per_token == pytest.approx(losses.mean(), rel=1e-6)
    assert data_set.stores.validation is not None
    text_bytes = data_set.stores.validation.manifest.bytes
    assert found.bits_per_byte == pytest.approx(losses.sum() / math.log(2) / text_bytes, rel=1e-6)
    assert found.targets == len(losses) == sum(map(len, documents(data_set))) - 1


def test_positions_are_counted_in_tokens_of_context(data_set: DataSet) -> None:
    model = build()
    stream = [token for document in documents(data_set) for token in document]
    own: dict[int, list[float]] = {}
    for first in range(0, len(stream) - 1, LENGTH):
        for place, loss in enumerate(losses_of(model, stream[first : first + LENGTH + 1]).tolist()):
            own.setdefault(place + 1, []).append(loss)
    found = measure([model], suite(data_set), bucket=1).by_position
    assert [position for position, _ in found] == sorted(own)
    for position, loss in found:
        assert loss == pytest.approx(np.mean(own[int(position)]), abs=1e-5)


def test_buckets_weigh_positions_by_their_targets() -> None:
    nats, counts = torch.tensor([4.0, 6.0, 9.0, 0.0, 0.0], dtype=torch.float64), torch.tensor([4, 2, 3, 0, 0])
    assert by_position(nats, counts, 2) == [(1.5, 10 / 6), (3.5, 3.0)]
    assert by_position(nats, counts, 5) == [(3.0, 19 / 9)]


def test_the_curve_over_context_lengths_scores_the_same_targets_at_each(data_set: DataSet) -> None:
    model = build()
    stream = [token for document in documents(data_set) for token in document]
    found = by_context_length([model], lambda length: suite(data_set, length), [8, 16, LENGTH])
    assert found[-1] == (LENGTH, measure([model], suite(data_set)).nats_per_token)
    for length, loss in found:
        parts = [losses_of(model, stream[first : first + length + 1]) for first in range(0, len(stream) - 1, length)]
        assert sum(map(len, parts)) == len(stream) - 1
        assert loss == pytest.approx(float(torch.cat(parts).mean()), abs=1e-5)


def test_lengths_double_up_to_the_whole_window() -> None:
    assert context_lengths(4096) == [256, 512, 1024, 2048, 4096]
    assert context_lengths(1500) == [256, 512, 1024, 1500]
    assert context_lengths(256) == [64, 128, 256]
    assert context_lengths(1) == [1]


def test_two_ranks_measure_what_one_does(data_set: DataSet, tmp_path: Path) -> None:
    model = build()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert data_set.stores.validation is not None
    shared = (data_set.stores.validation.folder.resolve(), tmp_path / "model.pt", tmp_path / "rendezvous")
    other = fork(Path(measuring_ranks.__file__), *shared)
    first = measuring_ranks.measure_as(0, *shared)
    _, said = other.communicate(timeout=300)
    assert other.returncode == 0, said
    expected = measure([model], suite(data_set), bucket=1)
    losses = token_losses(model, suite(data_set))
    for found in (first, torch.load(tmp_path / "rank1.pt", weights_only=True)):
        assert found["targets"] == expected.targets
        assert found["nats_per_token"] == pytest.approx(expected.nats_per_token, abs=1e-6)
        np.testing.assert_allclose(found["by_position"], expected.by_position, atol=1e-5)
        np.testing.assert_allclose(found["losses"], losses, atol=1e-5)


def test_runs_with_other_seeds_give_mean_and_deviation(data_set: DataSet, tmp_path: Path) -> None:
    evaluations = []
    for seed in (1, 2, 3):
        found = measure([build(seed)], suite(data_set))
        evaluations.append(Evaluation(f"run{seed}", "step-1.ckpt", {"iid": found}))
        evaluations[-1].write(tmp_path / f"{seed}.json")
    losses = [evaluation.suites["iid"].nats_per_token for evaluation in evaluations]
    spread = over_runs([read_evaluation(tmp_path / f"{seed}.json") for seed in (1, 2, 3)])["suites"]["iid"]
    assert spread["nats_per_token"]["mean"] == pytest.approx(np.mean(losses))
    assert spread["nats_per_token"]["deviation"] == pytest.approx(np.std(losses, ddof=1))
    assert spread["nats_per_token"]["runs"] == 3
    first = [evaluation.suites["iid"].by_position[0] for evaluation in evaluations]
    assert spread["by_position"][0] == pytest.approx(
        [first[0][0], np.mean([loss for _, loss in first]), np.std([loss for _, loss in first], ddof=1)]
    )
    assert Spread.of([2.0]) == Spread(2.0, None, 1)


def test_a_store_without_tokens_is_refused(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_set.stores.validation is not None
    store = TokenStore(data_set.stores.validation.folder)
    monkeypatch.setattr(store, "manifest", type("M", (), {"tokens": 0})())
    with pytest.raises(UserError, match="holds no tokens"):
        suite_of(store, LENGTH, separate=False)
