"""A run says how many generations there are, where that is fewer than were asked for."""

import io
from typing import Any

import pytest
from data_sets import GENERATIONS, DataSet
from made_runs import make_run
from rich.console import Console

from megalit.cli.tables import plan_table
from megalit.files import fingerprint
from megalit.scaling.ledger import count_generations
from megalit.scaling.records import read_record
from megalit.streams import SimpleStream, StitchedStream
from megalit.streams.plan import RunPlan

SMALL: dict[str, Any] = {"context_length": 32, "global_batch": 4, "total_tokens": 32 * 4 * 10}


def printed(plan: RunPlan) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(plan_table(plan))
    return file.getvalue()


@pytest.mark.parametrize("kind", [SimpleStream, StitchedStream])
def test_g_is_what_the_documents_have(kind: Any, data_set: DataSet, tmp_path: Any) -> None:
    def plan(generations: int, **settings: Any) -> RunPlan:
        made: RunPlan = kind(stores=str(data_set.folder), generations=generations, **settings, **SMALL).plan
        return made

    full, fewer = plan(GENERATIONS), plan(GENERATIONS + 3, incomplete="accept")
    assert full.streams == fewer.streams
    record = read_record(make_run(tmp_path / "run"))
    for made in (full, fewer):
        record.plan = made.to_json()
        assert count_generations(record) == GENERATIONS
    assert "generations a document" not in printed(full)
    said = (
        f"{GENERATIONS:.2f} generations a document on average, {GENERATIONS} at most, and {GENERATIONS + 3} are asked"
    )
    assert said in printed(fewer)


def test_what_is_told_is_no_part_of_what_is_read(data_set: DataSet) -> None:
    """Plans of runs that began without it are the same."""
    plan = SimpleStream(stores=str(data_set.folder), generations=GENERATIONS + 3, incomplete="accept", **SMALL).plan
    before = plan.to_json()
    told = next(stream for stream in before["settings"]["streams"] if stream["kind"] == "Simple")
    assert told.pop("generations_per_document") == told.pop("most_generations") == GENERATIONS
    assert plan.fingerprint == fingerprint(before)
    assert plan.first_difference(before) is None
