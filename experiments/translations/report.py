"""What is known so far: a Markdown table for each question, and the picture."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

from estimates import (
    STREAMS,
    baseline,
    edges,
    efficiency,
    efficiency_by_law,
    interval,
    noise,
    of_seeds,
    paired,
    pooled,
)
from figure import draw
from grid import Tuned
from results import TIE, Result, Results, tuned
from scipy.stats import t
from spec import Run, StreamName
from table import GROUPS, ensembles, seeded

from megalit.errors import UserError
from megalit.files import write_atomic, write_png

# Settings that differ by less, in nats, differ about as much between seeds.
NEAR = 0.1

ROWS = ["| run | loss | bits/byte | training tokens | epochs | difference |", "|---|---|---|---|---|---|"]


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
        "± is half of a 95% interval (Student's t).",
        "",
        *_noise(results, best),
        *_precision(results),
        *_search(results, best),
        *_streams(results, best),
        *_ensembles(results, best),
        *_long_documents(results, best),
        *_behind_siblings(results),
    ]
    shown = set()
    for name, group in GROUPS.items():
        runs = [run for run in group(best) if results.of(run) is not None]
        # A group whose only runs are the tuned ones has told nothing yet.
        if any(name == "search" or run not in best.values() for run in runs):
            lines += [f"## {name}: {(group.__doc__ or '').strip()}", "", *ROWS]
            references = [_reference(results, name, run, best) for run in runs]
            differences = [_difference(results, run, other) for run, other in zip(runs, references, strict=True)]
            lines += [_row(results[run.name], change) for run, change in zip(runs, differences, strict=True)]
            lines.append("")
            if name != "search":
                gaps = [*_gaps(results, runs, best), *_repeated(results, name, runs, best)]
                lines += [*gaps, ""] if gaps else []
            shown |= {run.name for run in runs}
    others = [result for name, result in results.items() if name not in shown]
    if others:
        lines += ["## Runs from earlier settings", "", *ROWS, *(_row(result, None) for result in others), ""]
    lines += [*_efficiency(results, best), "![losses](results.png)", ""]
    figure = draw(results, best)
    write_png(folder / "results.png", figure)
    write_atomic(folder / "results.md", lambda file: file.write("\n".join(lines).encode()))


def _row(result: Result, difference: float | None) -> str:
    epochs = ", ".join(f"{name} {count:.2f}" for name, count in result.epochs.items())
    return f"| {result.name} | {result.loss:.4f} | {result.bits_per_byte:.4f} | {result.tokens:,} | {epochs} | " + (
        f"{difference:+.4f} |" if difference is not None else "|"
    )


def _reference(results: Results, group: str, run: Run, best: Tuned) -> Run:
    """What a run is compared with, of its own seed where that is known.

    It is the tuned run; in ``steps``, ``wsd`` and what is longer the run that it differs from in one thing; among seeds
    the first.
    """
    reference = best["real" if run.stream == "samples" else run.stream]
    if group in ("longer", "longer_generations", "wsd"):
        reference = replace(reference, epochs=run.epochs)
    paper = next(GROUPS["steps"](best))
    if group == "steps" and (run == reference or run.change.startswith(f"{paper.change}, ")):
        reference = paper
    same = replace(reference, seed=run.seed)
    return same if group not in ("seeds", "larger") and results.of(same) is not None else reference


def _difference(results: Results, run: Run, reference: Run) -> float | None:
    own, other = results.loss(run), results.loss(reference)
    return own - other if own is not None and other is not None else None


def _noise(results: Results, best: Tuned) -> list[str]:
    found = noise(results, best)
    if found is None:
        return ["No setting has been run with several seeds yet, so the noise is not known.", ""]
    deviation, freedom = found
    chance = math.sqrt(2) * deviation * float(t.ppf(0.975, freedom))
    return [
        f"Standard deviation between seeds of the tuned runs: {deviation:.4f} (pooled, {freedom} degrees of freedom).",
        f"Two single runs like them, chosen beforehand, differ by more than chance (95%) from {chance:.3f} on. The",
        "tables hold dozens of runs, and their differences are from a run that was chosen as the best, so some pass",
        "that by chance: what counts has to be repeated with other seeds.",
        "",
        *_noise_of_differences(results, best),
    ]


def _noise_of_differences(results: Results, best: Tuned) -> list[str]:
    pairs = [pair for name, group in GROUPS.items() for pair in _repeated_runs(results, name, group(best), best)]
    differences = [paired(of_seeds(results, run), of_seeds(results, reference))[0] for run, reference in pairs]
    found = pooled(values for values in differences if abs(mean(values)) < NEAR)
    if found is None:
        return []
    deviation, freedom = found
    two, three = (float(t.ppf(0.975, freedom)) * deviation / math.sqrt(count) for count in (2, 3))
    return [
        f"Differences within a seed, of settings less than {NEAR:g} apart, have a standard deviation of",
        f"{deviation:.4f} (pooled, {freedom} degrees of freedom). By it the mean of two is known to ± {two:.3f} and of",
        f"three to ± {three:.3f}: the intervals below are of a few seeds alone, and too narrow where these happen to",
        "agree. None of them holds that other passages might have been held out.",
        "",
    ]


def _precision(results: Results) -> Iterator[str]:
    for precision in sorted({result.precision for result in results.values() if result.precision}):
        names = ", ".join(name for name, result in results.items() if result.precision == precision)
        yield from (f"Trained in {precision}, the precision of another machine than the others': {names}.", "")


def _search(results: Results, best: Tuned) -> list[str]:
    lines = ["## The best settings", ""]
    for run in best.values():
        known = results.of(run)
        if known is not None:
            remarks = "; ".join(edges(results, run)) or f"no neighbour on the grid is better by more than {TIE}"
            lines.append(f"- {known.name}: {remarks}")
    return [*lines, ""]


def _streams(results: Results, best: Tuned) -> list[str]:
    """The tuned streams over seeds, and their differences within each seed."""
    losses = {stream: of_seeds(results, best[stream]) for stream in STREAMS}
    lines = ["| recipe | seeds | loss |", "|---|---|---|"]
    lines += [f"| {best[s].recipe} | {len(losses[s])} | {interval(losses[s])} |" for s in STREAMS if losses[s]]
    lines.append("")
    pairs: list[tuple[StreamName, StreamName]] = [("simple", "real"), ("stitched", "real"), ("stitched", "simple")]
    for first, second in pairs:
        line = _pair(losses[first], losses[second])
        if line:
            lines.append(f"- {best[first].recipe} minus {best[second].recipe}: {line}")
    return [*lines, ""]


def _pair(first: dict[int, float], second: dict[int, float]) -> str | None:
    differences, half = paired(first, second)
    if not differences:
        return None
    each = ", ".join(f"{difference:+.4f}" for difference in differences)
    return f"{mean(differences):+.4f} ± {half:.4f} (by seed: {each})" if half is not None else f"{each} (one seed)"


def _ensembles(results: Results, best: Tuned) -> list[str]:
    rows = []
    for name in ensembles(best):
        averages = results.averages(name)
        if averages is not None:
            curves = (averages["probabilities"], averages["logits"])
            cells = (" / ".join(f"{loss:.4f}" for loss in curve) for curve in curves)
            rows.append(f"| {name} | {len(curves[0])} | {' | '.join(cells)} |")
    if not rows:
        return []
    return [
        "## Ensembles",
        "",
        "| members | n | probabilities averaged, K = 1 … n | logits averaged |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def _long_documents(results: Results, best: Tuned) -> list[str]:
    """The tuned streams on long documents, at each context length, and stitched against simple within seeds."""
    losses = {stream: {run.seed: results.long(run) for run in seeded(best[stream])} for stream in STREAMS}
    lengths = sorted({length for by_seed in losses.values() for known in by_seed.values() for length in known})
    if not lengths:
        return []

    def at(stream: StreamName, length: int) -> dict[int, float]:
        return {seed: known[length] for seed, known in losses[stream].items() if length in known}

    lines = ["## Long documents, by context length", "", f"| recipe | {' | '.join(f'{n:,}' for n in lengths)} |"]
    lines.append("|---" * (1 + len(lengths)) + "|")
    for stream in STREAMS:
        cells = [interval(at(stream, length)) if at(stream, length) else "" for length in lengths]
        lines.append(f"| {best[stream].recipe} | {' | '.join(cells)} |")
    lines.append("")
    for length in lengths:
        gap = _pair(at("stitched", length), at("simple", length))
        if gap:
            lines.append(f"- at {length:,}, {best['stitched'].recipe} minus {best['simple'].recipe}: {gap}")
    return [*lines, ""]


def _behind_siblings(results: Results) -> list[str]:
    """What a real document behind its own translations costs, and behind those of others."""
    measured = {name: losses for name in results if (losses := results.behind_siblings(name)) is not None}
    if not measured:
        return []
    most = max(len(losses["siblings"]) for losses in measured.values())
    lines = ["## Behind siblings", "", "Losses of held-out real documents, each behind so many translations.", ""]
    lines += [f"| run | of | {' | '.join(map(str, range(most)))} |", "|---" * (2 + most) + "|"]
    for run, losses in measured.items():
        for whose, row in (("its own", losses["siblings"]), ("others", losses["strangers"])):
            cells = [f"{loss:.3f}" for loss in row] + [""] * (most - len(row))
            lines.append(f"| {run} | {whose} | {' | '.join(cells)} |")
    return [*lines, ""]


def _repeated(results: Results, group: str, runs: Iterable[Run], best: Tuned) -> Iterator[str]:
    """Runs with several seeds against the same seeds of what they are compared with."""
    for run, reference in _repeated_runs(results, group, runs, best):
        pair = _pair(of_seeds(results, run), of_seeds(results, reference))
        yield f"- {run.name} minus {reference.name}: {pair}"


def _repeated_runs(results: Results, group: str, runs: Iterable[Run], best: Tuned) -> Iterator[tuple[Run, Run]]:
    """Runs of which several seeds are there, each with what it is compared with."""
    for run in runs:
        reference = _reference(results, group, run, best)
        both = of_seeds(results, run).keys() & of_seeds(results, reference).keys()
        if not run.seed and run not in best.values() and len(both) > 1:
            yield run, reference


def _gaps(results: Results, runs: list[Run], best: Tuned) -> Iterator[str]:
    """Stitched minus simple where both were run with the same generations and change."""
    stitched, simple = best["stitched"], best["simple"]
    tuned_rates = (stitched.learning_rate, simple.learning_rate)
    for run in runs:
        for other in runs:
            rates = (run.learning_rate, other.learning_rate)
            same = all(getattr(run, name) == getattr(other, name) for name in ("generations", "change", "mix", "seed"))
            same &= rates[0] == rates[1] or rates == tuned_rates
            # As many times the epochs, and the decay, of the stream's own tuned run.
            for axis in ("epochs", "weight_decay"):
                same &= _multiple(run, stitched, axis) == _multiple(other, simple, axis)
            if run.stream == "stitched" and other.stream == "simple" and same and not run.seed:
                line = _pair(of_seeds(results, run), of_seeds(results, other))
                yield f"- {run.name} minus {other.name}: {line}"


def _multiple(run: Run, tuned: Run, axis: str) -> float:
    own, other = getattr(run, axis), getattr(tuned, axis)
    if own == other:
        return 1.0
    return round(own / other, 6) if other else math.inf


def _efficiency(results: Results, best: Tuned) -> list[str]:
    points = baseline(results, best)
    real = results.of(best["real"])
    if len(points) < 2 or real is None:
        return []
    lines = [
        "## Data efficiency",
        "",
        "How many times the real tokens real only would need for the loss: on straight lines over log tokens between",
        "the measured amounts, which lie above a curve that flattens and so say too much, and by the law A / D^B + C",
        "of all amounts, as the paper has it. Other amounts have the tuned run's settings, not settings of their own,",
        "which flatters the streams both ways.",
        "",
        "| recipe | loss | between the amounts | by the law |",
        "|---|---|---|---|",
    ]
    for stream in STREAMS[1:]:
        losses = of_seeds(results, best[stream])
        if losses:
            loss = mean(losses.values())
            factors = [of(points, real.real_tokens, loss) for of in (efficiency, efficiency_by_law)]
            lines.append(f"| {best[stream].recipe} | {loss:.4f} | {' | '.join(factors)} |")
    return [*lines, ""]
