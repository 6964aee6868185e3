"""The arithmetic of memory against what torch allocates in a training step on this machine."""

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from megalit.errors import UserError
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.memory import Step, step_memory
from megalit.modeling.optimizers import OptimizerSettings
from megalit.modeling.shapes import SHAPES, Shape
from megalit.modeling.transformer import Regularization

GROUPED = Shape(256, 896, 3, 8, 4, qk_norm=True)
STEP = Step(
    devices=1,
    sharded=False,
    windows=4,
    micro_batch=4,
    context_length=256,
    precision="32-true",
    device="cpu",
    checkpointing=False,
)


def allocated(model: Any, step: Step) -> int:
    """The most that torch's allocator held at once in a step, the state between steps included."""
    vocabulary = model.lm_head.weight.shape[0]
    optimizer = model.configure_optimizers()
    size = (step.windows, step.context_length)
    batch = {name: torch.randint(1, vocabulary, size, dtype=torch.int32) for name in ("tokens", "targets")}

    # As Lightning runs a training step.
    @torch.autocast("cpu", torch.bfloat16, enabled=step.precision == "bf16-mixed", cache_enabled=False)
    def train() -> None:
        for first in range(0, step.windows, step.micro_batch):
            part = {name: value[first : first + step.micro_batch] for name, value in batch.items()}
            loss = model.term_sums(part).sum()
            loss.backward()
            del loss
        optimizer.step()
        optimizer.zero_grad()

    train()  # the optimizer's state comes with the first step
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    lasting = 4 * 3 * model.parameter_counts()[0] + 8 * step.windows * step.context_length
    return lasting + most


@pytest.mark.parametrize(
    ("shape", "vocabulary", "step", "settings"),
    [
        ("tiny", 4096, STEP, {}),
        ("tiny", 4096, replace(STEP, micro_batch=1), {}),
        ("tiny", 50_000, replace(STEP, checkpointing=True, context_length=128, precision="bf16-mixed"), {}),
        ("tiny", 1000, replace(STEP, checkpointing=True, context_length=1024), {}),
        (GROUPED, 4096, STEP, {}),
        (GROUPED, 4096, replace(STEP, precision="bf16-mixed", micro_batch=2), {}),
        (GROUPED, 1000, replace(STEP, precision="bf16-mixed", checkpointing=True, micro_batch=2), {}),
        ("nano", 1000, replace(STEP, context_length=1024), {"regularization": Regularization(dropout=0.1)}),
    ],
)
def test_the_most_that_a_step_holds(shape: Any, vocabulary: int, step: Step, settings: dict[str, Any]) -> None:
    model = LanguageModel(
        shape, vocabulary_size=vocabulary, gradient_checkpointing=step.checkpointing, seed=0, **settings
    )
    model.configure_model()
    model.train()
    assert step_memory(model, step).peak == pytest.approx(allocated(model, step), rel=0.05)


def on_meta(shape: str, **settings: Any) -> LanguageModel:
    with torch.device("meta"):
        model = LanguageModel(shape, vocabulary_size=128_256, **settings)
        model.configure_model()
    return model


@pytest.mark.parametrize("shape", ["150m", "300m", "600m", "1.5b"])
def test_what_lasts_is_four_numbers_of_each_weight(shape: str) -> None:
    model = on_meta(shape)
    total, _ = model.parameter_counts()
    memory = step_memory(model, replace(STEP, device="cuda", precision="bf16-mixed"))
    assert memory.weights + memory.gradients + memory.optimizer == 16 * total
    assert memory.communication == 0


def test_sharding_divides_what_lasts_and_gathers_a_layer() -> None:
    model = on_meta("1.5b")
    whole = step_memory(model, replace(STEP, devices=8, device="cuda", precision="bf16-mixed"))
    parts = step_memory(model, replace(STEP, devices=8, device="cuda", precision="bf16-mixed", sharded=True))
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name) / 8, rel=1e-6)
    total, inner = model.parameter_counts()
    # In bfloat16, but for the embedding.
    embedding = (total - inner) // 2
    assert parts.communication == 4 * embedding + 2 * (embedding + 2 * (inner - SHAPES["1.5b"].hidden_size) // 36)
    assert parts.copies == 0
    assert parts.peak < whole.peak
    # Gradients of several passes are summed whole, as the training step does it.
    passes = step_memory(model, replace(STEP, devices=8, device="cuda", sharded=True, micro_batch=1))
    assert passes.gradients == whole.gradients


def test_muon_keeps_one_number_of_each_matrix_in_the_blocks() -> None:
    adamw, muon = on_meta("300m"), on_meta("300m", optimizer=OptimizerSettings("muon"))
    matrices = sum(p.numel() for p in adamw.transformer.layers.parameters() if p.ndim == 2)
    assert step_memory(adamw, STEP).optimizer - step_memory(muon, STEP).optimizer == 4 * matrices


def test_a_precision_that_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match="16-mixed"):
        step_memory(on_meta("150m"), replace(STEP, precision="16-mixed"))
