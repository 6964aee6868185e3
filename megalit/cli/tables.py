"""The tables that ``fit`` prints: the plan before, the result after."""

from rich.table import Table

from megalit.scaling.records import RunRecord
from megalit.streams.plan import RunPlan


def plan_table(plan: RunPlan) -> Table:
    """What a run will read."""
    table = Table(title="plan", title_justify="left")
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
    table.caption = (
        f"{plan.steps:,} steps of {plan.global_batch} windows of {plan.context_length:,} tokens: "
        f"{plan.tokens:,} tokens, {plan.synthetic_share:.1%} of them synthetic; "
        f"{plan.unique_real_tokens:,} unique real tokens"
    )
    table.caption_justify = "left"
    return table


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
    for suite, loss in record.losses.items():
        table.add_row(
            f"validation loss, {suite}",
            f"{loss['nats_per_token']:.4f} nats/token, {loss['bits_per_byte']:.4f} bits/byte",
        )
    return table
