"""Windows against literal cuts of the flat sequence of tokens."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megalit.streams.packing import IGNORED, PackedTokens, split_targets
from megalit.streams.pieces import LITERALS, PieceTable

lengths = st.lists(st.integers(0, 40), min_size=1, max_size=30)


def packed_tokens(parts: list[int], disjoint: bool = False) -> tuple[PackedTokens, list[int]]:
    """Pieces of these lengths from two buffers of consecutive numbers, and the tokens they spell."""
    buffers = [np.arange(5000, dtype=np.int32), np.arange(20000, 25000, dtype=np.uint16)]
    count = len(parts)
    # The first rows of a table are its literals, which lie in the first buffer.
    number = np.where(np.arange(count) < LITERALS, 0, np.arange(count) % 2).astype(np.uint16)
    begin = np.arange(count, dtype=np.uint32) * 7
    none = np.full(count, -1, dtype=np.int32)
    table = PieceTable(buffers, number, begin, np.array(parts, dtype=np.int32), none, none)
    rows = np.arange(count, dtype=np.int32)[::-1].copy()
    flat = [int(token) for row in rows for token in table.read(row)]
    return PackedTokens.of(table, rows, disjoint), flat


def window(packed: PackedTokens, index: int, context_length: int) -> tuple[list[int], list[int]]:
    """The window, filled among others that must not disturb it."""
    out = np.full((3, context_length + 1), -7, dtype=np.int32)
    numbers = np.array([0, index])
    begins, ends = packed.bounds(numbers, context_length)
    packed.fill(out, np.array([2, 0]), begins, ends)
    tokens, targets = split_targets(out[:1], (ends - begins)[1:])
    assert (out[1] == -7).all()
    return tokens[0].tolist(), targets[0].tolist()


@given(lengths, st.integers(1, 17))
def test_windows_predict_each_token_once_from_the_one_before(parts: list[int], context_length: int) -> None:
    packed, flat = packed_tokens(parts)
    assert packed.tokens == len(flat)
    pairs = []
    for index in range(packed.windows(context_length)):
        tokens, targets = window(packed, index, context_length)
        assert len(tokens) == len(targets) == context_length
        assert set(tokens) <= set(flat)
        valid = [target != IGNORED for target in targets]
        # Padding stands behind everything else.
        assert any(valid)
        assert valid == sorted(valid, reverse=True)
        pairs += [(token, target) for token, target in zip(tokens, targets, strict=True) if target != IGNORED]
    assert pairs == list(pairwise(flat))


@given(lengths, st.integers(1, 17))
def test_the_papers_windows_are_disjoint_and_lose_their_last_target(parts: list[int], context_length: int) -> None:
    packed, flat = packed_tokens(parts, disjoint=True)
    assert packed.windows(context_length) == len(flat) // context_length
    for index in range(packed.windows(context_length)):
        tokens, targets = window(packed, index, context_length)
        literal = flat[index * context_length : (index + 1) * context_length]
        assert tokens == literal
        assert targets == [*literal[1:], IGNORED]


@given(lengths, st.integers(1, 17))
def test_a_windows_pieces_say_where_its_tokens_are_from(parts: list[int], context_length: int) -> None:
    packed, _ = packed_tokens(parts)
    for index in range(packed.windows(context_length)):
        begins, ends = packed.bounds(np.array([index]), context_length)
        begin, end = int(begins[0]), int(ends[0])
        out = np.empty((1, end - begin), dtype=np.int32)
        packed.fill(out, np.array([0]), begins, ends)
        named = [packed.table.read(row)[start:stop].tolist() for row, start, stop in packed.pieces(begin, end)]
        assert all(named)
        assert [token for piece in named for token in piece] == out[0].tolist()
