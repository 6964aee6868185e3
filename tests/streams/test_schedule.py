"""The mixture is exact at every sample, and in closed form."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalit.errors import UserError
from megalit.streams.schedule import BlockSchedule, PhasedSchedule, Schedule, exact

weights = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def shares_of(parts: list[int]) -> list[Fraction]:
    return [Fraction(part, sum(parts)) for part in parts]


@given(weights, st.integers(1, 400))
def test_every_stream_stays_within_one_window_of_its_share(parts: list[int], samples: int) -> None:
    schedule = Schedule(shares_of(parts))
    streams, _ = schedule.locate(np.arange(samples))
    for stream, share in enumerate(shares_of(parts)):
        counts = np.cumsum(streams == stream)
        assert all(abs(int(count) - (k + 1) * share) < 1 for k, count in enumerate(counts))


@given(weights, st.integers(0, 1000), st.integers(1, 100))
def test_each_streams_windows_come_in_order_without_gap(parts: list[int], first: int, samples: int) -> None:
    """From any starting point: the closed form needs no replay."""
    schedule = Schedule(shares_of(parts))
    streams, ordinals = schedule.locate(np.arange(first, first + samples))
    before = schedule.counts(first)
    for stream in range(len(parts)):
        mine = ordinals[streams == stream]
        assert mine.tolist() == list(range(before[stream], before[stream] + len(mine)))
    assert schedule.counts(first + samples).sum() == first + samples


def test_three_quarters_is_three_of_four() -> None:
    schedule = Schedule([exact(0.25), exact(0.75)])
    streams, _ = schedule.locate(np.arange(64))
    assert [int((streams[i : i + 4] == 1).sum()) for i in range(0, 64, 4)] == [3] * 16


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(UserError, match="sum of 1"):
        Schedule([Fraction(1, 2), Fraction(1, 3)])


def test_shares_of_too_fine_a_grain_are_refused() -> None:
    with pytest.raises(UserError, match="too fine"):
        Schedule([exact(0.123456789), 1 - exact(0.123456789)])


@given(weights, weights, st.integers(1, 60), st.integers(1, 60))
def test_phases_have_their_own_shares_and_streams_go_on(
    first: list[int], second: list[int], early: int, late: int
) -> None:
    streams = max(len(first), len(second))
    parts = [shares_of(weights + [0] * (streams - len(weights))) for weights in (first, second)]
    phased = PhasedSchedule([(early, Schedule(parts[0])), (late, Schedule(parts[1]))])
    stream, ordinal = phased.locate(np.arange(early + late))
    for number in range(streams):
        assert ordinal[stream == number].tolist() == list(range(int((stream == number).sum())))
        assert abs((stream[:early] == number).sum() - early * parts[0][number]) < 1
        assert abs((stream[early:] == number).sum() - late * parts[1][number]) < 1
    for samples in {0, early // 2, early, early + late // 2, early + late}:
        assert phased.counts(samples).tolist() == np.bincount(stream[:samples], minlength=streams).tolist()
    # Any sample alone, in closed form.
    for sample in (0, early - 1, early, early + late - 1):
        alone = phased.locate(np.array([sample]))
        assert (alone[0][0], alone[1][0]) == (stream[sample], ordinal[sample])


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ((0.1, 0.9), (204, 1844)),
        ((0.9, 0.1), (1844, 204)),
        ((0.25, 0.75), (512, 1536)),
        ((0.3, 0.3, 0.4), (614, 614, 820)),
    ],
)
def test_blocks_are_rounded_as_the_papers_are(shares: tuple[float, ...], counts: tuple[int, ...]) -> None:
    """Down, and the largest takes the rest: levanter's counts for the same weights."""
    schedule = BlockSchedule([exact(share) for share in shares], seed=0)
    assert schedule.counts(3 * 2048).tolist() == [3 * count for count in counts]


def test_a_share_that_no_window_would_come_from_is_refused() -> None:
    with pytest.raises(UserError, match="share of 0.0002 is no window in a block of 2,048"):
        BlockSchedule([exact(0.9998), exact(0.0002)], seed=0)
    assert BlockSchedule([exact(1.0), exact(0.0)], seed=0).counts(4096).tolist() == [4096, 0]


@given(st.integers(0, 3 * 2048), st.integers(1, 300))
def test_blocks_of_the_paper_are_exact_and_shuffled(first: int, samples: int) -> None:
    schedule = BlockSchedule([exact(0.25), exact(0.75)], seed=1)
    everything, ordinals = schedule.locate(np.arange(4 * 2048))
    for block in range(4):
        assert np.bincount(everything[block * 2048 : (block + 1) * 2048]).tolist() == [512, 1536]
    for stream in (0, 1):
        assert ordinals[everything == stream].tolist() == list(range(int((everything == stream).sum())))
    assert everything[:2048].tolist() != everything[2048:4096].tolist()
    here = schedule.locate(np.arange(first, first + samples))
    np.testing.assert_array_equal(here[0], everything[first : first + samples])
    np.testing.assert_array_equal(here[1], ordinals[first : first + samples])
    assert schedule.counts(first).tolist() == [int((everything[:first] == stream).sum()) for stream in (0, 1)]
