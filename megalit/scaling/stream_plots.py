"""Pictures of streams: megadoc lengths against the context, and what the first windows are made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megalit.files import write_png

Lengths = npt.NDArray[np.int64]
# A window as (kind of text, tokens) parts, in order.
Composition = Sequence[tuple[str, int]]

_COLOURS = {"real": "tab:blue", "generation": "tab:orange", "thought": "tab:green", "literal": "0.3"}


def plot_streams(
    lengths: Mapping[str, Lengths], context_length: int, windows: Sequence[tuple[str, Composition]], path: Path
) -> None:
    """Draw both to one PNG.

    Args:
        lengths: tokens of each stretch of one document's pieces, by stream.
        context_length: tokens in a window.
        windows: label and composition of the windows to show.
        path: where the picture goes.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9, 3.4 + 0.28 * len(windows)), layout="constrained", dpi=120)
    upper, lower = figure.subplots(2, 1, height_ratios=[3.0, max(1.0, 0.28 * len(windows))])
    largest = max(int(values.max()) for values in lengths.values())
    bins = np.geomspace(1, max(2, largest, context_length), 50)
    for name, values in lengths.items():
        share = np.full(len(values), 1 / len(values))
        upper.hist(values, bins=bins, weights=share, histtype="step", linewidth=1.6, label=name)
    upper.axvline(context_length, color="0.4", linestyle="--", label=f"context ({context_length:,})")
    upper.set_xscale("log")
    upper.set_xlabel("tokens from a document's first piece to its last")
    upper.set_ylabel("share")
    upper.legend(frameon=False)
    for row, (_, parts) in enumerate(windows):
        left = 0
        for kind, tokens in parts:
            lower.barh(row, tokens, left=left, color=_COLOURS[kind], edgecolor="white", linewidth=0.6)
            left += tokens
    lower.set_yticks(range(len(windows)), [label for label, _ in windows])
    lower.invert_yaxis()
    lower.set_xlim(0, context_length + 1)
    lower.set_xlabel("tokens of the first windows of the run")
    handles = [Patch(color=colour, label=kind) for kind, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    write_png(path, figure)
