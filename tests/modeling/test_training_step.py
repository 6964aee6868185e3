"""The training step: the loss does not depend on how a batch is divided."""

import copy
import math
from pathlib import Path

import lightning
import pytest
import torch
from data_sets import DataSet

from megalit.errors import UserError
from megalit.modeling.language_model import LanguageModel
from megalit.streams import StitchedStream


def train(data_set: DataSet, folder: Path, micro_batch: int | None, **settings: object) -> LanguageModel:
    data = StitchedStream(
        stores=str(data_set.folder), context_length=32, global_batch=6, total_tokens=6 * 32 * 5, generations=2
    )
    model = LanguageModel("nano", micro_batch=micro_batch, seed=1, **settings)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(model, data)
    assert trainer.global_step == data.plan.steps == 5
    return model


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_micro_batch_changes_nothing(data_set: DataSet, tmp_path: Path, micro_batch: int) -> None:
    """Also where it does not divide the batch, and where windows differ in valid targets."""
    whole = train(data_set, tmp_path, None).double().state_dict()
    parts = train(data_set, tmp_path, micro_batch).double().state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=1e-3, msg=name)


def test_training_lowers_the_loss(data_set: DataSet, tmp_path: Path) -> None:
    data = StitchedStream(stores=str(data_set.folder), context_length=32, global_batch=6, total_tokens=192)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    before = LanguageModel("nano", vocabulary_size=data.plan.vocabulary_size, seed=1)
    before.configure_model()
    after = train(data_set, tmp_path, None)
    with torch.no_grad():
        assert after.term_sums(batch).sum() < 0.9 * before.term_sums(batch).sum()


def test_a_vocabulary_smaller_than_the_stores_is_refused(data_set: DataSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model.vocabulary_size is 10 and the token stores need"):
        train(data_set, tmp_path, None, vocabulary_size=10)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *[("learning_rate", 0.0), ("weight_decay", -1.0), ("z_loss", -0.1), ("micro_batch", 0)],
        *[(name, math.nan) for name in ("learning_rate", "weight_decay", "z_loss", "gradient_clip", "init_std")],
    ],
)
def test_settings_that_cannot_work_are_named(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=f"model.{setting} is {value}"):
        LanguageModel("nano", **{setting: value})  # type: ignore[arg-type]


def test_a_checkpoint_can_be_loaded_without_a_trainer(data_set: DataSet, tmp_path: Path) -> None:
    model = train(data_set, tmp_path, None)
    assert model.trainer is not None
    model.trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "x.ckpt", map_location="cpu", weights_only=True)
    weights = copy.deepcopy(model.state_dict())
    assert loaded.shape == model.shape
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, weights[name])
