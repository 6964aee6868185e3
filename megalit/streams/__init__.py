"""From token stores to batches.

::

    TokenStore      one LitData data set per source: tokens on disk, once
        |           + one row per item: document, generation, token count
    PieceTables     stores joined by document, as arrays
        |
    ordering        pure function -> spans (store, item, start, stop): real, simple, stitched, ...
        |
    packing         spans -> windows of L + 1 tokens
        |
    Stream          sources + ordering: any window of any epoch
        |
    Schedule        sample k of the run -> (stream, epoch, window), in closed form
        |
    StreamDataModule   a LightningDataModule: one loader item is one optimizer step

The streams differ only in the order of documents before they are cut into windows, so tokens
are stored once and a stream is a function over indices (design: one store, many streams).
"""

from megalit.streams.datamodule import (
    LatentThoughtStream,
    RealStream,
    SimpleStream,
    StitchedStream,
    StreamDataModule,
)

__all__ = ["LatentThoughtStream", "RealStream", "SimpleStream", "StitchedStream", "StreamDataModule"]
