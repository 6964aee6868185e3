"""Averages of weights: what is validated, saved and kept of a run that makes one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from data_sets import DataSet
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from small_training import STEPS, final, train

from megalit.errors import UserError
from megalit.modeling.language_model import LanguageModel


def test_averaged_weights_continue_exactly_and_are_what_is_kept(data_set: DataSet, tmp_path: Path) -> None:
    def average() -> tuple[Any, ...]:
        return (EMAWeightAveraging(decay=0.6),)

    train(data_set, tmp_path / "whole", callbacks=average())
    train(data_set, tmp_path / "parts", stop_at=3, callbacks=average())
    train(data_set, tmp_path / "parts", callbacks=average())
    train(data_set, tmp_path / "plain")
    whole, parts, plain = (final(tmp_path / name) for name in ("whole", "parts", "plain"))
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][key])
        assert torch.equal(whole["current_model_state"][key], plain["state_dict"][key])
    assert not all(torch.equal(value, plain["state_dict"][key]) for key, value in whole["state_dict"].items())


class Validated(lightning.Callback):
    """Keeps whether each validation is of the weights that the step before it has left."""

    def __init__(self) -> None:
        self.are_current: list[bool] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: object) -> None:
        self.current = module.lm_head.weight.detach().clone()

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, _: int = 0) -> None:
        if batch_idx == 0:
            self.are_current.append(torch.equal(module.lm_head.weight, self.current))


def test_an_average_that_has_not_begun_is_the_current_weights(data_set: DataSet, tmp_path: Path) -> None:
    """Lightning's is what the model was initialized with."""
    validated = Validated()
    late: tuple[Any, ...] = (EMAWeightAveraging(decay=0.6, update_starting_at_step=5), validated)
    train(data_set, tmp_path / "late", stop_at=3, callbacks=late, validate_every=2)
    stopped = final(tmp_path / "late")
    for key, value in stopped["state_dict"].items():
        assert torch.equal(value, stopped["current_model_state"][key])
    train(data_set, tmp_path / "late", callbacks=late, validate_every=2)
    # After steps 2, 3 (where it was stopped), 4, 6 and 8; the sixth is the first of the average.
    assert validated.are_current == [True, True, True, True, False]


def test_a_run_whose_average_never_begins_ends_with_its_weights(data_set: DataSet, tmp_path: Path) -> None:
    class Never(WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return False

    averaged = train(data_set, tmp_path / "averaged", callbacks=(Never(),)).state_dict()
    for key, value in train(data_set, tmp_path / "plain").state_dict().items():
        assert torch.equal(value, averaged[key])


@pytest.mark.parametrize(
    "settings", [{"update_starting_at_step": STEPS}, {"update_starting_at_step": 1, "update_every_n_steps": STEPS}]
)
def test_an_average_that_begins_behind_the_last_step_is_refused(
    data_set: DataSet, tmp_path: Path, settings: dict[str, int]
) -> None:
    with pytest.raises(UserError, match="never in a run of 8 steps"):
        train(data_set, tmp_path, callbacks=(EMAWeightAveraging(**settings),))
    train(data_set, tmp_path, callbacks=(EMAWeightAveraging(update_starting_at_step=STEPS - 1),), stop_at=1)


def test_weights_are_built_where_they_train_also_by_a_callback_that_averages_them() -> None:
    """Lightning has such a callback call for them outside of its own context."""
    model = LanguageModel("nano", vocabulary_size=50)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    model._trainer = trainer
    model.configure_model()
    assert all(weight.is_meta for weight in model.parameters())


@pytest.mark.gpu
def test_a_run_that_averages_begins_with_the_weights_of_one_that_does_not(data_set: DataSet, tmp_path: Path) -> None:
    begun: dict[str, Any] = {"learning_rate": 1e-9, "weight_decay": 0.0, "stop_at": 1, "accelerator": "cuda"}
    train(data_set, tmp_path / "plain", **begun)
    train(data_set, tmp_path / "averaged", callbacks=(EMAWeightAveraging(),), **begun)
    plain, averaged = final(tmp_path / "plain")["state_dict"], final(tmp_path / "averaged")["current_model_state"]
    for name, value in plain.items():
        torch.testing.assert_close(averaged[name], value)
