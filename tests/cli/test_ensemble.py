"""``megalit ensemble``: training members, going on, and measuring them."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import fork
from made_runs import make_run
from running import Run, start, wait_for_checkpoint

from megalit.cli import ensemble
from megalit.cli.ensemble import _are_alike, _law
from megalit.evaluation.checkpoints import load_model, newest_checkpoint
from megalit.preemption import STOP
from megalit.scaling.records import read_record
from megalit.scaling.report.setting import NOT_ALIKE


@pytest.fixture
def members_are_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many members are trained; elsewhere they are the interpreters that an ensemble starts."""

    def run(command: Sequence[str]) -> int:
        program, *arguments = command[command.index("-m") + 1 :]
        return fork(program, *arguments).wait(300)

    monkeypatch.setattr(ensemble, "_run", run)


def result(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())["suites"]["iid"]
    return value


@pytest.mark.usefixtures("members_are_forks")
def test_members_are_trained_once_and_their_averages_measured(
    run: Run, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", small, "--run", "five", "--seed_everything", 3]
    assert run("ensemble", "--members", 2, *flags, "--only", 1) == 0
    assert not Path("five/member-0").exists()
    assert run("ensemble", "--members", 2, *flags) == 0
    assert "the run in five/member-1 is finished" in capfd.readouterr().err
    for number in (0, 1):
        record = read_record(Path(f"five/member-{number}"))
        assert record.seeds == {"model": 3 + number, "data": 3 + number}
    found = result(Path("five/ensemble.json"))
    alone = [read_record(Path(f"five/member-{number}")).losses["iid"]["nats_per_token"] for number in (0, 1)]
    assert found["alone"] == pytest.approx(alone, rel=1e-5)
    for curve in found["averages"].values():
        assert curve[0] == pytest.approx(alone[0], rel=1e-5)
        assert curve[1] < max(alone)
    assert found["laws"] == {"probabilities": None, "logits": None}  # two points are no curve
    assert sum(found["selection"]["weights"]) == pytest.approx(1)

    # A third member is added to the two; what they said before is read, not computed.
    (kept,) = Path("five/member-0/token_losses").iterdir()
    np.save(kept, np.load(kept) + 1)
    assert run("ensemble", "--members", 3, *flags, "--logits", "false") == 0
    found = result(Path("five/ensemble.json"))
    assert found["alone"][0] == pytest.approx(alone[0] + 1, rel=1e-5)
    assert len(found["averages"]["probabilities"]) == 3
    assert found["laws"]["probabilities"]["coefficients"].keys() == {"A", "B", "C"}


def test_the_law_of_members_that_are_not_alike_says_so(tmp_path: Path) -> None:
    """Its limit is the loss of an infinite ensemble only where each member is drawn as the others are."""
    seeds = [make_run(tmp_path / f"member-{seed}", seed=seed) for seed in range(3)]
    other = make_run(tmp_path / "other", weight_decay=0.1)
    assert _are_alike(seeds)
    assert not _are_alike([*seeds, other])
    assert not _are_alike(seeds[:1] * 3)  # snapshots of one run
    assert _are_alike([*seeds, tmp_path / "exported"])  # nothing is known
    curve = [3.4, 3.3, 3.27]
    alike, others = _law(curve, True), _law(curve, False)
    assert alike is not None
    assert others == alike | {"remarks": [*alike["remarks"], NOT_ALIKE]}


def test_a_chain_distils_each_member_from_the_one_before(
    run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", small, "--run", "chain", "--chain", "all", "--members", 2, "--logits", "false"]
    assert run("ensemble", *flags, "--only", 1) == 2
    assert "member 1 distils from chain/member-0, which is not finished" in capsys.readouterr().err
    assert run("ensemble", *flags) == 0
    callbacks = [read_record(Path(f"chain/member-{n}")).config["trainer"]["callbacks"] for n in range(2)]
    assert callbacks[0] is None
    assert callbacks[1][0]["init_args"]["teachers"] == ["chain/member-0"]
    # Another setting is another member.
    assert run("ensemble", *flags, "--chain_weight", 0.9) == 2
    said = capsys.readouterr().err
    assert "chain/member-1 holds a run with another trainer.callbacks" in said
    assert said.endswith("choose another --run, or remove that folder\n")


def test_snapshots_of_one_run_are_members(run: Run, small: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", small, "--checkpoint.keep", 3) == 0
    snapshots = sorted(Path("run/checkpoints").iterdir())
    assert len(snapshots) == 3
    assert run("ensemble", "--runs", *snapshots, "--output", "snapshots.json") == 0
    found = result(Path("snapshots.json"))
    assert len(set(found["alone"])) == 3
    assert found["best_average"] in ("probabilities", "logits")


def test_what_cannot_be_an_ensemble_is_named(
    run: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: Any) -> str:
        assert run("ensemble", *arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        return lines[-1]

    assert "name a file with --output" in refused("--runs", "a", "b")
    assert "leave one of them out" in refused("--runs", "a", "--config", small, "--output", "x.json")
    assert "members is 0" in refused("--members", 0, "--config", small)
    assert "only is 7" in refused("--members", 3, "--only", 7, "--config", small)
    assert "Unrecognized arguments: --model.colour" in refused("--config", small, "--model.colour", "red")
    assert "member 0 ended with exit code 2" in refused("--config", small, "--data.stores", "nowhere")
    assert run("fit", "--config", small) == 0
    assert run("fit", "--config", small, "--run", "other", "--model.vocabulary_size", 5000) == 0
    assert "vocabularies" in refused("--runs", "run", "other", "--output", "x.json")
    checkpoint = newest_checkpoint(Path("other"))
    assert checkpoint is not None
    state = torch.load(checkpoint, weights_only=True)
    for value in state.values():
        if isinstance(value, dict) and "plan" in value:
            value["plan"]["settings"]["tokenizer"] = "another"
    state["hyper_parameters"]["vocabulary_size"] = load_model(Path("run")).vocabulary_size
    for name in ("transformer.embed_tokens.weight", "lm_head.weight"):
        state["state_dict"][name] = state["state_dict"][name][: state["hyper_parameters"]["vocabulary_size"]]
    torch.save(state, checkpoint)
    assert "differ in their tokenizer" in refused("--runs", "run", "other", "--output", "x.json")


def test_an_ensemble_that_is_told_to_stop_saves_its_member_and_goes_on(run: Run, small: Path, tmp_path: Path) -> None:
    flags = ["--members", 1, "--config", small, "--run", "one", "--data.total_tokens", 20_000]
    process = start("ensemble", *flags, folder=tmp_path)
    member = tmp_path / "one" / "member-0"
    wait_for_checkpoint(process, member)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "stopped by SIGTERM at step" in said
    assert "Traceback" not in said
    assert run("ensemble", *flags) == 0
    assert run("fit", *flags[2:], "--run", "whole") == 0
    assert read_record(member).validation_curve == read_record(Path("whole")).validation_curve


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--chain", "all", "--chain_weight", 2], "weight is 2.0"),
        (["--batch", 0], "batch is 0"),
        (["--device", "abacus"], "device abacus cannot be used here"),
        (["--device", "cuda:64"], "device cuda:64 cannot be used here (there are"),
        (["--suites", "{}"], "no suite is named"),
        (["--overwrite", "true"], "overwrite is not for ensembles: choose another --run, or remove the members"),
    ],
)
def test_what_would_be_found_out_after_training_is_said_before(
    flags: list[Any], message: str, run: Run, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ensemble", "--config", small, "--run", "never", *flags) == 2
    assert message in capsys.readouterr().err
    assert not Path("never").exists()


def test_an_ensemble_replaces_no_member(
    run: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small, "--run", "two/member-0") == 0
    before = sorted((tmp_path / "two").rglob("*"))
    small.write_text(small.read_text() + "overwrite: true\n")
    assert run("ensemble", "--members", 1, "--config", small, "--run", "two", "--model.learning_rate", 0.5) == 2
    assert "overwrite is not for ensembles" in capsys.readouterr().err
    assert sorted((tmp_path / "two").rglob("*")) == before


def test_a_gpu_is_left_alone_until_its_members_are_trained(
    run: Run, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context there takes memory from the members, which are other processes, or bars them."""
    begun = []

    def member(command: Sequence[str]) -> int:
        assert not torch.cuda.is_initialized()
        begun.append(command)
        return 75

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(ensemble, "_run", member)
    assert run("ensemble", "--members", 2, "--config", small, "--run", "two", "--device", "cuda:0") == 75
    assert len(begun) == 1


@pytest.mark.parametrize(("ends", "code"), [(0, 0), (-signal.SIGTERM, 2)])
def test_told_to_stop_while_a_member_starts_or_ends_it_begins_no_other(
    ends: int, code: int, run: Run, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A member at its last step finishes; one that handles no signals yet is ended by them."""
    begun = []

    def member(command: Sequence[str], told: bool = True) -> int:
        begun.append(command)
        if ends == 0:
            program, *arguments = command[command.index("-m") + 1 :]
            assert fork(program, *arguments).wait(300) == 0
        STOP.received = "SIGTERM" if told else None
        return ends

    monkeypatch.setattr(ensemble, "_run", member)
    flags = ["--members", 3, "--config", small, "--run", "three"]
    assert run("ensemble", *flags) == 75
    assert len(begun) == 1
    assert "stopped by SIGTERM: the same command continues" in capsys.readouterr().err
    # By nobody's signal the same is a failure, or the next member's turn.
    monkeypatch.setattr(ensemble, "_run", lambda command: member(command, told=False))
    assert run("ensemble", *flags, "--logits", "false") == code
