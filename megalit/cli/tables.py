"""The tables that verbs print: the plan of a run before it, its result after, and what was measured of models."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from megalit.evaluation.results import Evaluation, error_tasks, over_runs
from megalit.scaling.records import RunRecord
from megalit.streams.plan import GENERATIONS, MOST_GENERATIONS, THOUGHTS, RunPlan


def with_lines(table: Table, lines: Iterable[str]) -> Group:
    """A table and lines below it; a caption would be folded to the table's width."""
    return Group(table, *map(Text, lines))


def plan_table(plan: RunPlan, title: str = "plan") -> Group:
    """What a run will read."""
    table = Table(title=title, title_justify="left")
    for name in ("stream", "share", "unique tokens", "of them synthetic", "windows", "epochs"):
        table.add_column(name, justify="left" if name == "stream" else "right")
    for stream in plan.streams:
        table.add_row(
            stream.name,
            f"{stream.share:.1%}",
            f"{stream.unique_tokens:,}",
            f"{stream.synthetic_fraction:.1%}",
            f"{stream.windows:,}",
            f"{stream.epochs:.2f}",
        )
    said = (
        f"{plan.steps:,} steps of {plan.global_batch} windows of {plan.context_length:,} tokens: "
        f"{plan.tokens:,} tokens, {plan.synthetic_share:.1%} of them synthetic; "
        f"{plan.unique_real_tokens:,} unique real tokens"
    )
    return with_lines(table, [said, *_fewer(plan)])


def _fewer(plan: RunPlan) -> Iterator[str]:
    """How many generations or thoughts a document has, where that is less than G."""
    for stream in plan.settings.get("streams", ()):
        mean, most = stream.get(GENERATIONS), stream.get(MOST_GENERATIONS)
        if mean is not None:
            asked = f", and {stream['generations']} are asked for" if most < stream["generations"] else ""
            yield f"{stream['name']}: {mean:.2f} generations a document on average, {most} at most{asked}"
        mean = stream.get(THOUGHTS)
        if mean is not None and mean < stream["generations"]:
            yield f"{stream['name']}: {mean:.2f} thoughts a document on average, {stream['generations']} at most"


def ensemble_tables(result: dict[str, Any]) -> list[Group]:
    """Loss of the average of the first K members of an ensemble, a table for each suite (see ``megalit ensemble``)."""
    return [_ensemble_table(name, suite, result["members"]) for name, suite in result["suites"].items()]


def _ensemble_table(name: str, suite: dict[str, Any], members: list[str]) -> Group:
    averages: dict[str, list[float]] = suite["averages"]
    table = Table(title=f"{name}: nats per token over {suite['targets']:,} tokens", title_justify="left")
    table.add_column("K", justify="right")
    table.add_column("member")
    table.add_column("alone", justify="right")
    for kind in averages:
        table.add_column(f"average of {kind}", justify="right")
    for number, member in enumerate(members):
        losses = [f"{curve[number]:.4f}" for curve in averages.values()]
        table.add_row(str(number + 1), member, f"{suite['alone'][number]:.4f}", *losses)
    said = []
    for kind, law in suite["laws"].items():
        if law is not None:
            interval = law["intervals_95"].get("C")
            within = f" (95%: {_ends(interval)})" if interval else ""
            remarks = "".join(f"; {remark}" for remark in law["remarks"])
            said.append(f"{kind}, K to infinity: {law['coefficients']['C']:.4f}{within}{remarks}")
    if suite["selection"] is not None:
        chosen = suite["selection"]
        weights = ", ".join(f"{weight:.2f}" for weight in chosen["weights"])
        picked = ", ".join(str(number + 1) for number in chosen["members"])
        said.append(
            f"chosen on the first half of the windows, measured on the second: all members {chosen['equal']:.4f}, "
            f"weights ({weights}) {chosen['weighted']:.4f}, members {picked} alone {chosen['selected']:.4f}"
        )
    said.append(f"the lower average: {suite['best_average']}")
    return with_lines(table, said)


def _ends(interval: list[float | None]) -> str:
    low, high = (f"{end:.4f}" if end is not None else "unbounded" for end in interval)
    return f"{low} to {high}"


def result_table(record: RunRecord) -> Table:
    """What a run read and what came out."""
    table = Table(title="result", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for stream, tokens in record.tokens_seen.items():
        table.add_row(f"tokens of {stream}", f"{tokens:,} ({record.epochs[stream]:.2f} epochs)")
    table.add_row("unique real tokens", f"{record.unique_real_tokens:,}")
    table.add_row("synthetic share of tokens", f"{record.synthetic_share:.1%}")
    table.add_row("steps", f"{record.steps:,}")
    table.add_row("parameters", f"{record.parameters['total']:,}")
    table.add_row("training FLOPs", f"{record.flops:.2e}")
    table.add_row("time", f"{record.wall_seconds:,.0f} s")
    if record.device_seconds is not None and record.device_seconds != record.wall_seconds:
        table.add_row("time of all devices", f"{record.device_seconds:,.0f} s")
    for suite, loss in record.losses.items():
        nats, bits = loss["nats_per_token"], loss["bits_per_byte"]
        # A record on disk has null for what is no finite number.
        text = "not finite" if nats is None else f"{nats:.4f} nats/token, {bits:.4f} bits/byte"
        table.add_row(f"validation loss, {suite}", text)
    return table


def evaluation_tables(evaluations: Sequence[Evaluation], asked: Sequence[str] = ()) -> Iterator[Table]:
    """Losses by suite, and benchmarks, of each model; of several also mean and standard deviation.

    The error is over the benchmarks that were ``asked`` for (:func:`megalit.evaluation.results.error_tasks`).
    """
    spread = over_runs(evaluations, asked) if len(evaluations) > 1 else {"suites": {}, "tasks": {}}
    for name in dict.fromkeys(name for evaluation in evaluations for name in evaluation.suites):
        found = [evaluation for evaluation in evaluations if name in evaluation.suites]
        lengths = [length for length, _ in found[0].suites[name].by_context_length]
        columns = ["nats/token", "bits/byte", "tokens", *(f"at {length:,}" for length in lengths)]
        table = _table(f"suite {name}", columns)
        for evaluation in found:
            suite = evaluation.suites[name]
            curve = dict(suite.by_context_length)
            values = [f"{suite.nats_per_token:.4f}", f"{suite.bits_per_byte:.4f}", f"{suite.targets:,}"]
            table.add_row(
                evaluation.model, *values, *(f"{curve[length]:.4f}" if length in curve else "" for length in lengths)
            )
        if name in spread["suites"]:
            means = spread["suites"][name]
            at = {
                length: {"mean": mean, "deviation": deviation} for length, mean, deviation in means["by_context_length"]
            }
            table.add_section()
            table.add_row(
                "mean ± deviation",
                _spread(means["nats_per_token"]),
                _spread(means["bits_per_byte"]),
                "",
                *(_spread(at[length]) if length in at else "" for length in lengths),
            )
        yield table
    tasks = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.tasks))
    if tasks:
        over = error_tasks(evaluations, asked)
        error = "error (1 - mean)" if set(over) == set(tasks) else f"error of {', '.join(over)}"
        table = _table("accuracy", [*tasks, *([error] if over else [])])
        for evaluation in evaluations:
            shown = [f"{evaluation.tasks[name].accuracy:.4f}" if name in evaluation.tasks else "" for name in tasks]
            table.add_row(evaluation.model, *shown, *(f"{evaluation.error(over):.4f}" for _ in over[:1]))
        if spread["tasks"]:
            table.add_section()
            means = [_spread(spread["tasks"][name]["accuracy"]) if name in spread["tasks"] else "" for name in tasks]
            table.add_row("mean ± deviation", *means, *(_spread(spread["task_error"]) for _ in over[:1]))
        yield table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _spread(value: dict[str, Any]) -> str:
    return f"{value['mean']:.4f} ± {value['deviation']:.4f}"
