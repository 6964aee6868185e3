"""``megalit inspect`` shows what is there."""

import shutil
from pathlib import Path

import pytest
from data_sets import DataSet
from running import Run


def test_a_configuration_is_shown_as_a_tree(run: Run, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", small, "--verify", "true") == 0
    said = capsys.readouterr().out
    for words in ("40 steps", "real: 25.0% of windows", "stitched: 75.0% of windows", "validation iid", "verified:"):
        assert words in said


def test_a_window_is_shown_with_the_provenance_of_its_pieces(
    run: Run, small: Path, data_set: DataSet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each piece's text is a part of the document or generation that it is said to be from."""
    seen = 0
    for window in range(4):
        assert run("inspect", small, "--window", str(window)) == 0
        shown = capsys.readouterr().out.split(f"sample {window} of the run")[1]
        for block in shown.split("\n[")[1:]:
            head, text = block.split("]\n", 1)
            name, *rest = head.split(", ")
            if name in data_set.rows:
                row = data_set.rows[name]
                generation = next((int(part.split()[1]) for part in rest if part.startswith("generation")), None)
                source = row["text"] if generation is None else row["generations"][generation]["text"]
                assert text.strip("\n").strip() in source
                seen += 1
    assert seen >= 4


def test_streams_are_drawn(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("inspect", small, "--plot", tmp_path / "p.png", "--data", "LatentThoughtStream") == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_store_is_found(run: Run, data_set: DataSet, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(data_set.stores.real.folder, tmp_path / "real")
    assert run("inspect", "real", "--verify") == 0
    assert "verified" in capsys.readouterr().out
    chunk = next((tmp_path / "real").glob("*.bin"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    assert run("inspect", "real", "--verify", "true") == 2
    assert f"{chunk.name} does not hold" in capsys.readouterr().err


def test_stores_that_are_replayed_are_verified_too(
    run: Run, data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data_set.folder, tmp_path / "old")
    streams = "[{order: real, share: 0.5}, {order: real, share: 0.5, name: old, stores: old}]"
    settings = f"{{stores: '{data_set.folder}', context_length: 32, total_tokens: 5000, streams: {streams}}}"
    config = tmp_path / "mixture.yaml"
    config.write_text(f"data: {{class_path: MixtureStream, init_args: {settings}}}\nmodel: {{shape: nano}}\n")
    assert run("inspect", config, "--verify") == 0
    assert "\nold/real: real" in capsys.readouterr().out
    chunk = next((tmp_path / "old" / "real").glob("*.bin"))
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    assert run("inspect", config, "--verify") == 2
    assert f"error: {chunk.relative_to(tmp_path)} does not hold what was written" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nowhere"], ["."], ["small.yaml", "--window", "160"]])
def test_what_cannot_be_shown_ends_in_one_line(
    arguments: list[str], run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("megalit: error:")


def test_a_configuration_beside_a_store_is_not_left_out(
    run: Run, small: Path, data_set: DataSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", data_set.folder, "--config", small) == 2
    assert "is a store, of which no configuration is read" in capsys.readouterr().err


def test_every_stream_of_the_shipped_configurations_can_be_planned(
    run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configurations = sorted((Path(__file__).parents[2] / "configs" / "stream").glob("*.yaml"))
    assert len(configurations) >= 5
    for path in configurations:
        if path.stem == "samples":  # these stores have none: test_hard_labels.py makes some
            assert run("inspect", small, "--config", path) == 2
            assert "samples" in capsys.readouterr().err
            continue
        assert run("inspect", small, "--config", path) == 0, path
        assert "40 steps" in capsys.readouterr().out


def test_unigrams_of_stores_and_of_a_run(
    run: Run, small: Path, data_set: DataSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", data_set.folder, "--unigrams", "true") == 0
    assert "against validation" in capsys.readouterr().out
    assert run("inspect", small, "--unigrams", "true") == 0
    said = capsys.readouterr().out
    assert "  stitched: " in said
    assert "  the run: " in said
    assert run("inspect", data_set.stores.real.folder, "--unigrams", "true") == 2
    assert "held-out ones" in capsys.readouterr().err
