"""What is known so far: a Markdown table for each question, and plots."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from results import Result, Results, tuned
from scipy.stats import t
from table import GROUPS, Run, Tuned

from megalit.errors import UserError
from megalit.files import write_atomic

STREAMS = ("simple", "stitched")
# More than the table asks for.
SEEDS = 10


def write_report(results: Results, scale: str, folder: Path) -> None:
    """Write ``results.md`` and ``results.png`` into ``folder``.

    Raises:
        UserError: there is no record yet.
    """
    if not results:
        raise UserError(f"{folder} holds no records yet: train some runs with --passages")
    best = tuned(scale, results)
    lines = [
        f"# Results so far, scale `{scale}`",
        "",
        "Written by run.py from the records beside it. Losses are of the held-out passages, in nats per token;",
        "the last column is the difference from the tuned run of the same stream (`steps`: from its first run).",
        "",
        *_noise(results, best),
    ]
    shown = set()
    for name, group in GROUPS.items():
        runs = [run for run in group(best) if run.name in results]
        if runs:
            control = next(group(best)) if name == "steps" else None
            lines += [f"## {name}: {(group.__doc__ or '').strip()}", "", *_table(results, runs, best, control), ""]
        shown |= {run.name for run in runs}
    others = [result for name, result in results.items() if name not in shown]
    if others:
        lines += ["## Runs from earlier settings", "", *_rows([(result, None) for result in others]), ""]
    lines += _efficiency(results, best)
    lines += ["![losses](results.png)", ""]
    figure = _draw(results, best)
    write_atomic(folder / "results.png", lambda file: figure.savefig(file, format="png"))
    write_atomic(folder / "results.md", lambda file: file.write("\n".join(lines).encode()))


def _table(results: Results, runs: Iterable[Run], best: Tuned, control: Run | None) -> list[str]:
    rows = []
    for run in runs:
        reference = results.loss(control or best[run.stream])
        rows.append((results[run.name], None if reference is None else results[run.name].loss - reference))
    return _rows(rows)


def _rows(rows: Iterable[tuple[Result, float | None]]) -> list[str]:
    lines = ["| run | loss | bits/byte | training tokens | epochs | difference |", "|---|---|---|---|---|---|"]
    for result, difference in rows:
        epochs = ", ".join(f"{name} {count:.2f}" for name, count in result.epochs.items())
        lines.append(
            f"| {result.name} | {result.loss:.4f} | {result.bits_per_byte:.4f} | {result.tokens:,} | {epochs} | "
            + (f"{difference:+.4f} |" if difference is not None else "|")
        )
    return lines


def of_seeds(results: Results, run: Run) -> list[float]:
    """Losses of a run with all seeds that there are."""
    losses = (results.loss(replace(run, seed=seed)) for seed in range(SEEDS))
    return [loss for loss in losses if loss is not None]


def noise(results: Results) -> tuple[float, int] | None:
    """Standard deviation between seeds, pooled over all runs with several, and its degrees of freedom."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, result in results.items():
        groups[name.split("_seed")[0]].append(result.loss)
    several = [losses for losses in groups.values() if len(losses) > 1]
    freedom = sum(len(losses) - 1 for losses in several)
    if not freedom:
        return None
    return math.sqrt(sum((len(losses) - 1) * stdev(losses) ** 2 for losses in several) / freedom), freedom


def _noise(results: Results, best: Tuned) -> list[str]:
    found = noise(results)
    if found is None:
        return ["No setting has been run with several seeds yet, so the noise is not known.", ""]
    deviation, freedom = found
    chance = math.sqrt(2) * deviation * float(t.ppf(0.975, freedom))
    lines = [
        f"Standard deviation between seeds: {deviation:.4f} (pooled, {freedom} degrees of freedom). Two single runs",
        f"differ by more than chance (95%, Student's t) from {chance:.3f} on.",
        "",
        "| recipe | seeds | mean loss | standard deviation |",
        "|---|---|---|---|",
    ]
    for run in best.values():
        losses = of_seeds(results, run)
        if losses:
            spread = f"{stdev(losses):.4f}" if len(losses) > 1 else ""
            lines.append(f"| {run.recipe} | {len(losses)} | {mean(losses):.4f} | {spread} |")
    return [*lines, "", *_paired(results, best)]


def _paired(results: Results, best: Tuned) -> list[str]:
    """Differences within each seed: what seeds have in common falls out."""
    lines = []
    for first, second in (("simple", "real"), ("stitched", "real"), ("stitched", "simple")):
        pairs = [
            [results.loss(replace(best[stream], seed=seed)) for stream in (first, second)] for seed in range(SEEDS)
        ]
        differences = [f"{a - b:+.4f}" for a, b in pairs if a is not None and b is not None]
        if differences:
            lines.append(f"- {best[first].recipe} minus {best[second].recipe}, by seed: {', '.join(differences)}")
    return [*lines, ""] if lines else []


def _baseline(results: Results) -> tuple[list[int], list[float]]:
    """Best loss of real only for each amount of real data: unique tokens, losses."""
    best: dict[int, float] = {}
    for name, result in results.items():
        if name.startswith("real_") and "window" not in name:
            best[result.real_tokens] = min(result.loss, best.get(result.real_tokens, math.inf))
    return sorted(best), [best[tokens] for tokens in sorted(best)]


def _efficiency(results: Results, best: Tuned) -> list[str]:
    tokens, losses = _baseline(results)
    if len(tokens) < 2 or results.loss(best["real"]) is None:
        return []
    own = results[best["real"].name].real_tokens
    lines = [
        "## Data efficiency",
        "",
        "How many times the real tokens real only would need for the loss: log-linear between the measured amounts of",
        "data, each with the best loss of its runs.",
        "",
        "| recipe | loss | data efficiency |",
        "|---|---|---|",
    ]
    for stream in STREAMS:
        reached = of_seeds(results, best[stream])
        if reached:
            loss = mean(reached)
            if loss < losses[-1]:
                worth = f"> {tokens[-1] / own:.2f}"
            else:
                worth = f"{math.exp(float(np.interp(-loss, [-x for x in losses], np.log(tokens)))) / own:.2f}"
            lines.append(f"| {best[stream].recipe} | {loss:.4f} | {worth} |")
    return [*lines, ""]


def _draw(results: Results, best: Tuned) -> Any:
    """Loss against G, against the window and against the amount of real data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    of_g, of_window, of_data = figure.subplots(1, 3)
    real = of_seeds(results, best["real"])
    if real:
        of_g.axhline(mean(real), color="0.4", linestyle="--", label="real only")
    for stream in STREAMS:
        _line(of_g, stream, [(g, of_seeds(results, replace(best[stream], generations=g))) for g in (1, 2, 4, 8, 11)])
    of_g.set_xlabel("G (generations of a document)")
    for stream in ("real", *STREAMS):
        points = {1024: of_seeds(results, best[stream])}
        for run in GROUPS["window"](best):
            if run.stream == stream:
                points[int(run.settings["data.context_length"])] = of_seeds(results, run)
        _line(of_window, best[stream].recipe, sorted(points.items()))
    of_window.set_xlabel("window (tokens)")
    tokens, losses = _baseline(results)
    of_data.plot(tokens, losses, marker="o", label="real only, best of its runs", color="0.4")
    for stream in STREAMS:
        reached = of_seeds(results, best[stream])
        if reached and real:
            own = results[best["real"].name].real_tokens
            of_data.scatter([own], [mean(reached)], label=best[stream].recipe, zorder=3)
    of_data.set_xlabel("unique real tokens")
    for axes, places in ((of_g, (1, 2, 4, 8, 11)), (of_window, (256, 512, 1024, 2048)), (of_data, None)):
        axes.set_xscale("log")
        if places:
            axes.set_xticks(places, [str(place) for place in places])
            axes.minorticks_off()
        axes.set_ylabel("loss (nats per token)")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return figure


def _line(axes: Any, label: str, points: Sequence[tuple[int, list[float]]]) -> None:
    there = [(at, losses) for at, losses in points if losses]
    if there:
        spread = [stdev(losses) if len(losses) > 1 else 0.0 for _, losses in there]
        axes.errorbar([at for at, _ in there], [mean(losses) for _, losses in there], spread, marker="o", label=label)
