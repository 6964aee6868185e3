"""Whether losses in records were measured on the same thing: others do not compare, however alike the runs are."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from megalit.scaling.ledger import number_of
from megalit.scaling.records import RunRecord

# Where a plan of an earlier version does not say which of several folders is the run's own.
_UNKNOWN = "unknown"


def measured_differently(runs: Iterable[tuple[str, RunRecord]], curves: bool = False) -> Iterator[str]:
    """A line for each way of measuring that is not that of most runs.

    Args:
        runs: name and record of each run that is compared; those without a loss are no matter.
        curves: what is compared are validations during training, not the final losses.
    """
    names: dict[str, list[str]] = {}
    for name, record in runs:
        if number_of(record, "loss") is not None:
            names.setdefault(json.dumps(_measurement(record, curves)), []).append(name)
    if len(names) < 2:
        return
    usual = max(names, key=lambda way: len(names[way]))
    for way, those in names.items():
        known, other = json.loads(usual), json.loads(way)
        differing = [key for key in known if known[key] != other[key] and _UNKNOWN not in (known[key], other[key])]
        if differing:
            yield (
                f"the losses of {_listed(those)} were measured with other {' and '.join(differing)} than those of "
                f"{_listed(names[usual])}, and do not compare: train them alike, or give the report a suite of "
                "documents that none of them was trained on, "
                "`megalit evaluate --suites '{same: STORES}' --separate true`"
            )


def _measurement(record: RunRecord, curves: bool) -> dict[str, Any]:
    settings = record.plan.get("settings", {})
    stores = settings.get("stores") or [{}]
    limit = record.config.get("trainer", {}).get("limit_val_batches")
    # None and 1.0 are all batches, 1 is one. At 0 nothing is measured, so that no loss is of a part.
    whole = limit in (None, 0) or (isinstance(limit, float) and limit == 1) or (record.measured_whole and not curves)
    return {
        "held-out documents": record.held_out or (stores[0].get("validation") if len(stores) == 1 else _UNKNOWN),
        "separate_validation": bool(settings.get("separate_validation")),
        "limit_val_batches": None if whole else limit,
    }


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
