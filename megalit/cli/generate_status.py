"""``megalit generate --status``: how far all shards of a folder are."""

import datetime
import json
from pathlib import Path

from rich.table import Table

from megalit.cli.console import console
from megalit.errors import UserError
from megalit.synthesis.status import added_up, read_statuses


def print_status(output: Path) -> None:
    """Show a table of the shards, and print their sum as JSON.

    Raises:
        UserError: no shard has begun.
    """
    statuses = read_statuses(output)
    if not statuses:
        raise UserError(f"{output} holds no status of a shard: start `megalit generate --output {output}` first")
    together = added_up(statuses)
    console.print(str(output))
    table = Table()
    for heading in ("shard", "state", "done", "of", "declined", "tokens", "tokens/s", "left"):
        table.add_column(heading, justify="left" if heading in ("shard", "state") else "right")
    started = f"{together['shards']} of {together['of']}"
    rows = [*statuses, {**together, "shard": started, "state": f"{together['running']} running"}]
    for value in rows:
        left = value["seconds_left"]
        table.add_row(
            value["shard"],
            value["state"],
            f"{value['done']:,}",
            "" if value["total"] is None else f"{value['total']:,}",
            f"{sum(value['declined'].values()):,}",
            f"{value['tokens']:,}",
            f"{value['tokens_per_second']:,.0f}",
            "" if left is None else str(datetime.timedelta(seconds=left)),
        )
    console.print(table)
    print(json.dumps(together))
