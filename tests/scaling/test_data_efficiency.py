"""Data efficiency on laws whose answer is known."""

import math

import numpy as np
import pytest

from megalit.errors import UserError
from megalit.scaling.data_efficiency import data_efficiency, interpolated_data_efficiency, tokens_to_same_loss
from megalit.scaling.fitting import fit_power_law
from megalit.scaling.laws import PowerLaw

LAW = PowerLaw(0.9, 0.3, 2.0)
TOKENS = [0.1, 0.2, 0.4, 0.8, 1.6]


def test_a_loss_of_the_baseline_is_worth_the_tokens_it_took() -> None:
    """What the law gives at 3 times the data is worth 3 times the data, by either reference."""
    noise = 0.002 * np.random.default_rng(0).standard_normal(5)
    baseline = fit_power_law(TOKENS, LAW.predict(np.array(TOKENS)) + noise)
    loss = LAW.predict(0.6)
    for found in (
        data_efficiency(loss, baseline, tokens=0.2),
        data_efficiency(loss, baseline, reference_loss=LAW.predict(0.2)),
    ):
        assert found.factor == pytest.approx(3.0, rel=0.05)
        assert found.tokens == pytest.approx(0.6, rel=0.05)
        low, high = found.interval or (9.0, 0.0)
        assert low < 3.0 < high < 4.0


def test_the_law_is_inverted() -> None:
    for x in (1e-3, 1.0, 1e6):
        assert LAW.invert(LAW.predict(x)) == pytest.approx(x, rel=1e-6)
    assert math.isinf(LAW.invert(2.0))
    with pytest.raises(UserError, match="does not fall"):
        PowerLaw(0.0, 1.0, 3.0).invert(3.1)
    with pytest.raises(UserError, match="not a number"):
        LAW.invert(math.nan)


def test_a_loss_below_the_asymptote_is_worth_more_than_any_data() -> None:
    baseline = fit_power_law(TOKENS, LAW.predict(np.array(TOKENS)), bootstrap=20)
    found = data_efficiency(1.9, baseline, tokens=0.2)
    assert math.isinf(found.factor)
    assert "no amount of real data" in found.remarks[-1]
    assert found.to_json()["factor"] is None


def test_extrapolation_and_a_weak_baseline_are_said() -> None:
    baseline = fit_power_law(TOKENS[:3], LAW.predict(np.array(TOKENS[:3])))
    found = data_efficiency(LAW.predict(4.0), baseline, tokens=0.2)
    assert found.interval is None
    assert any("baseline: as many points as coefficients" in remark for remark in found.remarks)
    assert any("extrapolation" in remark and "beyond the largest" in remark for remark in found.remarks)


def test_efficiency_needs_something_to_compare_with() -> None:
    baseline = fit_power_law(TOKENS, LAW.predict(np.array(TOKENS)), bootstrap=0)
    with pytest.raises(UserError, match="the tokens that were used or the baseline's loss"):
        data_efficiency(2.5, baseline)
    with pytest.raises(UserError, match="at or below the asymptote"):
        data_efficiency(2.5, baseline, reference_loss=1.0)


@pytest.mark.parametrize(
    ("loss", "losses", "message"),
    [
        (2.0, [3.0, 2.8, 2.5], "outside the baseline's"),
        (3.5, [3.0, 2.8, 2.5], "outside the baseline's"),
        (2.7, [3.0, 3.1, 2.5], "do not fall"),
        (2.7, [3.0, math.nan, 2.5], "do not fall"),
        (2.7, [3.0], "a loss for each of at least two"),
    ],
)
def test_what_cannot_be_interpolated(loss: float, losses: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        interpolated_data_efficiency(loss, [1.0, 2.0, 4.0][: len(losses)], losses, used=1.0)


def test_tokens_to_the_same_loss() -> None:
    """A run that is at each loss four times earlier."""
    tokens = [1e6, 2e6, 4e6, 8e6]
    losses = [4.0, 3.5, 3.2, 3.0]
    quick = ([count / 4 for count in tokens], losses)
    assert tokens_to_same_loss(quick, (tokens, losses)) == pytest.approx(4)
    assert tokens_to_same_loss(quick, (tokens, losses), loss=3.3) == pytest.approx(4)
    with pytest.raises(UserError, match="never reaches the loss 2"):
        tokens_to_same_loss(quick, (tokens, losses), loss=2)
    with pytest.raises(UserError, match="no points"):
        tokens_to_same_loss(([], []), (tokens, losses))
