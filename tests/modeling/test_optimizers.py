"""Learning-rate schedules and parameter groups."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalit.modeling.language_model import LanguageModel
from megalit.modeling.optimizers import adamw, learning_rate_factor
from megalit.modeling.shapes import Shape


@given(st.integers(2, 2000), st.floats(0, 0.5), st.sampled_from(["cosine", "linear"]))
def test_rises_to_the_peak_then_falls_towards_zero(steps: int, warmup: float, schedule: str) -> None:
    factors = [learning_rate_factor(step, steps, warmup, schedule) for step in range(steps + 1)]  # type: ignore[arg-type]
    peak = max(range(steps + 1), key=factors.__getitem__)
    assert factors[peak] == 1
    assert all(0 < a <= b for a, b in pairwise(factors[: peak + 1]))
    assert all(a >= b for a, b in pairwise(factors[peak:]))
    assert factors[steps] == pytest.approx(0, abs=1e-9)


def test_half_way_down_a_cosine_is_half_the_peak() -> None:
    assert learning_rate_factor(55, 100, 0.1, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(99, 100, 0.1, "constant") == 1


@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_decay(tied: bool) -> None:
    model = LanguageModel(Shape(32, 48, 2, 2, 2, tie_embeddings=tied), vocabulary_size=40)
    model.configure_model()
    decayed, others = adamw(model, 1e-3, 0.5, (0.9, 0.95), 1e-8).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(p)] for p in others["params"]}
    assert decayed["weight_decay"] == 0.5
    assert others["weight_decay"] == 0
    assert kept == {n for n in names.values() if "norm" in n or "embed" in n}
    assert ("lm_head.weight" in {names[id(p)] for p in decayed["params"]}) is not tied
    assert len(decayed["params"]) + len(others["params"]) == len(names)
