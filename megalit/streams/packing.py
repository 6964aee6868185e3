"""Packing: spans become windows of L + 1 tokens.

Window *w* holds tokens ``[wL, wL + L]``: its last token is the next window's first, so every
token but the stream's first is a target exactly once. The last window is padded, and padding is
no target. (The paper's code drops the remainder and one target per window.)
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megalit.streams.orderings import START, STOP, STORE, Spans

# Cross entropy's conventional label for positions that do not count.
IGNORED = -100


class TokenSource(Protocol):
    """Anything that spans can refer to."""

    def read(self, item: int, start: int, stop: int) -> npt.NDArray[np.int32]: ...


@dataclass(frozen=True)
class PackedTokens:
    """Spans laid end to end.

    Attributes:
        spans: ``(spans, 4)``, see :mod:`megalit.streams.orderings`.
        ends: ``(spans,)``, the position right behind each span.
    """

    spans: Spans
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, spans: Spans) -> "PackedTokens":
        return cls(spans, np.cumsum(spans[:, STOP].astype(np.int64) - spans[:, START]))

    @property
    def tokens(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def windows(self, context_length: int) -> int:
        """How many windows hold every token but the first as a target."""
        return -(-(self.tokens - 1) // context_length) if self.tokens > 1 else 0

    def window(
        self, index: int, context_length: int, sources: list[TokenSource]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tokens and targets of one window, both of shape ``(context_length,)``.

        ``targets[i]`` is the token after ``tokens[i]``, or :data:`IGNORED` where there is none.
        """
        begin = index * context_length
        end = min(begin + context_length + 1, self.tokens)
        tokens = np.empty(context_length + 1, dtype=np.int64)
        filled = 0
        span = int(np.searchsorted(self.ends, begin, side="right"))
        while filled < end - begin:
            store, item, start, stop = (int(value) for value in self.spans[span])
            skip = max(0, begin - (int(self.ends[span]) - (stop - start)))
            count = min(stop - start - skip, end - begin - filled)
            tokens[filled : filled + count] = sources[store].read(item, start + skip, start + skip + count)
            filled += count
            span += 1
        targets = tokens[1:].copy()
        if filled <= context_length:
            targets[filled - 1 :] = IGNORED
            tokens[filled:] = tokens[0]
        return tokens[:-1], targets

    def synthetic_tokens(self, real_stores: set[int]) -> int:
        """How many of the tokens come from neither a real document nor the literals."""
        lengths = self.spans[:, STOP].astype(np.int64) - self.spans[:, START]
        return int(lengths[~np.isin(self.spans[:, STORE], list(real_stores | {0}))].sum())
