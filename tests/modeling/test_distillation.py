"""The distillation term equals the textbook's formula, in chunks of any size."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megalit.modeling import head
from megalit.modeling.decoder import Decoder
from megalit.modeling.distillation import Average, Distillation, follow, frozen_copy
from megalit.modeling.head import CrossEntropy, Weighted
from megalit.modeling.shapes import Shape

VOCABULARY, LENGTH = 37, 12


def model(seed: int, shape: str | Shape = "nano") -> Decoder:
    made = Decoder(shape, VOCABULARY, init_std=0.5, seed=seed)
    made.configure_model()
    return made.eval()


def batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=random, dtype=torch.int32)
    targets = torch.randint(VOCABULARY, (2, LENGTH), generator=random, dtype=torch.int32)
    targets[0, 3:5] = -100
    return {"tokens": tokens, "targets": targets}


def textbook(student: Decoder, teachers: list[Decoder], temperature: float, average: Average) -> torch.Tensor:
    """Hinton et al., written out over whole logits: the mean weight of each is a half."""
    given = batch()
    targets = given["targets"].flatten().long()
    valid = targets != -100
    logits = student(given["tokens"]).flatten(0, 1)[valid]
    of_teachers = [teacher(given["tokens"]).flatten(0, 1)[valid].detach() / temperature for teacher in teachers]
    if average == "logits":
        soft = torch.stack(of_teachers).mean(0).softmax(-1)
    else:
        soft = torch.stack([one.softmax(-1) for one in of_teachers]).mean(0)
    kl = (soft * (soft.log() - (logits / temperature).log_softmax(-1))).sum()
    return 0.5 * F.cross_entropy(logits, targets[valid], reduction="sum") + 0.5 * temperature**2 * kl


@pytest.mark.parametrize("chunk_logits", [1, 10**9])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize(("temperature", "seeds"), [(1.0, [1]), (2.0, [1, 2]), (1.0, [1, 2, 3])])
def test_loss_and_gradient_match_the_textbook(
    chunk_logits: int, average: Average, temperature: float, seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", chunk_logits)
    student, teachers = model(0), [model(seed) for seed in seeds]
    term = Distillation(teachers, temperature, average)
    hidden, rows = student.hidden_and_rows(batch())
    terms: Any = [Weighted(CrossEntropy(), 0.5), Weighted(term, 0.5)]
    loss = student.lm_head(hidden, rows | term.rows(batch()), terms).sum()
    expected = textbook(student, teachers, temperature, average)
    torch.testing.assert_close(loss, expected)
    weights = list(student.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), atol=5e-4, rtol=1e-3
    )


def test_the_teachers_own_loss_is_that_of_their_average() -> None:
    teachers = [model(1), model(2)]
    targets = batch()["targets"].flatten().long()
    each = [teacher(batch()["tokens"]).flatten(0, 1).detach() for teacher in teachers]
    for average, expected in (
        ("probabilities", torch.stack([one.softmax(-1) for one in each]).mean(0).log()),
        ("logits", torch.stack(each).mean(0).log_softmax(-1)),
    ):
        term = Distillation(teachers, temperature=3.0, average=average)  # type: ignore[arg-type]
        hidden, rows = model(0).hidden_and_rows(batch())
        model(0).lm_head(hidden, rows | term.rows(batch()), [term])
        torch.testing.assert_close(term.teacher_nats, F.nll_loss(expected, targets, ignore_index=-100, reduction="sum"))


def test_a_student_equal_to_its_teacher_has_no_divergence_and_no_gradient() -> None:
    student = model(0)
    term = Distillation([frozen_copy(student)], temperature=2.0)
    hidden, rows = student.hidden_and_rows(batch())
    loss = student.lm_head(hidden, rows | term.rows(batch()), [term]).sum()
    assert abs(float(loss.detach())) < 1e-4
    for gradient in torch.autograd.grad(loss, list(student.parameters())):
        assert float(gradient.abs().max()) < 1e-4


def test_compiled_the_weight_may_change_without_compiling_again() -> None:
    student, term = model(0), Distillation([model(1)])
    data, soft = Weighted(CrossEntropy(), 0.5), Weighted(term, 0.5)
    hidden, rows = student.hidden_and_rows(batch())
    rows |= term.rows(batch())
    plain = [student.lm_head(hidden, rows, [data, soft]).detach()]
    student.lm_head.evaluate = torch.compile(student.lm_head.evaluate)
    torch._dynamo.utils.counters.clear()
    for weight in (0.5, 0.25, 0.125):
        data.weight.fill_(1 - weight)
        soft.weight.fill_(weight)
        sums = student.lm_head(hidden, rows, [data, soft]).detach()
        torch.testing.assert_close(sums, plain[0] * torch.tensor([2 * (1 - weight), 2 * weight]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_moving_average_follows_the_weights(dtype: torch.dtype) -> None:
    student = model(0).to(dtype)
    average = frozen_copy(student)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with torch.no_grad():
        for weight in student.parameters():
            weight += 1
    follow(average, student, decay=0.75)
    for name, value in average.state_dict().items():
        assert value.dtype == torch.float32
        moved = student.state_dict()[name].float() - before[name].float()
        torch.testing.assert_close(value, before[name].float() + 0.25 * moved)


def test_an_average_in_float32_leaves_kernels_of_half_precision_to_its_student() -> None:
    student = model(0)
    student.attention = "flash2"
    assert frozen_copy(student).attention == "flash2"
    assert frozen_copy(student.to(torch.bfloat16)).attention == "auto"


def test_in_bfloat16_the_teachers_heads_are_cast_once_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = model(0)
    teacher = model(1, Shape(hidden_size=48, intermediate_size=64, layers=1, heads=2, kv_heads=2)).requires_grad_(False)
    term = Distillation([teacher])

    def loss() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            hidden, rows = student.hidden_and_rows(batch())
            return float(student.lm_head(hidden, rows | term.rows(batch()), [term]))

    def loss_and_casts(chunk_logits: int) -> tuple[float, int]:
        monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", chunk_logits)
        with torch.profiler.profile(record_shapes=True) as profile:
            value = loss()
        shape = list(teacher.lm_head.weight.shape)
        return value, sum(e.name == "aten::_to_copy" and e.input_shapes[0] == shape for e in profile.events())

    whole, chunked = loss_and_casts(10**9), loss_and_casts(1)
    assert chunked == (pytest.approx(whole[0], rel=1e-5), 1)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(0.5)
    assert loss() != pytest.approx(chunked[0], rel=1e-3)  # of the weights as they are now, not as they were
