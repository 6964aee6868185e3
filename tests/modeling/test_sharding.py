"""FSDP2 trains what one process trains, and either goes on where the other stopped."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from data_sets import DataSet
from forks import Fork, finish, fork, ranks
from lightning.pytorch.strategies import ModelParallelStrategy
from sharded_training import STEPS, new_model, train

from megalit.callbacks import AtomicCheckpointIO
from megalit.errors import UserError
from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.modeling import sharding
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.optimizers import OptimizerSettings
from megalit.modeling.shapes import Shape

SCRIPT = Path(__file__).parent / "sharded_training.py"


def shard(
    data_set: DataSet, folder: Path, stop_at: int, *teachers: str, precision: str = "32-true", files: str = "shards"
) -> list[Fork]:
    arguments = (data_set.folder, folder, str(stop_at), precision, files, *teachers)
    return [fork(SCRIPT, *arguments, **rank) for rank in ranks(2)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(folder)
    assert newest is not None
    state: dict[str, torch.Tensor] = AtomicCheckpointIO().load_checkpoint(newest)["state_dict"]
    return state


def test_one_process_and_a_sharded_run_continue_each_other(data_set: DataSet, tmp_path: Path) -> None:
    stores = str(data_set.folder)
    first = shard(data_set, tmp_path / "sharded_first", 3)
    train(stores, tmp_path / "whole", STEPS, devices=1)
    train(stores, tmp_path / "sharded_last", 3, devices=1)
    last = shard(data_set, tmp_path / "sharded_last", STEPS)
    finish(first)
    folder = newest_checkpoint(tmp_path / "sharded_first")
    assert folder is not None
    assert folder.is_dir()
    assert [path.name for path in folder.parent.iterdir()] == ["step-000000003.ckpt"]
    train(stores, tmp_path / "sharded_first", STEPS, devices=1)
    finish(last)
    expected = weights(tmp_path / "whole")
    for name in ("sharded_first", "sharded_last"):
        # Suites do not divide evenly, and ranks that made other numbers of passes would wait for ever.
        loss = json.loads((tmp_path / name / "validation.json").read_text())
        assert loss == pytest.approx(json.loads((tmp_path / "whole" / "validation.json").read_text()), rel=1e-5)
        found = weights(tmp_path / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-4, msg=f"{name}: {key}")


def test_a_sharded_run_goes_on_from_a_whole_checkpoint(data_set: DataSet, tmp_path: Path) -> None:
    """Torch's optimizers and Lightning's strategy count parameters in different orders, a checkpoint names them."""
    finish(shard(data_set, tmp_path / "sharded", 3, files="whole"))
    newest = newest_checkpoint(tmp_path / "sharded")
    assert newest is not None
    assert newest.is_file()
    state = torch.load(newest, weights_only=True)
    moments = state["optimizer_states"][0]["state"]
    assert {name: value["exp_avg"].shape for name, value in moments.items()} == {
        name: value.shape for name, value in state["state_dict"].items()
    }
    finish(shard(data_set, tmp_path / "sharded", STEPS, files="whole"))
    train(str(data_set.folder), tmp_path / "whole", STEPS, devices=1)
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "sharded")[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_blocks_gathered_in_bfloat16_learn_what_one_process_learns(data_set: DataSet, tmp_path: Path) -> None:
    """Rounding differs, and with it small entries of Adam's steps; the way from the first weights is the same."""
    sharded = shard(data_set, tmp_path / "sharded", STEPS, precision="bf16-mixed")
    train(str(data_set.folder), tmp_path / "whole", STEPS, devices=1, precision="bf16-mixed")
    finish(sharded)
    model = new_model()
    found, expected = weights(tmp_path / "sharded"), weights(tmp_path / "whole")
    model.vocabulary_size = expected["lm_head.weight"].shape[0]
    model.configure_model()
    for name, first in model.state_dict().items():
        assert found[name].dtype == torch.float32, name
        ways = [(end[name].double() - first).flatten() for end in (found, expected)]
        assert torch.cosine_similarity(*ways, dim=0) > 0.99, name


def test_what_cannot_be_sharded_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = LanguageModel(Shape(32, 48, 2, 2, 2, tie_embeddings=True), vocabulary_size=40)
    tied.configure_model()
    mesh: Any = {"data_parallel": SimpleNamespace(size=lambda: 2)}
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="embeddings are tied"):
        sharding.shard(tied, mesh)
    # As a run of several is measured on one.
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    with pytest.raises(UserError, match="there is one device: set trainer.strategy to auto"):
        sharding.shard(tied, mesh)
    # Lightning's default sizes: one data-parallel rank, so each device would train weights of its own.
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    with pytest.raises(UserError, match="set its tensor_parallel_size to 1 and data_parallel_size"):
        sharding.shard(tied, mesh)
    strategy: Any = ModelParallelStrategy(data_parallel_size=4, tensor_parallel_size=1)
    with pytest.raises(UserError, match="data_parallel_size is 4 and its tensor_parallel_size 1, on 8 devices"):
        sharding.check_sizes(strategy, 8)
    sharding.check_sizes(strategy, 4)
    muon = LanguageModel("nano", vocabulary_size=40, optimizer=OptimizerSettings("muon"))
    monkeypatch.setattr(lightning.LightningModule, "device_mesh", object())
    with pytest.raises(UserError, match="Muon needs whole matrices"):
        muon.configure_optimizers()


def test_a_sharded_student_learns_from_a_whole_teacher_what_one_process_learns(
    data_set: DataSet, tmp_path: Path
) -> None:
    stores, teacher = str(data_set.folder), str(tmp_path / "teacher")
    train(stores, tmp_path / "teacher", STEPS, devices=1)
    sharded = shard(data_set, tmp_path / "sharded", STEPS, teacher)
    train(stores, tmp_path / "whole", STEPS, teacher, devices=1)
    finish(sharded)
    untaught = weights(tmp_path / "teacher")
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "sharded")[name], value, atol=2e-5, rtol=1e-3, msg=name)
    assert any((untaught[name] - value).abs().max() > 1e-3 for name, value in weights(tmp_path / "whole").items())


def test_the_average_of_a_sharded_student_is_refused(data_set: DataSet, tmp_path: Path) -> None:
    for process in shard(data_set, tmp_path / "sharded", STEPS, "ema"):
        _, said = process.communicate(timeout=300)
        assert process.returncode != 0
        assert "SelfDistillation.teachers is ema and the model is sharded" in said
