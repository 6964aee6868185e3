"""Packing: pieces laid end to end become windows.

By default window *w* holds tokens ``[wL, wL + L]``: its last token is the next window's first, so every
token but the stream's first is a target exactly once. The last window is padded, and padding is no
target. The paper's code (arXiv 2603.18534) cuts disjoint windows instead: the remainder is dropped, and
so is each window's last target.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megalit.streams.pieces import LITERALS, Integers, PieceTable, Rows

# Cross entropy's conventional label for positions that do not count.
IGNORED = -100


def windows_of(tokens: int, context_length: int, disjoint: bool) -> int:
    """How many windows so many tokens make, disjoint ones or those of which every token but the first is a target."""
    if disjoint:
        return tokens // context_length
    return -(-(tokens - 1) // context_length) if tokens > 1 else 0


@dataclass(frozen=True)
class PackedTokens:
    """Pieces laid end to end.

    Attributes:
        table: the rows that ``rows`` are numbers of.
        rows: ``(pieces,)``.
        ends: ``(pieces,)``, the position right behind each piece.
        disjoint: cut windows as the paper's code does.
    """

    table: PieceTable
    rows: Rows
    ends: npt.NDArray[np.int64]
    disjoint: bool = False

    @classmethod
    def of(cls, table: PieceTable, rows: Rows, disjoint: bool = False) -> "PackedTokens":
        return cls(table, rows, np.cumsum(table.length[rows], dtype=np.int64), disjoint)

    @property
    def tokens(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def windows(self, context_length: int) -> int:
        """How many windows there are."""
        return windows_of(self.tokens, context_length, self.disjoint)

    def bounds(self, windows: Integers, context_length: int) -> tuple[Integers, Integers]:
        """First token of each window, and the one behind its last."""
        begins = windows * context_length
        ends = begins + context_length if self.disjoint else np.minimum(begins + context_length + 1, self.tokens)
        return begins, ends

    def fill(self, out: npt.NDArray[np.int32], into: npt.NDArray[np.int64], begins: Integers, ends: Integers) -> None:
        """Write the tokens ``[begins[i], ends[i])`` to the front of row ``into[i]`` of ``out``.

        Args:
            out: ``(rows, columns)``, C-contiguous, with room for the longest range.
            into, begins, ends: ``(ranges,)``.
        """
        # Methods and `take` instead of numpy's functions and brackets: at this size their overhead is the cost.
        table = self.table
        first = self.ends.searchsorted(begins, side="right")
        counts = self.ends.searchsorted(ends, side="left") - first + 1
        before = counts.cumsum() - counts
        place = np.arange(int(before[-1] + counts[-1])) + (first - before).repeat(counts)
        rows = self.rows.take(place)
        stop = self.ends.take(place)
        start = stop - table.length.take(rows)
        # Each piece's part in its range, then its place in `out` laid flat.
        start_in = np.maximum(start, begins.repeat(counts))
        size = np.minimum(stop, ends.repeat(counts)) - start_in
        source = table.begin.take(rows) + (start_in - start)
        target = start_in + (into * out.shape[1] - begins).repeat(counts)
        flat = out.reshape(-1)
        # Literals are many and tiny: all at once, their last tokens, then those before, down to their first. (A shorter
        # one writes its first token more than once.) Texts are few and long: a copy each, with plain integers.
        buffers = table.buffers
        literal = ((rows < LITERALS) & (size > 0)).nonzero()[0]
        spot, token, last = target.take(literal), source.take(literal), size.take(literal) - 1
        for _ in range(int(last.max(initial=-1)) + 1):
            flat[spot + last] = buffers[0].take(token + last)
            last = np.maximum(last - 1, 0)
        text = (rows >= LITERALS).nonzero()[0]
        for number, begin, at, length in zip(
            table.buffer.take(rows.take(text)).tolist(),
            source.take(text).tolist(),
            target.take(text).tolist(),
            size.take(text).tolist(),
            strict=True,
        ):
            flat[at : at + length] = buffers[number][begin : begin + length]

    def pieces(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """What the tokens ``[begin, end)`` are: (row, first token, token behind the last) of each piece."""
        found = []
        for position in range(int(np.searchsorted(self.ends, begin, side="right")), len(self.rows)):
            row = int(self.rows[position])
            start = int(self.ends[position]) - int(self.table.length[row])
            if start >= end:
                break
            stop = min(int(self.ends[position]), end) - start
            if stop > max(0, begin - start):
                found.append((row, max(0, begin - start), stop))
        return found


def split_targets(
    windows: npt.NDArray[np.int32], written: Integers, context: Integers | None = None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Tokens and targets, both ``(windows, context_length)``, of filled windows ``(windows, context_length + 1)``.

    Both are views where every window is full and whole. Where one is not, its rest is padding and no target, and
    neither are its first ``context`` targets, which an earlier window has.
    """
    size = windows.shape[1]
    cut = written < size
    if context is not None:
        cut |= context > 0
    if not cut.any():
        return windows[:, :-1], windows[:, 1:]
    targets = windows[:, 1:].copy()
    for window in np.flatnonzero(cut):
        windows[window, written[window] :] = windows[window, 0]
        targets[window, written[window] - 1 :] = IGNORED
        if context is not None:
            targets[window, : context[window]] = IGNORED
    return windows[:, :-1], targets
