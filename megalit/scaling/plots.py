"""Pictures of runs."""

from pathlib import Path

from megalit.files import write_png
from megalit.scaling.records import RunRecord


def loss_curve(record: RunRecord, path: Path) -> None:
    """Draw training and validation loss over tokens to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    training = record.training_curve
    axes.plot(
        [point.tokens / 1e6 for point in training],
        [point.losses["train"] for point in training],
        color="0.65",
        linewidth=1,
        label="training (all streams)",
    )
    for suite in record.losses:
        points = [point for point in record.validation_curve if suite in point.losses]
        axes.plot(
            [point.tokens / 1e6 for point in points],
            [point.losses[suite] for point in points],
            marker="o",
            markersize=4,
            label=f"validation: {suite} ({record.losses[suite]['nats_per_token']:.3f})",
        )
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    write_png(path, figure)
