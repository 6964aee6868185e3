"""Options of training: what they change, and that a resumed run is the run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from data_sets import DataSet
from small_training import STEPS, final, train

from megalit.errors import UserError
from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.modeling import language_model, micro_batch
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.optimizers import OptimizerSettings, Schedule
from megalit.modeling.transformer import Regularization
from megalit.streams import StitchedStream


class Rates(lightning.Callback):
    """Keeps each step's learning rate and weight decays."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, set[float]]] = []

    def on_train_batch_end(self, trainer: Any, *_: object) -> None:
        groups = trainer.optimizers[0].param_groups
        self.rates.append((groups[0]["lr"], {group["weight_decay"] for group in groups}))


OPTIONS: dict[str, Any] = {
    "dropout": {"regularization": Regularization(dropout=0.3)},
    "stochastic depth": {"regularization": Regularization(stochastic_depth=0.5)},
    "muon": {"optimizer": OptimizerSettings("muon")},
    "z-loss": {"z_loss": 0.1},
    "masked": {"cross_document_attention": False},
    "decay": {"final_weight_decay": 0.0},
    "wsd": {"schedule": Schedule("wsd", 0.2, 0.5)},
    "checkpointing": {"gradient_checkpointing": True, "regularization": Regularization(dropout=0.3)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_is_bit_identical_with_every_option(name: str, data_set: DataSet, tmp_path: Path) -> None:
    settings = OPTIONS[name]
    train(data_set, tmp_path / "whole", **settings)
    train(data_set, tmp_path / "parts", stop_at=3, **settings)
    torch.manual_seed(99)
    train(data_set, tmp_path / "parts", **settings)
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert all(torch.equal(value, parts["state_dict"][key]) for key, value in whole["state_dict"].items())
    if name != "checkpointing":
        train(data_set, tmp_path / "plain")
        plain = final(tmp_path / "plain")["state_dict"]
        assert any(not torch.equal(value, plain[key]) for key, value in whole["state_dict"].items())


def test_checkpointing_and_compiling_change_nothing_but_speed(data_set: DataSet, tmp_path: Path) -> None:
    plain = train(data_set, tmp_path / "a").state_dict()
    checkpointed = train(data_set, tmp_path / "b", gradient_checkpointing=True).state_dict()
    compiled = train(data_set, tmp_path / "c", compile=True).state_dict()
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        assert torch.equal(checkpointed[key], value)
        torch.testing.assert_close(compiled[key], value, atol=1e-4, rtol=1e-2)


def test_rates_follow_their_schedules(data_set: DataSet, tmp_path: Path) -> None:
    rates = Rates()
    settings: dict[str, Any] = {"weight_decay": 0.8, "final_weight_decay": 0.1, "schedule": Schedule("linear", 0.25)}
    train(data_set, tmp_path, callbacks=(rates,), **settings)
    assert [rate for rate, _ in rates.rates] == pytest.approx(
        [0.005, 0.01, 0.01, *(0.01 * n / 6 for n in range(5, 0, -1))]
    )
    decays = [max(decay) for _, decay in rates.rates]
    assert decays == pytest.approx([0.8 - 0.1 * step for step in range(8)])
    assert all(min(decay) == 0 for _, decay in rates.rates)


def test_stochastic_depth_and_dropout_are_off_in_evaluation() -> None:
    noisy = LanguageModel("nano", vocabulary_size=50, regularization=Regularization(0.5, 0.5))
    plain = LanguageModel("nano", vocabulary_size=50)
    for model in (noisy, plain):
        model.configure_model()
    tokens = torch.randint(50, (2, 9))
    assert not torch.allclose(noisy(tokens), plain(tokens))
    assert torch.equal(noisy.eval()(tokens), plain.eval()(tokens))


def test_stochastic_depth_keeps_the_expected_output() -> None:
    model = LanguageModel("nano", vocabulary_size=50, init_std=0.3, regularization=Regularization(0.0, 0.5))
    model.configure_model()
    layer = model.transformer.layers[-1]
    assert layer.skip == 0.5
    torch.manual_seed(0)
    kept = torch.stack([layer._kept(torch.ones(64, 1, 1)) for _ in range(100)])
    assert set(kept.flatten().tolist()) == {0.0, 2.0}
    assert kept.mean() == pytest.approx(1.0, abs=0.05)


class Poison(lightning.Callback):
    """Breaks the weights before one step, so that its loss or gradient is not finite."""

    def __init__(self, value: float) -> None:
        self.value = value

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 4:
            self.kept = module.lm_head.weight.detach().clone()
            module.lm_head.weight.data[3] = self.value

    def on_train_batch_end(self, trainer: Any, module: Any, *_: object) -> None:
        if trainer.global_step == 5:
            self.after = module.lm_head.weight.detach().clone()
            module.lm_head.weight.data.copy_(self.kept)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_where(data_set: DataSet, tmp_path: Path) -> None:
    train(data_set, tmp_path, stop_at=3)
    before = newest_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"the loss is not finite at step 5, sample 16, .*, documents document-\d+"):
        train(data_set, tmp_path, callbacks=(Poison(float("nan")),))
    assert newest_checkpoint(tmp_path) == before


def test_a_loss_that_is_not_finite_skips_the_step_where_that_is_asked_for(
    data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison = Poison(float("inf"))
    train(data_set, tmp_path, callbacks=(poison,), nonfinite="skip", weight_decay=0.0)
    assert "not finite at step 5" in capsys.readouterr().out
    assert torch.equal(poison.after[4:], poison.kept[4:])
    state = final(tmp_path)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_running_out_of_memory_says_what_to_lower(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: Exception = torch.OutOfMemoryError("no room")

    def exhausted(*_: object) -> None:
        raise error

    monkeypatch.setattr(LanguageModel, "term_sums", exhausted)
    with pytest.raises(UserError, match=r"with 4 windows of 32 tokens in a pass: lower model.micro_batch"):
        train(data_set, tmp_path)
    # Triton's, as it loads a kernel.
    error = RuntimeError("Triton Error [CUDA]: out of memory")
    with pytest.raises(UserError, match=r"with 4 windows of 32 tokens in a pass: lower model.micro_batch"):
        train(data_set, tmp_path)
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        train(data_set, tmp_path)


def test_an_optimizer_without_room_says_what_to_do(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch.optim.AdamW, "step", exhausted)
    with pytest.raises(UserError, match=r"for the optimizer, .* shard the model over several GPUs"):
        train(data_set, tmp_path)


def test_a_checkpoint_of_another_shape_is_refused_by_the_tensor(data_set: DataSet, tmp_path: Path) -> None:
    train(data_set, tmp_path, stop_at=3)
    with pytest.raises(UserError, match=r"transformer.embed_tokens.weight has the shape \(\d+, 128\) here"):
        train(data_set, tmp_path, shape="tiny")


def test_half_precision_trains_and_keeps_float32_weights(data_set: DataSet, tmp_path: Path) -> None:
    half = train(data_set, tmp_path / "half", precision="bf16-mixed")
    whole = train(data_set, tmp_path / "whole")
    for name, value in half.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, whole.state_dict()[name], atol=0.05, rtol=0.2)
    assert any(not torch.equal(value, whole.state_dict()[name]) for name, value in half.state_dict().items())


@pytest.mark.parametrize(
    ("share", "room", "found"),
    [(16, 100, 16), (16, 9, 8), (16, 5, 4), (16, 1, 1), (16, 0, 1), (20, 6, 5), (20, 4, 2), (7, 6, 1)],
)
def test_a_micro_batch_that_fits_is_found(share: int, room: int, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It divides a rank's share: a pass of another size would be compiled anew, for any size."""

    class Stub:
        device = torch.device("cuda")
        compile_blocks = False
        trainer = SimpleNamespace(world_size=2, datamodule=SimpleNamespace(global_batch=2 * share))

        def print(self, message: str) -> None:
            assert f"{found} of {share} windows" in message

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: None)
    monkeypatch.setattr(torch, "tensor", lambda value, device: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)

    def fits(model: Any, plan: Any, windows: int, passes: int) -> bool:
        assert passes == (1 if windows == share else 2), "several passes find the gradients of the first"
        return windows <= room

    monkeypatch.setattr(micro_batch, "_fits", fits)
    assert micro_batch.find_micro_batch(Stub(), None) == found  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_micro_batch_is_found_on_a_gpu(data_set: DataSet, tmp_path: Path) -> None:
    model = train(data_set, tmp_path, micro_batch="auto", accelerator="cuda", precision="bf16-mixed")
    assert model.micro_batch == 4


def test_all_of_the_share_is_taken_where_there_is_no_gpu(data_set: DataSet, tmp_path: Path) -> None:
    assert train(data_set, tmp_path, micro_batch="auto").micro_batch is None


class NoNumber(lightning.Callback):
    """Spoils a weight before the validation."""

    def on_validation_start(self, trainer: Any, model: Any) -> None:
        with torch.no_grad():
            model.transformer.embed_tokens.weight[model.bos] = torch.nan


def test_a_loss_that_is_no_number_is_not_hidden_in_a_validation(data_set: DataSet, tmp_path: Path) -> None:
    data = StitchedStream(
        stores=str(data_set.folder), context_length=32, global_batch=4, generations=2, total_tokens=STEPS * 4 * 32
    )
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path, callbacks=[NoNumber()]
    )
    (result,) = trainer.validate(LanguageModel("nano", seed=1), data, verbose=False)
    assert str(result["validation/iid"]) == "nan"


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_size_that_was_found_is_kept_only_where_it_is_part_of_the_result(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run may go on on a GPU with less memory."""
    model = LanguageModel("nano", micro_batch="auto", regularization=Regularization(dropout=noise))
    model.on_load_checkpoint({"micro_batch": 8})
    trainer: Any = SimpleNamespace(ckpt_path=None, datamodule=SimpleNamespace(plan=object()))
    monkeypatch.setattr(LanguageModel, "trainer", trainer)
    monkeypatch.setattr(LanguageModel, "check_trainer", lambda *_, **__: None)
    monkeypatch.setattr(LanguageModel, "_plan", None)
    monkeypatch.setattr(language_model, "find_micro_batch", lambda *_: 2)
    model.on_fit_start()
    assert model.micro_batch == (8 if noise else 2)


def test_a_validation_is_the_same_in_any_micro_batch(data_set: DataSet, tmp_path: Path) -> None:
    data = StitchedStream(
        stores=str(data_set.folder), context_length=32, global_batch=8, generations=2, total_tokens=STEPS * 8 * 32
    )
    losses = []
    for size in (None, 3, 1):
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
        )
        model = LanguageModel("nano", seed=1, micro_batch=size)
        losses.append(trainer.validate(model, data, verbose=False)[0]["validation/iid"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_precision_that_a_cpu_has_no_instructions_for_is_told(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    model = LanguageModel("nano", vocabulary_size=10)
    model.check_device(torch.device("cpu"), "32-true")
    assert not recwarn.list
    model.check_device(torch.device("cpu"), "bf16-mixed")
    said = [str(warning.message) for warning in recwarn.list]
    assert len(said) == (not has_bf16)
    assert all("trainer.precision is bf16-mixed, for which this CPU has no instructions" in text for text in said)
