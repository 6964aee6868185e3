"""Run records survive what happens to files."""

import json
import math
from pathlib import Path

import pytest

from megalit.errors import UserError
from megalit.scaling.ledger import read_ledger
from megalit.scaling.plots import loss_curve
from megalit.scaling.records import CurvePoint, RunRecord, bits_per_byte, read_record


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(
        status="running",
        config={"run": "x"},
        parameters={"total": 10, "non_embedding": 5},
        plan={"steps": 2},
        tokens_seen={"real": 100},
        epochs={"real": 0.5},
        unique_real_tokens=200,
        synthetic_share=0.0,
        flops=1e9,
        losses={"iid": {"nats_per_token": 2.0, "bits_per_byte": 1.0}},
        wall_seconds=1.0,
        environment={},
        seeds={"model": 0, "data": 0},
        steps=1,
        training_curve=[CurvePoint(1, 50, {"train": 3.0}), CurvePoint(2, 100, {"train": 2.5})],
        validation_curve=[CurvePoint(2, 100, {"iid": 2.0})],
    )


def test_a_record_reads_back_as_it_was_written(record: RunRecord, tmp_path: Path) -> None:
    record.write(tmp_path)
    assert read_record(tmp_path) == record


def test_a_diverged_loss_still_gives_valid_json(record: RunRecord, tmp_path: Path) -> None:
    record.losses["iid"]["nats_per_token"] = math.nan
    record.write(tmp_path)
    strict = json.loads((tmp_path / "record.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert strict["losses"]["iid"]["nats_per_token"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "no record of a run"),
        ('{"format": 9}', "newer megalit"),
        ("{}", "no record of a run"),
    ],
)
def test_a_damaged_record_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_record(tmp_path)


def test_no_record_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="megalit fit"):
        read_record(tmp_path)


def test_bits_per_byte_of_a_uniform_byte_model() -> None:
    """A model that gives each of 256 bytes the same chance needs 8 bits for a byte."""
    assert bits_per_byte(math.log(256), tokens=1000, text_bytes=1000) == pytest.approx(8)
    # Two bytes to a token and the same nats in all: the same bits per byte.
    assert bits_per_byte(2 * math.log(256), tokens=500, text_bytes=1000) == pytest.approx(8)


def test_the_loss_curve_is_a_picture(record: RunRecord, tmp_path: Path) -> None:
    loss_curve(record, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_run_that_is_named_in_several_ways_is_one_run(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        record.write(tmp_path / "runs" / name)
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    named = [Path("runs/a"), tmp_path / "runs" / "a", Path("runs/../runs"), Path("link")]
    assert list(read_ledger(named).records) == [Path("runs/a"), Path("runs/../runs/b")]
