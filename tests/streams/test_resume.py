"""The same windows in the same order on any topology, from any point of the run."""

from typing import Any

import pytest
import torch
from data_sets import DataSet
from hypothesis import given, settings
from hypothesis import strategies as st

from megalit.errors import UserError
from megalit.streams import SimpleStream, StitchedStream
from megalit.streams.loading import GlobalBatchSampler, SuiteSampler, split


@given(
    steps=st.integers(1, 30),
    per_rank=st.integers(1, 4),
    worlds=st.tuples(st.sampled_from([1, 2, 3, 4, 6, 8]), st.sampled_from([1, 2, 3, 4, 6, 8])),
    data=st.data(),
)
def test_any_topology_can_go_on_where_another_stopped(
    steps: int, per_rank: int, worlds: tuple[int, int], data: st.DataObject
) -> None:
    """World sizes 1 to 8 that divide the global batch; stopped after any step and continued with another."""
    global_batch = 24 * per_rank

    def run(world: int, consumed: int) -> list[list[int]]:
        ranks = [list(GlobalBatchSampler(steps, global_batch, rank, world, consumed)) for rank in range(world)]
        return [[sample for share in shares for sample in share] for shares in zip(*ranks, strict=True)]

    stop = data.draw(st.integers(0, steps))
    before, after = run(worlds[0], 0)[:stop], run(worlds[1], stop * global_batch)
    samples = [sample for batch in before + after for sample in batch]
    assert samples == list(range(steps * global_batch))


@given(st.integers(0, 50), st.integers(1, 7), st.integers(1, 8))
def test_validation_takes_every_window_once_on_any_number_of_ranks(windows: int, batch: int, world: int) -> None:
    samplers = [SuiteSampler(windows, batch, rank, world) for rank in range(world)]
    assert len(samplers[0]) >= 1
    # As many windows in each batch on every rank: the passes of a sharded model wait for each other.
    assert len({tuple(map(len, sampler)) for sampler in samplers}) == 1
    taken = [window for sampler in samplers for part in sampler for window in part]
    # A rank without a window gets the padding window.
    assert sorted(window for window in taken if window >= 0) == list(range(windows))


def sequence(data: StitchedStream, workers: int, consumed: int = 0) -> list[tuple[list[int], list[int]]]:
    data.num_workers = workers
    data._start_samples = consumed
    found: list[tuple[list[int], list[int]]] = []
    for batch in data.train_dataloader():
        found += zip(batch["provenance"].tolist(), batch["tokens"].tolist(), strict=True)
    return found


@pytest.mark.parametrize("workers", [1, 3])
def test_loader_processes_change_nothing(data_set: DataSet, workers: int) -> None:
    data = StitchedStream(stores=str(data_set.folder), context_length=16, global_batch=6, total_tokens=6 * 16 * 25)
    data.setup("validate")
    alone = sequence(data, 0)
    assert sequence(data, workers) == alone
    assert sequence(data, workers, consumed=6 * 11) == alone[6 * 11 :]
    assert [row[0] for row, _ in alone] == list(range(6 * 25))


@settings(max_examples=15)
@given(st.integers(0, 60), st.sampled_from(["documents", "windows", "sequential", "paper"]))
def test_a_fresh_node_reads_the_same_window_for_a_sample(
    data_set: DataSet, tmp_path_factory: pytest.TempPathFactory, sample: int, order: str
) -> None:
    """No state but the sample's number: without plans on the disk, far into the run, it gives the same window."""

    def read(samples: range) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MEGALIT_PLANS", str(tmp_path_factory.mktemp("node")))
            return windows(samples)

    def windows(samples: range) -> torch.Tensor:
        data = SimpleStream(
            stores=str(data_set.folder),
            context_length=64,
            global_batch=4,
            real_epochs=4,
            epoch_order=order,  # type: ignore[arg-type]
        )
        data.setup("validate")
        return split(data.train_dataloader().dataset[samples])["tokens"]

    assert torch.equal(read(range(sample, sample + 1))[0], read(range(0, 61))[sample])


def test_another_plan_is_refused_by_the_first_difference(data_set: DataSet) -> None:
    def module(**changed: object) -> SimpleStream:
        values: dict[str, Any] = {"context_length": 16, "global_batch": 4, "real_epochs": 1, **changed}
        return SimpleStream(stores=str(data_set.folder), **values)

    saved = module()
    state = {"consumed_samples": 40, "steps": 10, "plan": saved.plan.to_json(), "fingerprint": saved.plan.fingerprint}
    same = module()
    same.load_state_dict(state)
    assert same._start_samples == 40
    for changed, difference in {
        "generations": ({"generations": 2}, "streams"),
        "seed": ({"seed": 5}, "settings.seed was 0 and is 5"),
        "epoch_order": ({"epoch_order": "windows"}, "settings.epoch_order was 'documents' and is 'windows'"),
    }.values():
        with pytest.raises(UserError, match="another data plan") as refused:
            module(**changed).load_state_dict(state)
        assert difference in str(refused.value)
    forced = module(seed=5, ignore_plan=True)
    forced.load_state_dict(state)
    assert forced._start_samples == 40


def test_a_batch_that_does_not_divide_among_devices_is_refused(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = SimpleStream(stores=str(data_set.folder), context_length=16, global_batch=5, total_tokens=100)
    monkeypatch.setattr(SimpleStream, "_world_size", 2)
    with pytest.raises(UserError, match="does not divide among 2 devices"):
        data.setup("fit")


def test_a_position_survives_another_batch_size(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def module(**changed: Any) -> SimpleStream:
        values: dict[str, Any] = {"context_length": 16, "global_batch": 4, "total_tokens": 16 * 4 * 40, **changed}
        return SimpleStream(stores=str(data_set.folder), **values)

    saved = module()
    monkeypatch.setattr(SimpleStream, "_steps_done", 10)
    state = saved.state_dict()
    assert state["consumed_samples"] == 40
    other = module(global_batch=8, ignore_plan=True)
    other.load_state_dict(state)
    first = next(iter(other.train_dataloader()))
    assert first["provenance"][:, 0].tolist() == list(range(40, 48))
    assert len(other.train_dataloader()) == 10 + (160 - 40) // 8
    monkeypatch.setattr(SimpleStream, "_steps_done", 15)
    assert other.state_dict()["consumed_samples"] == 40 + 5 * 8
