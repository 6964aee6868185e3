"""What a sweep says of itself: its trials, its certificate and its picture."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from megalit.cli.console import console
from megalit.tuning.certificate import Certificate, certify
from megalit.tuning.pictures import FILE as PICTURE
from megalit.tuning.pictures import draw_sweep
from megalit.tuning.results import Results
from megalit.tuning.space import Space


def show(results: Results, folder: Path) -> Certificate:
    """Say what is known by now, and write certificate and picture into the sweep's folder."""
    certificate = certify(results)
    console.print(_table(results))
    for line in _lines(certificate, results.space):
        console.print(line, soft_wrap=True)
    if results.claims:
        draw_sweep(results, folder / PICTURE)
    written = certificate.write(folder)
    console.print(f"certificate in {written}, picture in {folder / PICTURE}, runs in {folder / 'runs'}", soft_wrap=True)
    print(json.dumps(asdict(certificate)))
    return certificate


def _table(results: Results) -> Table:
    """A row per trial that counts, the best first."""
    table = Table(title="trials", title_justify="left")
    for key in results.space.keys:
        table.add_column(key.rpartition(".")[2], justify="right")
    for heading in ("seed", "loss", "steps"):
        table.add_column(heading, justify="right")
    table.add_column("state")
    infinity = float("inf")
    for claim in sorted(results.valid.values(), key=lambda claim: infinity if claim.loss is None else claim.loss):
        state = claim.status
        note = f" on {claim.worker.get('host')}" if state == "running" else f": {claim.error}" if claim.error else ""
        table.add_row(
            *map(str, claim.unit.point),
            str(claim.unit.seed),
            "" if claim.loss is None else f"{claim.loss:.4f}",
            "" if claim.steps is None else f"{claim.steps:,}",
            state + note,
        )
    return table


def _lines(certificate: Certificate, space: Space) -> list[str]:
    """The certificate in words."""
    trials = ", ".join(f"{count} {status}" for status, count in certificate.trials.items() if count) or "none"
    lines = [f"trials: {trials}" + (f"; the grid has {certificate.grid} points" if certificate.grid else "")]
    if certificate.point is None:
        return [*lines, f"no certificate: {certificate.reason}"]
    where = ", ".join(f"{key} {value}" for key, value in certificate.point.items())
    word = "certified: locally optimal" if certificate.certified else f"no certificate: {certificate.reason}; best"
    lines.append(f"{word} at {where}, loss {certificate.loss:.4f}")
    for found in certificate.neighbours:
        told = found.status if found.loss is None else f"{found.loss:.4f} (+{found.margin:.4f})"
        lines.append(f"  neighbour {found.axis} {found.value}: {told}")
    for axis, side in certificate.edges:
        hint = " (--extend)" if space.grown(space.keys.index(axis), side) is not None else ""
        lines.append(f"  {axis} is at the {side} edge of its grid: nothing is known beyond it{hint}")
    if certificate.smallest_margin is not None:
        noise = "unknown (one seed)" if certificate.noise is None else f"{certificate.noise:.4f}"
        lines.append(f"  smallest margin {certificate.smallest_margin:.4f}; noise of the seeds {noise}")
    return lines
