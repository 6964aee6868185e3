"""A stream: pieces and an ordering, from which any window of any epoch can be had."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megalit import __version__
from megalit.files import fingerprint
from megalit.streams.orderings import Ordering, describe
from megalit.streams.packing import PackedTokens
from megalit.streams.pieces import Integers, PieceTables
from megalit.streams.plan_arrays import Arrays, PlanArrays

EpochOrder = Literal["documents", "windows", "sequential", "paper"]

# Of the arrays kept on a node; another layout has another number.
_ARRAYS = 3
# Of the generations that are drawn: no stream's own, so that streams with one seed draw the same ones and can be
# compared. It is what a stream named stitched always had.
_DRAWN = b"stitched/fixed"


class Stream:
    """One component of a mixture.

    Args:
        ordering: the order of pieces before cutting.
        tables: the pieces that the ordering arranges.
        context_length: tokens in a window.
        epoch_order: ``documents``: documents permuted anew, packed, windows permuted, every epoch;
            ``windows``: packed once, windows permuted every epoch; ``sequential``: documents permuted anew,
            windows in order, so that a megadoc's windows follow each other; ``paper``: packed once, one
            permutation of disjoint windows for all epochs, the remainder dropped.
        seed: fixes every permutation, together with the stream's name and the epoch, and by itself which generations
            are drawn.
        identity: tells this data set from others, for the plans kept on the node.
    """

    def __init__(
        self,
        ordering: Ordering,
        tables: PieceTables,
        context_length: int,
        epoch_order: EpochOrder,
        seed: int,
        identity: Any,
    ) -> None:
        self.ordering = ordering
        self.tables = tables
        self.context_length = context_length
        self.epoch_order = epoch_order
        self._seed = seed
        # Another version may arrange the same settings in another way.
        versions = [__version__, np.__version__, _ARRAYS]
        key = fingerprint([versions, identity, describe(ordering), context_length, epoch_order, seed])
        self._arrays = PlanArrays(key, self._arrange)
        self._packed: dict[int, PackedTokens] = {}
        packed = self.packed(0)
        # The pieces' lengths are the same in every epoch, so are these.
        self.tokens = packed.tokens
        self.windows = packed.windows(context_length)
        self.synthetic_tokens = int(self._arrays[0]["synthetic_tokens"][0])

    def forget(self) -> None:
        """Remove the epochs' arrays from this node's disk, where no other run needs them."""
        self._arrays.forget()

    @property
    def name(self) -> str:
        return self.ordering.name

    def window_at(self, epoch: int, positions: Integers) -> Integers:
        """Numbers of the windows that stand at these places of an epoch."""
        windows: Integers = self._arrays[self._repeated(epoch)]["windows"][positions]
        return windows

    def fill(
        self, out: npt.NDArray[np.int32], into: Integers, epoch: int, positions: Integers
    ) -> tuple[Integers, Integers]:
        """Write the windows at places of an epoch into rows ``into`` of ``out``.

        Gives their numbers and how many tokens were written of each (see :meth:`PackedTokens.fill`).
        """
        windows = self.window_at(epoch, positions)
        packed = self.packed(epoch)
        begins, ends = packed.bounds(windows, self.context_length)
        packed.fill(out, into, begins, ends)
        return windows, ends - begins

    def packed(self, epoch: int) -> PackedTokens:
        """The epoch's pieces, end to end."""
        epoch = self._repeated(epoch)
        if epoch not in self._packed:
            arrays: Any = self._arrays[epoch]
            packed = PackedTokens(self.tables.table, arrays["rows"], arrays["ends"], self.epoch_order == "paper")
            self._packed = {known: value for known, value in self._packed.items() if known >= epoch - 1}
            self._packed[epoch] = packed
        return self._packed[epoch]

    def _repeated(self, epoch: int) -> int:
        return 0 if self.epoch_order == "paper" else epoch

    def _arrange(self, epoch: int) -> Arrays:
        packed_in = 0 if self.epoch_order in ("windows", "paper") else epoch
        drawn = np.random.default_rng([self._seed, 0, *_DRAWN])
        rows = self.ordering.rows(self.tables, drawn, self._random("documents", packed_in))
        packed = PackedTokens.of(self.tables.table, rows, self.epoch_order == "paper")
        windows = np.arange(packed.windows(self.context_length))
        if self.epoch_order != "sequential":
            windows = self._random("windows", epoch).permutation(windows)
        arrays: Arrays = {"rows": packed.rows, "ends": packed.ends, "windows": windows}
        if epoch == 0:  # counted once for all processes of a node
            generated = packed.rows[self.tables.table.generation[packed.rows] >= 0]
            arrays["synthetic_tokens"] = np.array([self.tables.table.length[generated].sum(dtype=np.int64)])
        return arrays

    def _random(self, purpose: str, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, *f"{self.name}/{purpose}".encode()])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}
