"""The Ensemble callback: what it logs is the loss of the average of this model and its members."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from data_sets import DataSet
from forks import finish, ranks
from running import Run, start

from megalit.evaluation.checkpoints import load_model
from megalit.evaluation.ensembles import probability_curve
from megalit.evaluation.losses import token_losses
from megalit.scaling.records import read_record
from megalit.streams import RealStream


def ensembling(small: Path, folder: Path, *members: str) -> Path:
    """The small configuration with the callback, as a file."""
    config = yaml.safe_load(small.read_text())
    callback = {"class_path": "megalit.callbacks.Ensemble", "init_args": {"members": list(members)}}
    config["trainer"]["callbacks"] = [callback]
    path = folder / "ensembling.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def curve(data_set: DataSet, *runs: str) -> list[float]:
    suite = RealStream(stores=str(data_set.folder), context_length=32, total_tokens=128).suites["iid"]
    return probability_curve([token_losses(load_model(Path(run)), suite) for run in runs])


def test_every_validation_measures_the_average_with_the_members(
    run: Run, small: Path, data_set: DataSet, tmp_path: Path
) -> None:
    assert run("fit", "--config", small, "--run", "a", "--seed_everything", 1) == 0
    assert run("fit", "--config", small, "--run", "b", "--seed_everything", 2, "--model.shape", "tiny") == 0
    config = ensembling(small, tmp_path, "a", "b")
    assert run("fit", "--config", config, "--run", "c") == 0
    record = read_record(Path("c"))
    assert record.ensemble["iid"] == pytest.approx(curve(data_set, "c", "a", "b"), rel=1e-5)
    assert record.ensemble["iid"][0] == pytest.approx(record.losses["iid"]["nats_per_token"])
    points = [point.losses for point in record.validation_curve]
    assert len(points) == 2
    assert all({"iid", "ensemble/iid/1", "ensemble/iid/2", "ensemble/iid/3"} == set(point) for point in points)
    assert sorted(record.losses) == ["iid"]

    # The members have run once: their losses are kept and read again.
    (kept,) = (tmp_path / "a" / "token_losses").iterdir()
    np.save(kept, np.load(kept) + 1)
    assert run("validate", "--config", config, "--run", "c") == 0
    assert run("fit", "--config", config, "--run", "d") == 0
    assert read_record(Path("d")).ensemble["iid"][1] > record.ensemble["iid"][1]


def test_two_ranks_measure_what_one_does(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small, "--run", "a", "--seed_everything", 1) == 0
    config = ensembling(small, tmp_path, "a")
    parts = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--run", "two"]
    finish([start("fit", "--config", config, *map(str, parts), folder=tmp_path, **rank) for rank in ranks(2)])
    assert run("fit", "--config", config, "--run", "one") == 0
    one, two = read_record(Path("one")).ensemble, read_record(Path("two")).ensemble
    assert two["iid"] == pytest.approx(one["iid"], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--model.vocabulary_size", 5000], "the member a has a vocabulary of 5000"),
        (["--data.context_length", 16], "the member a was trained on windows of 16 tokens"),
        (["--run", "z"], "a holds no"),
    ],
)
def test_what_cannot_be_a_member_is_named_before_the_run(
    settings: list[Any], message: str, run: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small, "--run", "a", *settings) == 0
    assert run("fit", "--config", ensembling(small, tmp_path, "a"), "--run", "b") == 2
    assert message in capsys.readouterr().err
    assert not Path("b").exists()


def test_a_member_in_the_middle_of_its_schedule_is_refused(
    run: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small, "--run", "a") == 0
    replace(read_record(Path("a")), status="running").write(Path("a"))
    assert run("fit", "--config", ensembling(small, tmp_path, "a"), "--run", "b") == 2
    assert "the member a is not finished" in capsys.readouterr().err
    middle = min(Path("a").glob("checkpoints/*.ckpt"))
    assert run("fit", "--config", ensembling(small, tmp_path, str(middle)), "--run", "b") == 0
