"""Trainers that a model is not trained with."""

from typing import Any

import lightning
import pytest
from lightning.pytorch.callbacks import StochasticWeightAveraging

from megalit.errors import UserError
from megalit.modeling.language_model import LanguageModel


def test_what_a_sharded_run_goes_on_from_is_named_late() -> None:
    """Lightning tells it behind this hook, where the checkpoint is read after the weights are sharded."""
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, precision="bf16-true"
    )
    model = LanguageModel("nano", vocabulary_size=10)
    model.trainer = trainer
    with pytest.raises(UserError, match="bf16-true"):
        model.on_fit_start()
    with pytest.warns(UserWarning, match="goes on as it was begun"):
        model.check_trainer(trainer, continues=True)
    with pytest.warns(UserWarning, match="goes on as it was begun"):
        model.on_fit_start()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"precision": "bf16-true"}, "in which weight decay and small steps are rounded away"),
        ({"callbacks": [StochasticWeightAveraging(0.01)]}, "StochasticWeightAveraging, which averages nothing here"),
    ],
)
def test_a_run_that_an_earlier_version_began_goes_on_and_is_told(settings: dict[str, Any], why: str) -> None:
    trainer = lightning.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **settings)
    model = LanguageModel("nano", vocabulary_size=10)
    with pytest.raises(UserError, match=why):
        model.check_trainer(trainer)
    with pytest.warns(UserWarning, match=f"{why}; the run goes on as it was begun"):
        model.check_trainer(trainer, continues=True)
