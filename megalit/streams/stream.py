"""A stream: sources and an ordering, from which any window of any epoch can be had."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from megalit.streams.orderings import Ordering
from megalit.streams.packing import PackedTokens, TokenSource
from megalit.streams.pieces import PieceTables

EpochOrder = Literal["documents", "windows", "sequential"]

# Epochs whose order is kept in memory: the one being read and the next one.
_KEPT_EPOCHS = 2


@dataclass(frozen=True)
class _Epoch:
    packed: PackedTokens
    windows: npt.NDArray[np.int64]


class Stream:
    """One component of a mixture.

    Args:
        ordering: the order of documents before cutting.
        tables: the pieces that the ordering arranges.
        sources: what the spans refer to; number 0 is the literals.
        context_length: tokens in a window.
        epoch_order: ``documents``: documents permuted anew, packed, windows permuted, every epoch;
            ``windows``: packed once, windows permuted every epoch; ``sequential``: documents
            permuted anew, windows in order, so that a megadoc's windows follow each other.
        seed: fixes every permutation, together with the stream's name and the epoch.
    """

    def __init__(
        self,
        ordering: Ordering,
        tables: PieceTables,
        sources: list[TokenSource],
        context_length: int,
        epoch_order: EpochOrder,
        seed: int,
    ) -> None:
        self.ordering = ordering
        self.context_length = context_length
        self._tables = tables
        self._sources = sources
        self._epoch_order = epoch_order
        self._seed = seed
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        packed = self._epoch(0).packed
        # The pieces are the same in every epoch, so are these.
        self.tokens = packed.tokens
        self.windows = packed.windows(context_length)
        self.synthetic_tokens = packed.synthetic_tokens(set(tables.real.store[:1].tolist()))

    @property
    def name(self) -> str:
        return self.ordering.name

    def window(self, epoch: int, position: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
        """Tokens, targets (both ``(context_length,)``) and index of the window at a place of an epoch."""
        order = self._epoch(epoch)
        index = int(order.windows[position])
        tokens, targets = order.packed.window(index, self.context_length, self._sources)
        return tokens, targets, index

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs[epoch] = self._arrange(epoch)
            while len(self._epochs) > _KEPT_EPOCHS:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _arrange(self, epoch: int) -> _Epoch:
        packed_in = 0 if self._epoch_order == "windows" else epoch
        packed = PackedTokens.of(self.ordering.spans(self._tables, self._random("documents", packed_in)))
        windows = np.arange(packed.windows(self.context_length))
        if self._epoch_order != "sequential":
            windows = self._random("windows", epoch).permutation(windows)
        return _Epoch(packed, windows)

    def _random(self, purpose: str, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, *f"{self.name}/{purpose}".encode()])
