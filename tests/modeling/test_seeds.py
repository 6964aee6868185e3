"""The seed of what was given none is that of Lightning's ``seed_everything``."""

from pathlib import Path
from typing import Any

import lightning
import torch
from data_sets import DataSet
from small_training import train

from megalit.callbacks import ScalingLaw
from megalit.modeling.language_model import LanguageModel


def test_what_has_no_seed_follows_seed_everything(data_set: DataSet, tmp_path: Path) -> None:
    lightning.seed_everything(7, verbose=False)
    record = ScalingLaw()
    model = train(data_set, tmp_path, seed=None, callbacks=(record,))
    trainer: Any = model.trainer
    assert record.finish(trainer, model, {}).seeds == {"model": 7, "data": 7}
    assert trainer.datamodule.plan.settings["seed"] == 7

    built = [LanguageModel("nano", vocabulary_size=50, seed=seed) for seed in (None, 7, 0)]
    for one in built:
        one.configure_model()
    unset, seven, zero = (one.lm_head.weight for one in built)
    assert torch.equal(unset, seven)
    assert not torch.equal(unset, zero)


def test_without_any_the_seed_is_0() -> None:
    built = [LanguageModel("nano", vocabulary_size=50, seed=seed) for seed in (None, 0)]
    for one in built:
        one.configure_model()
    assert torch.equal(built[0].lm_head.weight, built[1].lm_head.weight)
