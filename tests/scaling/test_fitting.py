"""Fits find the law that made the points, and say what the points do not show."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalit.errors import UserError
from megalit.scaling.chinchilla import HUBER, UNBOUNDED, fit_chinchilla, fit_data_constrained
from megalit.scaling.fitting import fit_power_law
from megalit.scaling.joint import joint_asymptote
from megalit.scaling.laws import MUENNIGHOFF, Chinchilla, DataConstrained, PowerLaw

MEMBERS = [1.0, 2.0, 3.0, 4.0, 5.0]


@settings(max_examples=15)
@given(
    A=st.floats(0.05, 3),
    B=st.floats(0.1, 3),
    C=st.floats(0.5, 4),
    unit=st.sampled_from([1e-3, 1.0, 1e9]),
    points=st.integers(4, 9),
)
def test_a_power_law_is_recovered_from_its_points(A: float, B: float, C: float, unit: float, points: int) -> None:
    """In any unit of x: what is fitted predicts the same, and by both engines."""
    x = np.arange(1, points + 1) * 0.7 * unit
    losses = A / (x / unit) ** B + C
    one = fit_power_law(x, losses, bootstrap=0)
    other = fit_power_law(x, losses, bootstrap=0, engine="variable_projection")
    for fit in (one, other):
        assert fit.law.predict(x) == pytest.approx(losses, abs=1e-6)
        assert pytest.approx(B, rel=1e-2) == fit.law.B
        assert fit.asymptote == pytest.approx(C, abs=1e-2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("huber", [None, 0.002])
@pytest.mark.parametrize("noise", [0.003, 0.05])
def test_both_engines_find_the_same_minimum(seed: int, huber: float | None, noise: float) -> None:
    """On noisy points too, with the coefficients at their bounds if that is where the minimum is."""
    random = np.random.default_rng(seed)
    losses = 0.4 / np.array(MEMBERS) ** 0.8 + 3.2 + noise * random.standard_normal(5)
    one = fit_power_law(MEMBERS, losses, bootstrap=0, huber=huber)
    other = fit_power_law(MEMBERS, losses, bootstrap=0, huber=huber, engine="variable_projection")
    assert one.objective == pytest.approx(other.objective, rel=1e-3, abs=1e-10)


def test_the_bootstrap_covers_the_asymptote_as_often_as_it_says() -> None:
    """95% intervals over 100 repetitions, with two residuals each: within what chance allows, and not all of them."""
    random = np.random.default_rng(0)
    x = np.array(MEMBERS)
    covered = 0
    for repetition in range(100):
        losses = 0.4 / x + 3.2 + 0.004 * random.standard_normal(5)
        low, high = fit_power_law(
            x, losses, bootstrap=60, seed=repetition, engine="variable_projection"
        ).asymptote_interval or (1.0, 0.0)
        covered += low <= 3.2 <= high
    assert 86 <= covered < 100


def test_the_bootstrap_is_seeded() -> None:
    losses = [3.7, 3.5, 3.42, 3.39, 3.375]
    first, again, other = (fit_power_law(MEMBERS, losses, seed=seed) for seed in (1, 1, 2))
    assert first.intervals == again.intervals
    assert first.intervals != other.intervals


def test_a_known_deviation_gives_an_interval_to_three_points() -> None:
    losses = [3.7, 3.5, 3.42]
    assert fit_power_law([1, 2, 3], losses).asymptote_interval is None
    narrow, wide = (fit_power_law([1, 2, 3], losses, deviation=size).asymptote_interval for size in (1e-4, 1e-2))
    assert narrow is not None
    assert wide is not None
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_predictions_come_with_intervals_and_words() -> None:
    fit = fit_power_law(MEMBERS, [3.692, 3.485, 3.423, 3.389, 3.373])
    low, high = fit.prediction_interval(8) or (1.0, 0.0)
    assert low < fit.law.predict(8.0) < high < fit.law.predict(5.0)
    assert "1.6 times beyond" in fit.remarks_at(8)[0]
    assert fit.remarks_at(3) == ()


# What is said --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([3.7, 3.5, 3.42], "as many points as coefficients"),
        ([3.7, 3.5, 3.42, 3.39], "a single residual"),
        ([3.4, 3.4, 3.4, 3.4, 3.4], "flat: the losses do not fall"),
        ([3.0, 3.1, 3.2, 3.3, 3.4], "flat: the losses do not fall"),
        ([3.7, 3.2, 3.6, 3.1, 3.5], "bad fit"),
        ([4.0, 3.9, 3.78, 3.62, 3.4], "asymptote is at its bound 0"),
        ([3.7, 3.4, 3.4, 3.4, 3.4], "B is at its bound"),
        ([3.70, 3.66, 3.645, 3.63, 3.62], "extrapolation: from the last point (x = 5)"),
        ([3.70, 3.66, 3.61, 3.59, 3.57], "flat direction: anything from"),
    ],
)
def test_what_the_points_do_not_show_is_said(losses: list[float], said: str) -> None:
    fit = fit_power_law(range(1, len(losses) + 1), losses)
    assert any(said in remark for remark in fit.remarks), fit.remarks


def test_a_good_fit_has_no_remarks() -> None:
    assert fit_power_law(MEMBERS, [3.692, 3.485, 3.423, 3.389, 3.373]).remarks == ()


@pytest.mark.parametrize(
    ("x", "losses", "message"),
    [
        ([1, 2], [3.7, 3.5], "3 coefficients need at least 3 different values of x, and there are 2"),
        ([2, 2, 2, 2], [3.7, 3.5, 3.4, 3.3], "and there is 1"),
        ([], [], "and there are 0"),
        ([1, 2, 3], [3.7, math.nan, 3.4], "loss at x = 2 is nan"),
        ([1, 2, 3], [3.7, math.inf, 3.4], "loss at x = 2 is inf"),
        ([0, 1, 2], [3.7, 3.5, 3.4], "x = 0 at point 1 is not positive"),
        ([1, math.nan, 2], [3.7, 3.5, 3.4], "x = nan at point 2"),
        ([1, 2, 3, 4], [3.7, 3.5, 3.4], "4 values of x came with 3 losses"),
    ],
)
def test_points_that_cannot_be_fitted_are_named(x: list[float], losses: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_power_law(x, losses)


# Several coordinates -------------------------------------------------------------------------------------------

PUBLISHED = Chinchilla(477.84, 2143.86, 1.8172, 0.34731, 0.36718)


def grid() -> tuple[Any, Any]:
    N, D = np.meshgrid(np.geomspace(5e7, 1e10, 6), np.geomspace(1e9, 3e11, 6))
    return N.ravel(), D.ravel()


@pytest.mark.parametrize("engine", ["multi_start", "variable_projection"])
def test_chinchillas_law_is_recovered(engine: Any) -> None:
    N, D = grid()
    fit = fit_chinchilla(N, D, PUBLISHED.predict(N, D), bootstrap=0, engine=engine)
    assert fit.coefficients == pytest.approx(vars(PUBLISHED), rel=1e-3)
    assert fit.law.predict(7e10, 1.4e12) == pytest.approx(PUBLISHED.predict(7e10, 1.4e12), abs=1e-5)  # type: ignore[call-arg,misc]


def test_both_engines_find_chinchillas_minimum_in_noise() -> None:
    N, D = grid()
    random = np.random.default_rng(3)
    losses = PUBLISHED.predict(N, D) * np.exp(0.005 * random.standard_normal(len(N)))
    losses[4] *= 1.3  # an outlier, which Huber's loss bears
    one, other = (
        fit_chinchilla(N, D, losses, bootstrap=0, engine="multi_start"),
        fit_chinchilla(N, D, losses, bootstrap=0, engine="variable_projection"),
    )
    assert one.objective == pytest.approx(other.objective, rel=1e-3)
    assert one.coefficients["E"] == pytest.approx(1.8172, abs=0.15)
    assert one.law.predict(1e9, 1e11) == pytest.approx(other.law.predict(1e9, 1e11), abs=2e-3)  # type: ignore[call-arg,misc]


def test_tied_exponents() -> None:
    N, D = grid()
    base = MUENNIGHOFF.base
    fit = fit_chinchilla(N, D, base.predict(N, D), tied=True, bootstrap=0)
    assert fit.coefficients == pytest.approx({"A": base.A, "B": base.B, "E": base.E, "alpha": base.alpha}, rel=1e-3)


def test_repeated_epochs_are_recovered() -> None:
    """Made from the published law, from too few and from too many parameters for the unique tokens."""
    N, D = grid()
    U = np.minimum(D, 4e9)
    fit = fit_data_constrained(N, D, U, MUENNIGHOFF.predict(N, D, U), base=MUENNIGHOFF.base, bootstrap=20)
    assert fit.coefficients == pytest.approx({"R_D": 15.387756, "R_N": 5.309743}, rel=1e-3)
    assert fit.objective < 1e-9
    assert any("beyond the largest" in remark for remark in fit.remarks_at(D=1e12))


def test_repetition_that_costs_nothing_is_said_to_be_unbounded() -> None:
    N, D = grid()
    U = np.minimum(D, 4e9)
    free = DataConstrained(MUENNIGHOFF.base, R_D=1e9, R_N=5.3)
    fit = fit_data_constrained(N, D, U, free.predict(N, D, U), base=MUENNIGHOFF.base, bootstrap=10)
    assert fit.coefficients["R_D"] > 0.9 * UNBOUNDED
    assert math.isinf(fit.intervals["R_D"][1])
    assert any("R_D is bounded only from below" in remark for remark in fit.remarks)
    assert fit.to_json()["intervals_95"]["R_D"][1] is None


def test_optimal_parameters_balance_the_two_terms() -> None:
    """At 6 N D FLOPs, moving compute from parameters to tokens or back gives no lower loss."""
    for D in (1e9, 1e11):
        N = PUBLISHED.optimal_parameters(D)
        best = PUBLISHED.predict(N, D)
        assert all(PUBLISHED.predict(N * s, D / s) > best for s in (0.9, 0.99, 1.01, 1.1))


@pytest.mark.parametrize(
    ("N", "D", "message"),
    [
        ([1e8] * 8, list(np.geomspace(1e9, 1e11, 8)), "all points have N = 1e\\+08"),
        ([1e8, 2e8, 3e8], [1e9, 2e9, 3e9], "5 coefficients need at least 5 different values of N and D"),
    ],
)
def test_too_few_points_for_chinchilla(N: list[float], D: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_chinchilla(N, D, [3.0 + 0.1 * i for i in range(len(N))])


def test_data_that_is_never_repeated_says_nothing_of_repetition() -> None:
    N, D = grid()
    with pytest.raises(UserError, match="add runs that repeat their data"):
        fit_data_constrained(N, D, D, MUENNIGHOFF.predict(N, D, D), base=MUENNIGHOFF.base)


def test_huber_of_the_papers_is_the_default() -> None:
    assert HUBER == 1e-3


# Joint asymptotes ----------------------------------------------------------------------------------------------


def nested(noise: float = 0.0) -> tuple[list[dict[str, float]], list[float]]:
    random = np.random.default_rng(0)
    points = [
        {"K": float(K), "N": N, "D": D} for D in (0.2, 0.4, 0.8, 1.6) for N in (0.15, 0.3, 0.6, 1.4) for K in MEMBERS
    ]
    losses = [
        0.3 / p["K"] ** 1.1 + 0.05 / p["N"] ** 1.02 + 0.9 / p["D"] ** 0.25 + 1.9 + noise * random.standard_normal()
        for p in points
    ]
    return points, losses


def test_asymptotes_of_asymptotes_are_recovered() -> None:
    joint = joint_asymptote(*nested(), ("K", "N", "D"), bootstrap=0)
    assert joint.asymptote == pytest.approx(1.9, abs=1e-3)
    assert joint.inner[0.4].asymptote == pytest.approx(0.9 / 0.4**0.25 + 1.9, abs=1e-4)
    assert joint.inner[0.4].inner[0.6].fit.law == PowerLaw(
        *(pytest.approx(value, rel=1e-3) for value in (0.3, 1.1, 0.05 / 0.6**1.02 + 0.9 / 0.4**0.25 + 1.9))
    )
    assert len(list(joint.walk())) == 16 + 4 + 1


def test_the_outer_interval_holds_the_noise_of_the_inner_laws() -> None:
    """Asymptotes over sizes that lie on a law exactly, each of them uncertain: so is what comes of them."""
    points = [point for point in nested()[0] if point["D"] == 0.4]
    random = np.random.default_rng(0)
    exact = [0.3 / p["K"] ** 1.1 + 0.05 / p["N"] ** 1.02 + 3.0 for p in points]
    quiet = joint_asymptote(points, exact, ("K", "N"), bootstrap=50)
    noisy = joint_asymptote(
        points, [loss + 0.01 * random.standard_normal() for loss in exact], ("K", "N"), bootstrap=50
    )
    assert quiet.asymptote_interval == pytest.approx((3.0, 3.0), abs=1e-3)
    low, high = noisy.asymptote_interval or (0.0, 0.0)
    assert high - low > 0.01


def test_a_law_that_lacks_points_says_where() -> None:
    points, losses = nested()
    short = [index for index, p in enumerate(points) if p["N"] != 0.6 or p["D"] != 0.4 or p["K"] < 3]
    with pytest.raises(UserError, match=r"^D = 0.4, N = 0.6, law over K: 3 coefficients need .* there are 2"):
        joint_asymptote([points[i] for i in short], [losses[i] for i in short], ("K", "N", "D"), bootstrap=0)
    with pytest.raises(UserError, match="80 of 80 points have no G"):
        joint_asymptote(points, losses, ("K", "G"))


def test_an_inner_law_without_an_asymptote_is_named_as_that() -> None:
    points = [{"K": float(K), "N": N} for N in (0.15, 0.3, 0.6, 1.4) for K in MEMBERS]
    losses = [5 - 0.8 * p["K"] if p["N"] == 0.3 else 0.3 / p["K"] + 0.05 / p["N"] + 3.0 for p in points]
    with pytest.raises(UserError, match=r"^N = 0.3: the law over K has its asymptote at its bound 0.*larger K"):
        joint_asymptote(points, losses, ("K", "N"), bootstrap=0)
