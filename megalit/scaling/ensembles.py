"""What ``megalit ensemble`` leaves behind: the losses of averages of K = 1 … n members."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megalit.errors import UserError
from megalit.files import read_json
from megalit.scaling.ledger import Points, default_suite, number_of
from megalit.scaling.records import FILE as RECORD
from megalit.scaling.records import RunRecord, read_record

FILE = "ensemble.json"
Average = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Member:
    """A member as the ensemble names it, the folder of its run, and the run's record."""

    name: str
    folder: Path
    record: RunRecord


@dataclass(frozen=True)
class EnsembleLosses:
    """An ensemble's members and losses.

    Attributes:
        members: in the order in which they join.
        losses: average (``probabilities`` or ``logits``) → suite → loss of K = 1 … n members, in nats per token.
    """

    members: tuple[Member, ...]
    losses: dict[str, dict[str, tuple[float, ...]]]


def read_ensemble(path: Path, known: Mapping[Path, RunRecord]) -> EnsembleLosses:
    """Read the file of an ensemble and the records of its members.

    Args:
        path: of the file.
        known: records that are read already, by their folder's whole path.

    Raises:
        UserError: not the file of an ensemble, or a member that is not there.
    """
    value = read_json(path)
    try:
        members = tuple(_member(path, str(member), known) for member in value["members"])
        losses: dict[str, dict[str, tuple[float, ...]]] = {}
        for suite, result in value["suites"].items():
            for average, curve in result["averages"].items():
                losses.setdefault(str(average), {})[str(suite)] = tuple(float(loss) for loss in curve)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no ensemble ({error}): run `megalit ensemble` again") from error
    if not members:
        raise UserError(f"{path} has no members: run `megalit ensemble` again")
    return EnsembleLosses(members, losses)


def read_ensembles(places: Sequence[Path]) -> tuple[dict[Path, EnsembleLosses], tuple[str, ...]]:
    """The ensembles in folders and anywhere below them, by file, and in one line each those that cannot be read.

    A file is that of an ensemble, whatever its name.

    Raises:
        UserError: not one can be read; the first problem is named.
    """
    ensembles: dict[Path, EnsembleLosses] = {}
    problems = []
    for place in places:
        found = [place] if place.is_file() else sorted(place.rglob(FILE))
        if not found:
            problems.append(f"{place} {f'holds no ensemble ({FILE})' if place.exists() else 'does not exist'}")
        for path in found:
            try:
                ensembles[path] = read_ensemble(path, {})
            except UserError as error:
                problems.append(str(error))
    if not ensembles:
        raise UserError(f"no ensemble can be read: {problems[0]}; make one with `megalit ensemble`")
    return ensembles, tuple(problems)


def points_of_ensembles(
    ensembles: Mapping[Path, EnsembleLosses], keys: Sequence[str], loss: str, average: Average
) -> Points:
    """One row for each K = 1 … n of each ensemble; what else a row holds is what the records of all members say.

    Args:
        ensembles: by their files.
        keys: what each row holds beside K and the loss.
        loss: ``loss`` or ``loss.SUITE``.
        average: what was averaged.

    Raises:
        UserError: another key of a loss.
    """
    name, _, suite = loss.partition(".")
    if name != "loss":
        raise UserError(f"ensembles have losses in nats per token, and no {loss}: ask for loss, or loss.SUITE")
    rows, origins, problems = [], [], []
    for path, ensemble in ensembles.items():
        suites = ensemble.losses.get(average, {})
        losses = suites.get(suite or default_suite(suites))
        said = {key: {number_of(member.record, key) for member in ensemble.members} for key in keys}
        lacking = [key for key, values in said.items() if None in values]
        differing = [key for key, values in said.items() if len(values) > 1]
        if losses is None:
            problems.append(f"{path} has no average of {average}{f' on {suite}' if suite else ''}")
        elif lacking:
            problems.append(f"{path} has members without a number for {', '.join(lacking)}")
        elif differing:
            problems.append(f"{path} has members that differ in {', '.join(differing)}")
        else:
            shared = {key: value for key, values in said.items() for value in values if value is not None}
            rows += [{**shared, "K": float(K), loss: value} for K, value in enumerate(losses, start=1)]
            origins += [f"{path}, K = {K}" for K in range(1, len(losses) + 1)]
    return Points(rows, origins, tuple(problems))


def _member(path: Path, member: str, known: Mapping[Path, RunRecord]) -> Member:
    """A member is named by its path from where the ensemble was made, which need not be here; it may be a checkpoint,
    whose run is a folder above it."""
    own, *above = path.resolve().parents
    places = [own / member, *(parent / member for parent in above), Path(member).resolve()]
    # The ensemble's own folder may have another name by now.
    places.append(own / Path(member).name)
    for folder in (*places, *(parent for place in places for parent in place.parents[:2])):
        if folder in known:
            return Member(member, folder, known[folder])
        if (folder / RECORD).exists():
            return Member(member, folder, read_record(folder))
    raise UserError(f"{path} names the member {member}, which is not there: name its folder, too")
