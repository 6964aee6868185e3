"""What the points of a law do not share, besides what the law is over: nobody sees it in the fit."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megalit.cli.console import console
from megalit.errors import UserError
from megalit.scaling.ledger import Points
from megalit.scaling.records import RunRecord
from megalit.scaling.report.measuring import measured_differently
from megalit.scaling.report.setting import family_of, settings_of, stream_label

# Axes along which what families share differs by itself.
_VARIES_WITH = {
    "parameters": {"N", "N_inner", "flops"},
    "real_tokens": {"U", "D", "data.real_fraction", "synthetic_tokens", "flops", "steps", "seconds"},
}
# Settings that are named.
_NAMED = 3

# Records by the origin of a point: a run's one, or those of an ensemble's members.
Records = Mapping[str, Sequence[RunRecord]]


def say_mixed(points: Points, records: Records, coordinates: Sequence[str]) -> None:
    """Say in a line each which losses were measured otherwise, and what else the points do not share.

    Args:
        points: of the law.
        records: of each point's origin.
        coordinates: the law's axes, and the key that it is fitted by.
    """
    for line in measured_differently((origin, found[0]) for origin, found in _each(points, records).items()):
        console.print(line, soft_wrap=True)
    differing = list(_differing(points, records, coordinates))
    if differing:
        console.print(
            f"the {len(points.rows)} points {'; they '.join(differing)}: a law of all of them is of none of them, and "
            "--where separates them, by [stream=RealStream] or any key that `megalit scaling list` shows",
            soft_wrap=True,
        )


def refuse_synthetic(points: Points, records: Records) -> None:
    """Refuse synthetic tokens where tokens over unique real ones are how often these are repeated.

    Raises:
        UserError: a run has some.
    """
    found = _each(points, records)
    synthetic = [origin for origin, (record, *_) in found.items() if record.synthetic_share > 0]
    if synthetic:
        raise UserError(
            f"--law data_constrained takes D / U for epochs of the real tokens, and {len(synthetic)} of {len(found)} "
            f"runs have synthetic ones, too ({synthetic[0]}): leave them out with --where '[synthetic_share=0]'"
        )


def refuse_different_ensembles(points: Points, records: Records, coordinates: Sequence[str]) -> None:
    """Refuse ensembles at one place of a law whose members are of different streams, models or data.

    Raises:
        UserError: two are.
    """
    for origins in _at_one_place(points, coordinates):
        found = {origin: records[origin] for origin in origins}
        kinds = {origin: (_streams(own), set(map(family_of, own))) for origin, own in found.items()}
        first, *others = kinds
        other = next((origin for origin in others if kinds[origin] != kinds[first]), None)
        if other is not None:
            streams = dict.fromkeys((kinds[first][0], kinds[other][0]))
            what = f"streams ({', '.join(streams)})" if len(streams) > 1 else "models or amounts of data"
            raise UserError(
                f"{first} and {other} are ensembles of different {what}, and no points of one law: name one of them, "
                "or choose by --where, as '[stream=RealStream]'"
            )


def _differing(points: Points, records: Records, coordinates: Sequence[str]) -> Iterator[str]:
    """In words, what the points differ in."""
    found = _each(points, records)
    streams = Counter(_streams(own) for own in found.values())
    if len(streams) > 1:
        yield f"are of {len(streams)} streams ({', '.join(f'{count} {name}' for name, count in streams.items())})"
    families = {family_of(record) for own in found.values() for record in own}
    fields = [name for name in vars(next(iter(families))) if not _is_along(name, coordinates)]
    several = [name.replace("_", " ") for name in fields if len({getattr(one, name) for one in families}) > 1]
    if several:
        yield f"have other {' and '.join(several)}"
    settings = {origin: settings_of(own[0]) for origin, own in found.items()}
    names = dict.fromkeys(
        name.replace("init_args.", "")
        for origins in _at_one_place(points, coordinates)
        for name in _changing([settings[origin] for origin in origins])
    )
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"differ, at equal {' and '.join(coordinates)}, in {', '.join(list(names)[:_NAMED])}{more}"


def _is_along(name: str, coordinates: Sequence[str]) -> bool:
    """Whether what families share changes along an axis."""
    return any(axis in _VARIES_WITH.get(name, ()) or axis.split(".")[-1] == name for axis in coordinates)


def _each(points: Points, records: Records) -> dict[str, Sequence[RunRecord]]:
    """The records of each run or ensemble that gave a point."""
    return {origin: records[origin] for origin in map(_origin, points.origins)}


def _at_one_place(points: Points, coordinates: Sequence[str]) -> list[list[str]]:
    """Runs or ensembles at each place of the axes."""
    places: dict[tuple[float, ...], list[str]] = {}
    for origin, row in zip(points.origins, points.rows, strict=True):
        places.setdefault(tuple(row[name] for name in coordinates), []).append(_origin(origin))
    return list(places.values())


def _origin(name: str) -> str:
    """An ensemble has a point for each K."""
    return name.partition(", K = ")[0]


def _streams(records: Sequence[RunRecord]) -> str:
    return " and ".join(dict.fromkeys(map(stream_label, records)))


def _changing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Settings that do not have one value."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)]
