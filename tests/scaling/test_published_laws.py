"""Fits and predictions against numbers that others have published.

The tables stand here with their source. The two large ones do not: name them in ``MEGALIT_CHINCHILLA_CSV``
(``data/svg_extracted_data.csv`` of epoch-research/analyzing-chinchilla) and ``MEGALIT_DATA_CONSTRAINED_CSV`` (columns N,
D, U, loss: the points of ``utils/parametric_fit.ipynb`` of huggingface/datablations) to fit them, too.
"""

import csv
import os
from pathlib import Path

import pytest

from megalit.scaling.chinchilla import LawFit, fit_chinchilla, fit_data_constrained
from megalit.scaling.data_efficiency import data_efficiency, interpolated_data_efficiency
from megalit.scaling.fitting import PowerLawFit, fit_power_law
from megalit.scaling.joint import joint_asymptote
from megalit.scaling.laws import MUENNIGHOFF, Chinchilla, PowerLaw

SIZES = [0.15, 0.3, 0.6, 1.4]
TOKENS = [0.2097, 0.4194, 0.8389, 1.6777]
# Losses of infinitely many members, by tokens and size (marin-community/marin, experiments/data_efficiency).
OVER_MEMBERS = [
    [3.494941, 3.272981, 3.212228, 3.173966],
    [3.399930, 3.150397, 3.051904, 3.002521],
    [3.357578, 3.101899, 2.905831, 2.868014],
    [3.299586, 3.017242, 2.826233, 2.752376],
]
OVER_SIZES = [3.169, 2.980, 2.789, 2.657]

# 300M ensembles, K = 1 ... 5, and the asymptotes printed beside them (arXiv 2603.18534; points read off its figure).
ENSEMBLES = {
    "real only": ([3.692, 3.485, 3.423, 3.389, 3.373], 3.31),
    "self-distillation": ([3.477, 3.400, 3.375, 3.362, 3.354], 3.32),
    "simple, G = 32": ([3.409, 3.302, 3.269, 3.252, 3.242], 3.21),
    "latent thoughts, G = 16": ([3.383, 3.290, 3.259, 3.243, 3.234], 3.20),
    "stitched, G = 32": ([3.384, 3.290, 3.257, 3.240, 3.229], 3.18),
}


@pytest.mark.parametrize("row", ENSEMBLES)
def test_the_ensembles_asymptotes(row: str) -> None:
    losses, published = ENSEMBLES[row]
    fit = fit_power_law([1, 2, 3, 4, 5], losses, bootstrap=50)
    # Printed with two decimals, from points that are printed with three.
    assert fit.asymptote == pytest.approx(published, abs=0.01)
    low, high = fit.asymptote_interval or (9, 0)
    assert low <= fit.asymptote <= high


@pytest.mark.parametrize(("losses", "published"), list(zip(OVER_MEMBERS, OVER_SIZES, strict=True)))
def test_infinite_compute_over_sizes(losses: list[float], published: float) -> None:
    assert fit_power_law(SIZES, losses, bootstrap=0).asymptote == pytest.approx(published, abs=5e-4)


def test_infinite_compute_over_sizes_and_tokens() -> None:
    """The joint recipe: the 3.17 at 200M tokens inside, the printed .962 / D^.228 + 1.798 outside."""
    points = [{"N": N, "D": D} for D in TOKENS for N in SIZES]
    losses = [loss for row in OVER_MEMBERS for loss in row]
    joint = joint_asymptote(points, losses, ("N", "D"), bootstrap=20)
    assert joint.inner[TOKENS[0]].asymptote == pytest.approx(3.17, abs=0.005)
    law = joint.fit.law
    assert pytest.approx((0.962, 0.228, 1.798), abs=5e-4) == (law.A, law.B, law.C)
    assert [axis for _, axis, _ in joint.walk()] == ["N"] * 4 + ["D"]


def test_megadocs_data_efficiency() -> None:
    """The published factors follow from the published exponent and asymptote and the baseline's 3.5544."""
    baseline = PowerLawFit(PowerLaw(1.0, 0.23, 1.9), (0.2, 1.6), (3.55, 2.9), 0.0, None)
    for loss, factor in [(3.41, 1.487), (3.345, 1.80)]:
        assert data_efficiency(loss, baseline, reference_loss=3.5544).factor == pytest.approx(factor, abs=0.002)


def test_slowrun_data_efficiency() -> None:
    losses = [3.703, 3.370, 3.200, 3.123, 3.046, 2.892]
    found = interpolated_data_efficiency(2.987, [0.2, 0.4, 0.6, 0.8, 1.0, 2.0], losses, used=0.1)
    assert found.tokens == pytest.approx(1.38, abs=0.005)
    assert found.factor == pytest.approx(13.8, abs=0.05)


def test_predictions_of_the_law_of_repeated_epochs() -> None:
    assert MUENNIGHOFF.predict(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440890, abs=5e-10)
    # Tokens that are read once are the base law's affair.
    once = MUENNIGHOFF.predict(1e8, 1e11, 1e11)
    assert once == pytest.approx(MUENNIGHOFF.base.predict(1e8, 1e11), abs=1e-12)


# The large tables ----------------------------------------------------------------------------------------------


def table(variable: str) -> list[dict[str, str]]:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no file: see the head of this module")
    with Path(path).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def chinchilla() -> LawFit:
    return _chinchilla(dropped=5, bootstrap=100)


def _chinchilla(dropped: int, bootstrap: int = 0) -> LawFit:
    rows = sorted(table("MEGALIT_CHINCHILLA_CSV"), key=lambda row: float(row["loss"]))
    assert len(rows) == 245
    rows = rows[: len(rows) - dropped]
    N = [float(row["Model Size"]) for row in rows]
    D = [float(row["Training FLOP"]) / (6 * size) for row, size in zip(rows, N, strict=True)]
    return fit_chinchilla(N, D, [float(row["loss"]) for row in rows], bootstrap=bootstrap)


def test_chinchilla_without_its_five_highest_losses(chinchilla: LawFit) -> None:
    """A and B are ill-conditioned, so the objective, the exponents and the predictions decide."""
    law, published = chinchilla.law, Chinchilla(477.84, 2143.86, 1.8172, 0.34731, 0.36718)
    assert isinstance(law, Chinchilla)
    assert chinchilla.objective <= 0.00101827 + 5e-9
    assert chinchilla.objective == pytest.approx(0.00101827, abs=5e-9)
    assert pytest.approx(1.8172, abs=2e-4) == law.E
    assert law.alpha == pytest.approx(0.34731, abs=2e-4)
    assert law.beta == pytest.approx(0.36718, abs=2e-4)
    for N, D in [(70e9, 1.4e12), (1e9, 20e9), (1e8, 1e10)]:
        assert law.predict(N, D) == pytest.approx(published.predict(N, D), abs=2e-4)


def test_chinchillas_intervals(chinchilla: LawFit) -> None:
    """Published: 95% of 4,000 bootstraps. Ours are of 100, so the ends agree roughly."""
    published = {"E": (1.769, 1.871), "alpha": (0.317, 0.373), "beta": (0.331, 0.415)}
    for name, (low, high) in published.items():
        found = chinchilla.intervals[name]
        width = high - low
        assert found[0] == pytest.approx(low, abs=0.3 * width)
        assert found[1] == pytest.approx(high, abs=0.3 * width)
    assert any("B is hardly determined" in remark for remark in chinchilla.remarks)


def test_chinchilla_with_all_its_points() -> None:
    law = _chinchilla(dropped=0).law
    assert isinstance(law, Chinchilla)
    assert (law.E, law.alpha, law.beta) == pytest.approx((1.8913, 0.3493, 0.4530), abs=5e-4)


def test_the_law_of_repeated_epochs_on_its_own_points() -> None:
    rows = table("MEGALIT_DATA_CONSTRAINED_CSV")
    assert len(rows) == 182
    columns = {name: [float(row[name]) for row in rows] for name in ("N", "D", "U", "loss")}
    fit = fit_data_constrained(
        columns["N"], columns["D"], columns["U"], columns["loss"], base=MUENNIGHOFF.base, bootstrap=60
    )
    assert fit.objective == pytest.approx(0.01582594, abs=5e-9)
    assert fit.coefficients["R_D"] == pytest.approx(15.387756, rel=1e-3)
    assert fit.coefficients["R_N"] == pytest.approx(5.309743, rel=1e-3)
    assert any("flat direction: R_D" in remark for remark in fit.remarks)
