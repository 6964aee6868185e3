"""The seed of what was given none is that of Lightning's ``seed_everything``."""

from pathlib import Path

import lightning
import torch
from data_sets import DataSet

from megalit.callbacks import ScalingLaw
from megalit.modeling.language_model import LanguageModel
from megalit.streams import RealStream


def test_what_has_no_seed_follows_seed_everything(data_set: DataSet, tmp_path: Path) -> None:
    lightning.seed_everything(7, verbose=False)
    model, record = LanguageModel("nano"), ScalingLaw()
    data = RealStream(stores=str(data_set.folder), context_length=32, global_batch=4, total_tokens=128)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        callbacks=[record],
    )
    trainer.fit(model, data)
    assert record.finish(trainer, model, {}).seeds == {"model": 7, "data": 7}
    assert data.plan.to_json()["settings"]["seed"] == 7

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
