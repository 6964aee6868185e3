"""Streams at work: epochs, mixtures, the plan, and the paper's code word for word."""

import json
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import THOUGHTS, DataSet

from megalit.errors import UserError
from megalit.streams import (
    LatentThoughtStream,
    MixtureStream,
    RealStream,
    SimpleStream,
    StitchedStream,
    StreamDataModule,
)
from megalit.streams.building import build_stores
from megalit.streams.loading import Batch, split
from megalit.streams.named import MixedStream
from megalit.streams.packing import IGNORED
from megalit.streams.run_length import paper_steps
from megalit.streams.schedule import BlockSchedule
from megalit.streams.stream import EpochOrder, Stream
from megalit.streams.synthetic import Phase
from megalit.streams.thoughts import TOKEN_OFFSETS

SMALL = {"context_length": 16, "global_batch": 4}


def batches(data: StreamDataModule, first: int = 0, last: int | None = None) -> list[Batch]:
    data.setup("validate")
    dataset = data.train_dataloader().dataset
    size = data.global_batch
    steps = range(first, data.plan.steps if last is None else last)
    return [split(dataset[range(size * step, size * (step + 1))]) for step in steps]


def epoch_windows(stream: Stream, epoch: int) -> list[int]:
    return stream.window_at(epoch, np.arange(stream.windows)).tolist()


def real_stream(data_set: DataSet, epoch_order: EpochOrder, seed: int = 0) -> Stream:
    data = RealStream(stores=str(data_set.folder), real_epochs=1, epoch_order=epoch_order, seed=seed, **SMALL)
    return data.mixture.streams[0]


def test_every_epoch_holds_every_window_once(data_set: DataSet) -> None:
    for order in ("documents", "windows", "sequential", "paper"):
        stream = real_stream(data_set, order)  # type: ignore[arg-type]
        for epoch in (0, 1, 5):
            assert sorted(epoch_windows(stream, epoch)) == list(range(stream.windows))


def test_epoch_orders_repeat_what_they_say(data_set: DataSet) -> None:
    def packed_again(order: EpochOrder) -> bool:
        stream = real_stream(data_set, order)
        return stream.packed(0).rows.tolist() == stream.packed(1).rows.tolist()

    def windows_again(order: EpochOrder) -> bool:
        stream = real_stream(data_set, order)
        return epoch_windows(stream, 0) == epoch_windows(stream, 1)

    assert [packed_again(o) for o in ("documents", "windows", "sequential", "paper")] == [False, True, False, True]
    assert [windows_again(o) for o in ("documents", "windows", "sequential", "paper")] == [False, False, True, True]
    sequential = real_stream(data_set, "sequential")
    assert epoch_windows(sequential, 3) == list(range(sequential.windows))


@pytest.mark.parametrize("epoch_order", ["documents", "windows", "sequential"])
def test_an_epoch_predicts_every_token_of_the_stream_but_the_first(data_set: DataSet, epoch_order: EpochOrder) -> None:
    data = StitchedStream(
        stores=str(data_set.folder), total_tokens=10, synthetic_fraction=1, epoch_order=epoch_order, **SMALL
    )
    stream = data.mixture.streams[0]
    targets: Counter[int] = Counter()
    out = np.empty((stream.windows, 17), dtype=np.int32)
    _, written = stream.fill(out, np.arange(stream.windows), 1, np.arange(stream.windows))
    for window, count in zip(out, written, strict=True):
        targets.update(window[1:count].tolist())
    packed = stream.packed(1)
    every = Counter(int(token) for row in packed.rows for token in packed.table.read(row))
    assert (every - targets).total() == 1
    assert targets.total() == packed.tokens - 1


def test_the_mixture_is_exact_after_every_batch(data_set: DataSet) -> None:
    data = SimpleStream(stores=str(data_set.folder), real_epochs=1, synthetic_fraction=0.75, **SMALL)
    for batch in batches(data):
        assert Counter(batch["provenance"][:, 1].tolist()) == {0: 1, 1: 3}


def test_a_mixture_of_three_streams_keeps_its_shares(data_set: DataSet) -> None:
    """A third of an old corpus beside real and stitched data, all in one run."""
    parts = [
        MixedStream("real", 0.33),
        MixedStream("stitched", 0.33, generations=2),
        MixedStream("real", 0.34, stores=str(data_set.folder), name="replay"),
    ]
    data = MixtureStream(parts, stores=str(data_set.folder), total_tokens=6400, **SMALL)
    assert [stream.name for stream in data.plan.streams] == ["real", "stitched", "replay"]
    seen = np.zeros(3)
    for number, batch in enumerate(batches(data), start=1):
        seen += np.bincount(batch["provenance"][:, 1], minlength=3)
        assert (np.abs(seen - 4 * number * np.array([0.33, 0.33, 0.34])) < 1).all()
    real, _, replay = data.mixture.streams
    assert epoch_windows(real, 0) != epoch_windows(replay, 0)


def test_phases_follow_each_other(data_set: DataSet) -> None:
    phases = (Phase(0.5, 0.0), Phase(0.25, 0.5), Phase(0.25, 1.0))
    data = SimpleStream(stores=str(data_set.folder), total_tokens=16 * 4 * 40, phases=phases, **SMALL)
    counts = [Counter(batch["provenance"][:, 1].tolist()) for batch in batches(data)]
    assert counts == [{0: 4}] * 20 + [{0: 2, 1: 2}] * 10 + [{1: 4}] * 10


def test_a_mixture_of_any_streams_changes_from_phase_to_phase(data_set: DataSet) -> None:
    parts = [
        MixedStream("real", [0.5, 0.25, 0.0]),
        MixedStream("stitched", [0.0, 0.5, 0.75], generations=2),
        MixedStream("simple", [0.5, 0.25, 0.25], generations=1),
    ]
    data = MixtureStream(parts, [0.5, 0.25, 0.25], stores=str(data_set.folder), total_tokens=16 * 4 * 40, **SMALL)
    counts = [Counter(batch["provenance"][:, 1].tolist()) for batch in batches(data)]
    assert counts == [{0: 2, 2: 2}] * 20 + [{0: 1, 1: 2, 2: 1}] * 10 + [{1: 3, 2: 1}] * 10


def test_real_epochs_with_phases_count_the_real_share(data_set: DataSet) -> None:
    """real windows * epochs / sum of s_i (1 - f_i)."""
    phases = (Phase(0.5, 0.5), Phase(0.5, 0.75))
    data = SimpleStream(stores=str(data_set.folder), real_epochs=2, phases=phases, **SMALL)
    real = data.plan.streams[0]
    share = Fraction(1, 2) * Fraction(1, 2) + Fraction(1, 2) * Fraction(1, 4)
    assert data.plan.steps == -(-(real.windows_per_epoch * 2 / share) // 4)
    assert 2 <= real.epochs < 2.1


def test_the_plan_counts_real_documents_inside_a_synthetic_stream_as_real(data_set: DataSet) -> None:
    data = SimpleStream(stores=str(data_set.folder), real_epochs=3, synthetic_fraction=0.75, generations=4, **SMALL)
    rows = [data_set.rows[row["id"]] for row in data_set.corpus.rows("documents", "train")]
    texts = [generation["text"] for row in rows for generation in row["generations"][:4]]
    made = sum(len(tokens) for tokens in data_set.tokenizer.encode_batch(texts))
    simple = data.plan.streams[1]
    assert simple.synthetic_fraction == pytest.approx(made / simple.unique_tokens)
    assert data.plan.synthetic_share == pytest.approx(0.75 * made / simple.unique_tokens, rel=0.01)
    assert data.plan.synthetic_share < 0.7


def test_a_batch_in_tokens_gives_equal_batches_at_any_context_length(data_set: DataSet) -> None:
    def plan(context_length: int):  # type: ignore[no-untyped-def]
        return RealStream(
            stores=str(data_set.folder), context_length=context_length, global_batch_tokens=256, total_tokens=4096
        ).plan

    assert [(plan(n).global_batch, plan(n).steps) for n in (16, 64, 256)] == [(16, 16), (4, 16), (1, 16)]
    with pytest.raises(UserError, match="no multiple of data.context_length"):
        plan(100)


def test_separate_validation_starts_a_window_with_each_document(data_set: DataSet) -> None:
    def suite(separate: bool):  # type: ignore[no-untyped-def]
        data = RealStream(stores=str(data_set.folder), total_tokens=64, separate_validation=separate, **SMALL)
        return data.suites["iid"]

    apart, together = suite(True), suite(False)
    store = data_set.stores.validation
    assert store is not None
    counts = store.items(["tokens"])["tokens"].to_numpy()
    assert together.targets == counts.sum() + 2 * len(counts) - 1
    assert apart.targets == (counts + 1).sum()
    assert apart.windows == sum(-(-(count + 1) // 16) for count in counts)
    begins = [w for w in range(apart.windows) if split(apart[[w]])["tokens"][0, 0] == data_set.tokenizer.bos]
    assert len(begins) >= len(counts)
    assert (split(apart[[-1]])["targets"] == IGNORED).all()
    for found in (apart, together):
        valid = sum(int((split(found[[w]])["targets"] != IGNORED).sum()) for w in range(found.windows))
        assert valid == found.targets


# The paper's code, word for word: reference implementation of packing and mixing -----------------------


@pytest.mark.parametrize("kind", ["simple", "stitched"])
def test_paper_order_is_the_papers_packing_and_mixing(kind: str, data_set: DataSet) -> None:
    """BOS and EOS around each document, all end to end, disjoint windows, the remainder dropped, one fixed
    permutation of windows for every epoch, exact counts in blocks shuffled inside, streams restarting."""
    stream_class = {"simple": SimpleStream, "stitched": StitchedStream}[kind]
    data = stream_class(
        stores=str(data_set.folder), real_epochs=3, synthetic_fraction=0.75, generations=2, epoch_order="paper", **SMALL
    )
    bos, eos = data_set.tokenizer.bos, data_set.tokenizer.eos
    length, size = 16, 4
    literal_windows = []
    for stream in data.mixture.streams:
        flat: list[int] = []
        for row in stream.packed(0).rows:
            flat += stream.tables.table.read(row).tolist()
        assert flat[0] == bos
        assert flat[-1] == eos
        windows = [flat[i : i + length] for i in range(0, len(flat) - length + 1, length)]
        order = epoch_windows(stream, 0)
        assert sorted(order) == list(range(len(windows)))
        literal_windows.append([windows[number] for number in order])

    real_tokens = data.plan.unique_real_tokens
    assert data.plan.steps == int((real_tokens // (length * size)) * 3 / (1 - 0.75))
    block = BlockSchedule([Fraction(1, 4), Fraction(3, 4)], seed=0)
    taken = [0, 0]
    literal = []
    for stream_number in block.locate(np.arange(data.plan.steps * size))[0]:
        windows = literal_windows[stream_number]
        literal.append(windows[taken[stream_number] % len(windows)])
        taken[stream_number] += 1
    found = [row.tolist() for batch in batches(data) for row in batch["tokens"]]
    assert found == literal
    last_targets = [batch["targets"][:, -1].tolist() for batch in batches(data, 0, 3)]
    assert last_targets == [[IGNORED] * size] * 3


def test_the_papers_number_of_steps() -> None:
    """203,867,748 tokens, 64 x 4,096 a step, 16 real epochs at mix .75: 49,728 steps (777 an epoch)."""
    assert paper_steps(203_867_748, 64 * 4096, Fraction(1), Fraction(1)) == 777
    assert paper_steps(203_867_748, 64 * 4096, Fraction(16), Fraction(1, 4)) == 49_728


# Settings that cannot work ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"real_fraction": 0.0}, "real_fraction is 0.0"),
        ({"real_fraction": 1.5}, "real_fraction is 1.5"),
        ({"phases": (Phase(0.5, 0.5),)}, "shares are not positive with a sum of 1"),
        ({"phases": (Phase(1.0, 1.5),)}, "choose a value in"),
        ({"global_batch_tokens": 3}, "no multiple"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, object], message: str, data_set: DataSet) -> None:
    with pytest.raises(UserError, match=message):
        SimpleStream(stores=str(data_set.folder), total_tokens=64, **{**SMALL, **settings})  # type: ignore[arg-type]


def test_mixtures_that_cannot_work_are_named(data_set: DataSet) -> None:
    folder = str(data_set.folder)
    with pytest.raises(UserError, match="are not unique"):
        MixtureStream([MixedStream("real", 0.5), MixedStream("real", 0.5)], stores=folder, total_tokens=64)
    with pytest.raises(UserError, match="sum to 1"):
        MixtureStream([MixedStream("real", 0.5), MixedStream("simple", 0.4)], stores=folder, total_tokens=64)
    with pytest.raises(UserError, match="'real' has 1 shares for 2 phases"):
        MixtureStream([MixedStream("real", 1.0)], [0.5, 0.5], stores=folder, total_tokens=64)
    with pytest.raises(UserError, match="share of 'simple' is not positive"):
        MixtureStream([MixedStream("real", 1.0), MixedStream("simple", 0.0)], stores=folder, total_tokens=64)
    with pytest.raises(UserError, match="no real stream is in the mixture"):
        _ = MixtureStream([MixedStream("simple", 1.0)], stores=folder, real_epochs=1).plan


def test_the_plan_counts_the_thoughts_of_a_document(data_set: DataSet) -> None:
    """No setting says their number, and short documents have fewer."""
    plan = LatentThoughtStream(stores=str(data_set.folder), total_tokens=640, **SMALL).plan
    kinds = {stream["kind"]: stream.get("generations") for stream in plan.settings["streams"]}
    assert kinds == {"Real": None, "LatentThoughts": THOUGHTS}


def test_streams_that_change_names_do_not_change_places(data_set: DataSet) -> None:
    """The plans of one run lie on the disk while another is planned."""

    def streams(real: str, thoughts: str) -> MixtureStream:
        parts = [MixedStream("real", 0.5, name=real), MixedStream("latent_thoughts", 0.5, name=thoughts)]
        return MixtureStream(parts, stores=str(data_set.folder), total_tokens=640, **SMALL)

    first, second = streams("a", "b"), streams("b", "a")
    assert [s.unique_tokens for s in first.plan.streams] == [s.unique_tokens for s in second.plan.streams]


@pytest.mark.parametrize(
    ("stream", "settings"),
    [
        (StitchedStream, ({"separator": "a"}, {"separator": "b"})),
        (LatentThoughtStream, ({"thought_start": "a"}, {"thought_start": "b"})),
    ],
)
def test_a_plan_knows_the_tokens_between_pieces(stream: Any, settings: Any, data_set: DataSet) -> None:
    plans = [stream(stores=str(data_set.folder), total_tokens=640, **SMALL, **part).plan for part in settings]
    assert plans[0].streams == plans[1].streams
    assert plans[0].fingerprint != plans[1].fingerprint
    assert "literals" in str(plans[0].first_difference(plans[1].to_json()))


def test_a_stream_shorter_than_a_window_is_named(data_set: DataSet) -> None:
    tokens = RealStream(stores=str(data_set.folder), total_tokens=640, **SMALL).plan.unique_real_tokens
    settings: dict[str, Any] = {"epoch_order": "paper", "real_document": "absent", "generations": 1}
    with pytest.raises(UserError, match=r"the stream 'stitched' has \d+ tokens"):
        _ = StitchedStream(
            stores=str(data_set.folder), context_length=tokens - 1, global_batch=1, total_tokens=tokens, **settings
        ).plan


@pytest.mark.parametrize("fraction", [0.07, 0.14, 0.25, 0.55, 1.0])
def test_a_subset_has_the_share_that_is_asked_for(data_set: DataSet, fraction: float) -> None:
    data = RealStream(stores=str(data_set.folder), total_tokens=64, real_fraction=fraction, **SMALL)
    documents = data_set.stores.real.manifest.items
    assert data.mixture.streams[0].tables.documents == -(-documents * Fraction(str(fraction)) // 1)


def test_thoughts_of_an_earlier_version_are_named_and_go_on(data_set: DataSet, tmp_path: Path) -> None:
    """They stand behind the first token of the word that they belong before."""
    folder = tmp_path / "stores"
    shutil.copytree(data_set.folder, folder)
    manifest = folder / "thoughts" / "manifest.json"
    value = json.loads(manifest.read_text())
    del value["origin"][TOKEN_OFFSETS]
    manifest.write_text(json.dumps(value))
    assert build_stores(data_set.corpus, [], data_set.tokenizer, folder) == []
    with pytest.warns(UserWarning, match="thoughts was built by an earlier megalit"):
        _ = LatentThoughtStream(stores=str(folder), total_tokens=6400, **SMALL).plan
    _ = StitchedStream(stores=str(folder), total_tokens=6400, generations=2, **SMALL).plan
