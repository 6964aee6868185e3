"""Every token but the first is a target exactly once."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megalit.streams.packing import IGNORED, PackedTokens


class Counting:
    """A source whose item *i* holds the numbers from 1000 * i on."""

    def read(self, item: int, start: int, stop: int) -> np.ndarray:  # type: ignore[type-arg]
        return np.arange(1000 * item + start, 1000 * item + stop, dtype=np.int32)


pieces = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5), st.integers(0, 40)), max_size=30)


@given(pieces, st.integers(1, 17))
def test_windows_predict_each_token_once_from_the_one_before(
    parts: list[tuple[int, int, int]], context_length: int
) -> None:
    rows = [(0, item, start, start + length) for item, start, length in parts]
    spans = np.array(rows, dtype=np.int32).reshape(-1, 4)
    flat = [token for _, item, start, stop in spans for token in Counting().read(item, start, stop).tolist()]
    packed = PackedTokens.of(spans)
    assert packed.tokens == len(flat)
    windows = packed.windows(context_length)
    pairs = []
    for index in range(windows):
        tokens, targets = packed.window(index, context_length, [Counting()])
        assert tokens.shape == targets.shape == (context_length,)
        valid = targets != IGNORED
        pairs += list(zip(tokens[valid].tolist(), targets[valid].tolist(), strict=True))
        assert valid.any()
        # Inside a window each target is the next token.
        inside = valid[:-1] & valid[1:]
        assert (targets[:-1][inside] == tokens[1:][inside]).all()
    assert pairs == list(itertools.pairwise(flat))


def test_zero_length_pieces_take_no_place() -> None:
    spans = np.array([(0, 1, 0, 0), (0, 2, 0, 3), (0, 3, 5, 5), (0, 4, 0, 2)], dtype=np.int32)
    tokens, targets = PackedTokens.of(spans).window(0, 4, [Counting()])
    assert tokens.tolist() == [2000, 2001, 2002, 4000]
    assert targets.tolist() == [2001, 2002, 4000, 4001]
