"""Learning-rate schedules, parameter groups, and Muon beside AdamW."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megalit.errors import UserError
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.optimizers import OptimizerSettings, Schedule, ScheduleName, Together, make_optimizer
from megalit.modeling.shapes import Shape


@given(st.integers(2, 2000), st.floats(0, 0.5), st.floats(0, 0.5), st.sampled_from(["cosine", "linear", "wsd"]))
def test_rises_to_the_peak_then_falls_towards_zero(steps: int, warmup: float, decay: float, name: ScheduleName) -> None:
    schedule = Schedule(name, warmup, decay)
    factors = [schedule.factor(step, steps) for step in range(steps + 1)]
    peak = max(range(steps + 1), key=factors.__getitem__)
    assert factors[peak] == 1
    assert all(0 < a <= b for a, b in pairwise(factors[: peak + 1]))
    assert all(a >= b for a, b in pairwise(factors[peak:]))
    assert factors[steps] == pytest.approx(0, abs=1e-9)


def test_shapes_of_schedules() -> None:
    assert Schedule("cosine", 0.1).factor(55, 100) == pytest.approx(0.5)
    assert Schedule("constant", 0.1).factor(99, 100) == 1
    wsd = Schedule("wsd", 0.1, 0.2)
    assert [wsd.factor(step, 100) for step in (10, 50, 80, 90)] == [1, 1, 1, pytest.approx(0.5)]
    with pytest.raises(UserError, match="longer than the run"):
        Schedule("wsd", 0.6, 0.6)


def build(tied: bool = False) -> LanguageModel:
    model = LanguageModel(Shape(32, 48, 2, 2, 2, tie_embeddings=tied), vocabulary_size=40, seed=1)
    model.configure_model()
    return model


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_decay(tied: bool, name: str) -> None:
    model = build(tied)
    optimizer = make_optimizer(model, OptimizerSettings(name), 1e-3, 0.5)  # type: ignore[arg-type]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["decays"] for p in group["params"]}
    kept = {names[id(p)] for group in optimizer.param_groups if not group["decays"] for p in group["params"]}
    assert all(group["weight_decay"] == (0.5 if group["decays"] else 0) for group in optimizer.param_groups)
    assert kept == {n for n in names.values() if "norm" in n or "embed" in n}
    assert decayed == set(names.values()) - kept
    assert ("lm_head.weight" in decayed) is not tied
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_muon_takes_the_matrices_of_the_blocks_and_steps_like_torchs() -> None:
    ours, theirs = build(), build()
    optimizer = make_optimizer(ours, OptimizerSettings("muon"), 1e-2, 0.1)
    assert isinstance(optimizer, Together)
    matrices = [p for n, p in theirs.named_parameters() if p.ndim == 2 and "layers" in n]
    head, others = theirs.lm_head.weight, [theirs.transformer.embed_tokens.weight]
    others += [p for p in theirs.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": [head], "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(3):
        for parameters in zip(ours.parameters(), theirs.parameters(), strict=True):
            gradient = torch.randn(parameters[0].shape, generator=torch.Generator().manual_seed(step))
            for parameter in parameters:
                parameter.grad = gradient.clone()
        optimizer.step()
        muon.step()
        adamw.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_state_of_several_optimizers_comes_back() -> None:
    def step(model: LanguageModel, optimizer: torch.optim.Optimizer, number: int) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()

    model = build()
    optimizer = make_optimizer(model, OptimizerSettings("muon"), 1e-2, 0.1)
    step(model, optimizer, 0)
    resumed = build()
    resumed.load_state_dict(model.state_dict())
    again = make_optimizer(resumed, OptimizerSettings("muon"), 1e-2, 0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in again.param_groups + optimizer.param_groups:
        group["lr"] = 1e-3
    step(model, optimizer, 1)
    step(resumed, again, 1)
    for mine, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    "settings", [{"eps": 0.0}, {"eps": math.nan}, {"betas": (0.9, 1.0)}, {"betas": (0.9, math.nan)}, {"momentum": -0.1}]
)
def test_settings_that_cannot_work_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"model.optimizer.{next(iter(settings))}"):
        OptimizerSettings(**settings)  # type: ignore[arg-type]
