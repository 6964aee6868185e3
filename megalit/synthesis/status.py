"""A small file for each shard that says how far it is, for people and for programs."""

import json
import os
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

from megalit.files import remove_leftovers, write_json
from megalit.synthesis.work import Counts, Shard

# A running shard writes this often, in seconds; one that has not for some times as long has died.
EVERY = 5.0
_SILENT = 60.0


class StatusFile:
    """Writes ``status/i-of-n.json`` in a generation folder; for who holds the shard's lock."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._path = folder / "status" / f"{shard.number}-of-{shard.of}.json"
        self._shard = shard
        self._written = 0.0
        remove_leftovers(self._path)

    def update(self, counts: Counts, state: str = "running") -> None:
        """Write, if the last time is a while ago or the state is another one."""
        if state == "running" and time.monotonic() - self._written < EVERY:
            return
        self._written = time.monotonic()
        write_json(self._path, {"shard": str(self._shard), "state": state, **self.figures(counts)})

    def settle(self, counts: Counts) -> None:
        """Say that nothing is left where no process of this shard has: it was killed at its end, or others did all."""
        held = json.loads(self._path.read_text()) if self._path.exists() else {}
        if held.get("state") != "finished" or held["done"] < counts.done:
            self.update(counts, "finished")

    def figures(self, counts: Counts) -> dict[str, Any]:
        """Counts, rates and the time left, as JSON."""
        seconds = counts.seconds
        new = counts.accepted + counts.given_up
        left = None
        if counts.total is not None and new:
            left = (counts.total - counts.done) * seconds / new
        return {
            "total": counts.total,
            "done": counts.done,
            "accepted": counts.accepted,
            "given_up": counts.given_up,
            "declined": dict(counts.declined),
            "prompt_tokens": counts.prompt_tokens,
            "tokens": counts.tokens,
            "seconds": round(seconds, 1),
            "tokens_per_second": round(counts.tokens / max(seconds, 1e-9), 1),
            "seconds_left": None if left is None else round(left),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "updated": time.time(),
        }


def read_statuses(folder: Path) -> list[dict[str, Any]]:
    """The shards' files of the newest division into shards, by number; a shard that fell silent is ``stopped``."""
    found = []
    for path in sorted((folder / "status").glob("*-of-*.json")):
        value: dict[str, Any] = json.loads(path.read_text())
        if value["state"] == "running" and time.time() - value["updated"] > _SILENT:
            value["state"] = "stopped"
        found.append(value)
    if not found:
        return []
    of = max(found, key=lambda value: value["updated"])["shard"].split("/")[1]
    same = [value for value in found if value["shard"].split("/")[1] == of]
    return sorted(same, key=lambda value: int(value["shard"].split("/")[0]))


def added_up(statuses: list[dict[str, Any]]) -> dict[str, Any]:
    """All shards together; their rates add up, and the slowest decides when all are done."""
    running = [value for value in statuses if value["state"] == "running"]
    declined: Counter[str] = Counter()
    for value in statuses:
        declined.update(value["declined"])
    lefts = [value["seconds_left"] for value in running if value["seconds_left"] is not None]
    totals = [value["total"] for value in statuses]
    return {
        "shards": len(statuses),
        "of": int(statuses[0]["shard"].split("/")[1]),
        "running": len(running),
        "total": None if None in totals else sum(totals),
        **{name: sum(value[name] for value in statuses) for name in ("done", "accepted", "prompt_tokens", "tokens")},
        "declined": dict(declined),
        "tokens_per_second": round(sum(value["tokens_per_second"] for value in running), 1),
        "seconds_left": max(lefts, default=None),
    }
