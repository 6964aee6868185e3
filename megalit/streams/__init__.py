"""From token stores to batches.

::

    TokenStore      one LitData data set per source: tokens on disk, once
        |           + one row per item: document, generation, token count
    PieceTables     stores joined by document, as arrays
        |
    ordering        pure function -> rows of the table: real, simple, stitched, latent thoughts
        |
    packing         rows -> windows of L + 1 tokens
        |
    Stream          tables + ordering: any window of any epoch
        |
    Mixture         streams + schedule: sample k of the run -> (stream, epoch, window), closed form
        |
    StreamDataModule   a LightningDataModule: one loader item is one optimizer step

The streams differ only in the order of documents before they are cut into windows, so tokens
are stored once and a stream is a function over indices (design: one store, many streams).
"""

from megalit.streams.datamodule import RealStream, StreamDataModule
from megalit.streams.named import LatentThoughtStream, MixtureStream, SampleStream, SimpleStream, StitchedStream

__all__ = [
    "LatentThoughtStream",
    "MixtureStream",
    "RealStream",
    "SampleStream",
    "SimpleStream",
    "StitchedStream",
    "StreamDataModule",
]
