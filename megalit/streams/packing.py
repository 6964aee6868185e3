"""Packing: pieces laid end to end become windows.

By default window *w* holds tokens ``[wL, wL + L]``: its last token is the next window's first, so every
token but the stream's first is a target exactly once. The last window is padded, and padding is no
target. The paper's code (arXiv 2603.18534) cuts disjoint windows instead: the remainder is dropped, and
so is each window's last target.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megalit.streams.pieces import PieceTable, Rows

# Cross entropy's conventional label for positions that do not count.
IGNORED = -100


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
        if self.disjoint:
            return self.tokens // context_length
        # Every token but the first is a target.
        return -(-(self.tokens - 1) // context_length) if self.tokens > 1 else 0

    def bounds(self, index: int, context_length: int) -> tuple[int, int]:
        """First token of a window, and the one behind its last."""
        begin = index * context_length
        if self.disjoint:
            return begin, begin + context_length
        return begin, min(begin + context_length + 1, self.tokens)

    def fill(self, out: npt.NDArray[np.int64], begin: int, end: int) -> int:
        """Write the tokens ``[begin, end)`` to the front of ``out``; give their number."""
        first = int(np.searchsorted(self.ends, begin, side="right"))
        last = int(np.searchsorted(self.ends, end, side="left"))
        rows = self.rows[first : last + 1]
        table, buffers = self.table, self.table.buffers
        stops = self.ends[first : last + 1] - begin
        starts = stops - table.length[rows]
        skip = np.maximum(-starts, 0)
        sources = table.begin[rows] + skip
        # Plain integers: indexing with numpy's costs more than the copies themselves.
        for buffer, source, start, stop in zip(
            table.buffer[rows].tolist(),
            sources.tolist(),
            (starts + skip).tolist(),
            np.minimum(stops, end - begin).tolist(),
            strict=True,
        ):
            out[start:stop] = buffers[buffer][source : source + stop - start]
        return end - begin

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
    windows: npt.NDArray[np.int64], written: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tokens and targets, both ``(windows, context_length)``, of filled windows ``(windows, context_length + 1)``.

    Both are views where every window is full. Where one is not, its rest is padding and no target.
    """
    size = windows.shape[1]
    short = np.flatnonzero(written < size)
    if not len(short):
        return windows[:, :-1], windows[:, 1:]
    targets = windows[:, 1:].copy()
    for window in short:
        windows[window, written[window] :] = windows[window, 0]
        targets[window, written[window] - 1 :] = IGNORED
    return windows[:, :-1], targets
