"""Losses against what was varied: generations, synthetic tokens, epochs; and the curves of training."""

from collections.abc import Callable, Sequence

import numpy as np

from megalit.scaling.report.drawing import (
    LOSS,
    Line,
    Missing,
    Picture,
    colour_of,
    draw_line,
    label_ends,
    log_axis,
    marker_of,
    panels,
    shade_of,
    to_png,
)
from megalit.scaling.report.published import Beside
from megalit.scaling.report.reading import Run
from megalit.scaling.report.setting import REAL_ONLY, Family, Loss, Setting, short, stream_label
from megalit.scaling.report.study import Study

Tuned = Sequence[tuple[Setting, Loss]]


def against_generations(study: Study, suite: str) -> Picture | Missing:
    """Loss against G, as in arXiv 2603.18534: each stream's best setting at each G."""
    return _by_stream(
        study,
        suite,
        name="loss_vs_generations",
        title="Loss against generations",
        x_of=lambda setting: setting.generations,
        x_label="generations of each document (G)",
        caption="The best setting of each stream at each number of generations; pale points are the other settings. "
        "The dashed line is the best run on real documents alone.",
        remedy="train simple or stitched streams, `megalit fit --config configs/stream/stitched.yaml "
        "--data.generations 4`, beside real documents alone",
        published="generations",
    )


def against_synthetic_tokens(study: Study, suite: str) -> Picture | Missing:
    """Loss against the unique synthetic tokens of the streams."""
    return _by_stream(
        study,
        suite,
        name="loss_vs_synthetic_tokens",
        title="Loss against synthetic tokens",
        x_of=lambda setting: setting.synthetic_tokens,
        x_label="unique synthetic tokens",
        caption="The same runs against what their generations are in tokens: a stream of shorter generations stands "
        "further left.",
        remedy="train on a synthetic stream, `megalit fit --config configs/stream/stitched.yaml`, beside real "
        "documents alone",
    )


def _by_stream(
    study: Study,
    suite: str,
    name: str,
    title: str,
    x_of: Callable[[Setting], int | None],
    x_label: str,
    caption: str,
    remedy: str,
    published: str | None = None,
) -> Picture | Missing:
    shown = []
    for family in study.families:
        best = study.best(family, suite)
        drawn = [(setting, loss) for setting, loss in best if x_of(setting)]
        if drawn and len(best) > 1:
            shown.append((family, best, drawn))
    if not shown:
        return Missing(title, remedy)
    beside = Beside(study.published_over(published, suite) if published else ())
    canvas, axes = panels([*(str(family) for family, _, _ in shown), *beside.titles])
    rows: list[tuple[str, ...]] = []
    for panel, (family, best, drawn) in zip(axes, shown, strict=False):
        lines = [
            _line(stream, [pair for pair in drawn if pair[0].stream == stream], x_of)
            for stream in dict.fromkeys(setting.stream for setting, _ in drawn)
        ]
        values = [x for line in lines for x in line.x]
        for setting, loss in study.of(family, suite):
            x = x_of(setting)
            if x and not any(setting is other for other, _ in drawn):
                colour = colour_of(setting.stream)
                panel.plot([x], [loss.mean], marker_of(setting.stream), color=colour, alpha=0.25, markersize=4)
        for line in lines:
            draw_line(panel, line)
        log_axis(panel.xaxis, values, short)
        low, high = min(values), max(values)
        panel.set_xlim(low / 1.25, high * 1.25 if low < high else low * 1.5)
        ends = [(line.x[-1], line.y[-1], line.label, line.colour) for line in lines]
        real = next(((setting, loss) for setting, loss in best if setting.stream == REAL_ONLY), None)
        if real is not None:
            panel.axhline(real[1].mean, color=colour_of(real[0].stream), linestyle="--", linewidth=1.4)
            ends.append((panel.get_xlim()[1], real[1].mean, REAL_ONLY, colour_of(real[0].stream)))
        panel.set(xlabel=x_label, ylabel=LOSS)
        label_ends(canvas, panel, ends)
        rows += [
            (str(family), setting.stream, _count(x_of(setting)), str(loss), str(len(loss.values)))
            for setting, loss in best
            if x_of(setting) or setting.generations == 0
        ]
    beside.draw(canvas, axes[len(shown) :], x_label)
    rows += [(*row, "–") for row in beside.rows]
    left_out = sorted({s.stream for s in study.settings if x_of(s) is None})
    remarks = [f"The plan of {stream} does not count generations, so it is not drawn here." for stream in left_out]
    return Picture(
        name,
        suite,
        title,
        caption + beside.caption,
        to_png(canvas),
        ("model and data", "stream", x_label, LOSS, "seeds"),
        tuple(rows),
        tuple(remarks),
    )


def against_epochs(study: Study, suite: str) -> Picture | Missing:
    """Loss against epochs of the real stream, for each stream and G that was trained with several."""
    shown: list[tuple[Family, list[Line]]] = []
    rows: list[tuple[str, ...]] = []
    for family in study.families:
        found = [pair for pair in study.of(family, suite) if pair[0].real_epochs]
        generations = generations_of(found)
        lines = []
        for name in dict.fromkeys(setting.name for setting, _ in found):
            best: dict[float, tuple[Setting, Loss]] = {}
            for setting, loss in found:
                epochs = float(f"{setting.real_epochs:.3g}")
                if setting.name == name and (epochs not in best or loss.mean < best[epochs][1].mean):
                    best[epochs] = (setting, loss)
            if len(best) > 1:
                pairs = [best[epochs] for epochs in sorted(best)]
                line = _line(name, pairs, lambda setting: float(f"{setting.real_epochs:.3g}"))
                line.colour = shade_of(pairs[0][0], generations)
                lines.append(line)
                rows += [
                    (str(family), name, f"{epochs:g}", str(best[epochs][1]), str(len(best[epochs][1].values)))
                    for epochs in sorted(best)
                ]
        if lines:
            shown.append((family, lines))
    title = "Loss against epochs"
    if not shown:
        return Missing(title, "train one stream with several `--data.real_epochs`, 4, 8 and 16 for example")
    beside = Beside(study.published_over("real epochs", suite))
    canvas, axes = panels([*(str(family) for family, _ in shown), *beside.titles])
    beside.draw(canvas, axes[len(shown) :], "epochs of the real stream")
    rows += [(*row, "–") for row in beside.rows]
    for panel, (_, lines) in zip(axes, shown, strict=False):
        for line in lines:
            draw_line(panel, line)
        values = [x for line in lines for x in line.x]
        log_axis(panel.xaxis, values, "{:g}".format)
        panel.set_xlim(min(values) / 1.2, max(values) * 1.2)
        panel.set(xlabel="epochs of the real stream", ylabel=LOSS)
        label_ends(canvas, panel, [(line.x[-1], line.y[-1], line.label, line.colour) for line in lines])
    return Picture(
        "loss_vs_epochs",
        suite,
        title,
        "How often the real documents were read. Each point is the best setting for this number of epochs."
        + beside.caption,
        to_png(canvas),
        ("model and data", "stream", "epochs", LOSS, "seeds"),
        tuple(rows),
    )


def training_curves(study: Study, suite: str) -> Picture | Missing:
    """Validation and training loss over tokens, of each stream's best settings and of unfinished runs."""
    shown: list[tuple[str, list[tuple[Run, str, str]]]] = []
    for family in study.compared:
        best = study.best_by_stream(family, suite)
        runs = [(s.runs[0], s.name, colour_of(s.stream)) for s, _ in best if _points(s.runs[0], suite)]
        if runs:
            shown.append((str(family), runs))
    going = [run for run in study.unfinished if _points(run, suite)]
    if going:
        shown.append(("unfinished runs", [(run, run.name, colour_of(stream_label(run.record))) for run in going]))
    title = "Training and validation curves"
    if not shown:
        return Missing(title, "validate during training, `--trainer.val_check_interval 0.1`")
    canvas, axes = panels([title for title, _ in shown])
    rows: list[tuple[str, ...]] = []
    for panel, (_, runs) in zip(axes, shown, strict=True):
        ends = []
        for run, label, colour in runs:
            points = _points(run, suite)
            training = [
                (p.tokens, p.losses["train"]) for p in run.record.training_curve if _known(p.losses.get("train"))
            ]
            if training:
                x, y = zip(*training, strict=True)
                panel.plot(x, y, color=colour, linewidth=0.8, alpha=0.45)
            x, y = zip(*points, strict=True)
            panel.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=3)
            ends.append((x[-1], y[-1], label, colour))
            rows.append((run.name, label, str(len(points)), short(x[-1]), f"{y[-1]:.4f}", f"{min(y):.4f}"))
        panel.xaxis.set_major_formatter(lambda value, _: short(value) if value else "0")
        heights = [y for run, _, _ in runs for _, y in _points(run, suite)]
        # The first losses are far above what is to be compared.
        panel.set_ylim(top=float(np.quantile(heights, 0.85)) + 0.05)
        panel.set(xlabel="training tokens", ylabel="loss (nats per token)")
        label_ends(canvas, panel, ends)
    return Picture(
        "training_curves",
        suite,
        title,
        "Points: validation loss; thin lines: training loss over all streams of the run. The best setting of each "
        "stream, its first seed. The first losses lie above the picture.",
        to_png(canvas),
        ("run", "stream", "validations", "tokens", "last loss", "lowest loss"),
        tuple(rows),
    )


def _line(label: str, pairs: Tuned, x_of: Callable[[Setting], float | None]) -> Line:
    ordered = sorted(pairs, key=lambda pair: x_of(pair[0]) or 0)
    return Line(
        label,
        colour_of(ordered[0][0].stream),
        [float(x_of(setting) or 0) for setting, _ in ordered],
        [loss.mean for _, loss in ordered],
        [loss.deviation for _, loss in ordered],
        marker_of(ordered[0][0].stream),
    )


def generations_of(pairs: Tuned) -> list[int]:
    return sorted({setting.generations for setting, _ in pairs if setting.generations})


def _points(run: Run, suite: str) -> list[tuple[int, float]]:
    """Tokens and validation losses, without those that were not finite."""
    curve = run.record.validation_curve
    return [(point.tokens, point.losses[suite]) for point in curve if _known(point.losses.get(suite))]


def _known(loss: float | None) -> bool:
    return loss is not None


def _count(number: float | None) -> str:
    return f"{number:,.0f}" if number is not None else "–"
