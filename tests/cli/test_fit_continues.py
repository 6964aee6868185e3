"""``megalit fit``, stopped, killed and limited: the same command goes on, to the same end."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from data_sets import DataSet
from forks import fork
from running import Run, losses, start, start_interpreter, wait_for_checkpoint

from megalit import files
from megalit.callbacks import Checkpoint
from megalit.errors import UserError
from megalit.modeling.language_model import LanguageModel
from megalit.scaling.records import read_record


def test_a_killed_run_continues_to_bit_identical_weights(run: Run, small: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle, the same command again: the same weights and the same record of losses."""
    flags = ("fit", "--config", small, "--data.total_tokens", "40000", "--trainer.deterministic", "true")
    victim = start(*flags, "--run", "killed", folder=tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "checkpoints").glob("step-*.ckpt")):
        assert victim.poll() is None, victim.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not (tmp_path / "killed" / "record.json").exists() or read_record(tmp_path / "killed").status == "running"

    # Not a fork as the others: with another hash seed, so that nothing hangs on the order of a set.
    again = start_interpreter(*flags, "--run", "killed", folder=tmp_path)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "continuing from" in said
    undisturbed = start(*flags, "--run", "whole", folder=tmp_path)
    _, said = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, said

    killed, whole = (
        torch.load(max((tmp_path / name / "checkpoints").glob("*.ckpt")), weights_only=True)
        for name in ("killed", "whole")
    )
    assert killed["global_step"] == whole["global_step"] == 313
    for name, value in whole["state_dict"].items():
        assert torch.equal(killed["state_dict"][name], value), name
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert read_record(tmp_path / "killed").losses == read_record(tmp_path / "whole").losses


def test_the_final_loss_is_that_of_the_whole_suite(run: Run, small: Path) -> None:
    """However few batches are validated during training, or it could be compared with no other run's."""
    assert run("fit", "--config", small, "--run", "whole") == 0
    assert run("fit", "--config", small, "--run", "part", "--trainer.limit_val_batches", "2") == 0
    whole, part = read_record(Path("whole")), read_record(Path("part"))
    assert part.validation_curve[0].losses["iid"] != pytest.approx(whole.validation_curve[0].losses["iid"], abs=1e-4)
    assert part.losses == whole.losses


def test_a_measurement_leaves_no_plans_on_the_node(
    run: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("fit", "--config", small) == 0
    monkeypatch.setenv("MEGALIT_PLANS", str(tmp_path / "node"))
    assert run("validate", "--config", small) == 0
    assert not list((tmp_path / "node").rglob("*.npy"))


def test_a_run_that_stops_early_is_not_finished_and_continues(
    run: Run, small: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(tmp_path / "run")
    assert record.status == "running"
    assert record.steps == 12
    assert sum(record.tokens_seen.values()) == 12 * 4 * 32
    assert run("fit", "--config", small) == 0
    assert "step-000000012.ckpt" in capsys.readouterr().err
    assert run("fit", "--config", small, "--run", "whole") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_run_goes_on_as_the_error_that_stopped_it_says(
    run: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what changes no step that has a result; a lower learning rate would be another run."""
    sums_of = LanguageModel.term_sums

    def broken(model: LanguageModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        sums = sums_of(model, batch)
        return sums * torch.nan if 48 in batch["provenance"][:, 0] else sums

    monkeypatch.setattr(LanguageModel, "term_sums", broken)
    assert run("fit", "--config", small) == 2
    assert "the loss is not finite at step 13, sample 48" in (said := capsys.readouterr().err)
    assert "with model.nonfinite skip the run goes on from its last checkpoint" in said
    assert run("fit", "--config", small, "--model.learning_rate", "0.005") == 2
    assert "holds a run with another model.learning_rate" in capsys.readouterr().err
    assert run("fit", "--config", small, "--model.nonfinite", "skip", "--model.gradient_checkpointing", "true") == 0
    said = capsys.readouterr().err
    assert "continuing from run/checkpoints/step-000000010.ckpt" in said
    assert "documents document-" in said
    assert said.count("the step is skipped") == 1
    record = read_record(tmp_path / "run")
    assert (record.status, record.steps, record.config["model"]["nonfinite"]) == ("finished", 40, "skip")


def test_a_time_limit_is_that_of_each_start(run: Run, small: Path, tmp_path: Path) -> None:
    flags = ("fit", "--config", small, "--data.total_tokens", "400000", "--trainer.max_time", "00:00:00:01")
    steps = [0]
    for _ in range(2):
        assert run(*flags) == 0
        steps.append(read_record(tmp_path / "run").steps)
    assert steps[0] < steps[1] < steps[2] < 3125


def test_without_held_out_documents_checkpoints_wait_for_no_validation(
    run: Run, small: Path, data_set: DataSet, tmp_path: Path
) -> None:
    shutil.copytree(data_set.folder, tmp_path / "stores", ignore=shutil.ignore_patterns("validation"))
    flags = ["--data.stores", tmp_path / "stores", "--trainer.val_check_interval", "4"]
    flags += ["--checkpoint.every_n_steps", "4", "--checkpoint.every_minutes", "null", "--checkpoint.keep", "99"]
    assert run("fit", "--config", small, *flags) == 0
    saved = sorted(path.stem for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    assert saved[:3] == ["step-000000004", "step-000000008", "step-000000012"]


def test_a_time_limit_of_all_starts_together_is_lightnings_timer(run: Run, small: Path, tmp_path: Path) -> None:
    flags = ["--data.total_tokens", "400000", "--trainer.callbacks+=lightning.pytorch.callbacks.Timer"]
    flags += ["--trainer.callbacks.duration", "00:00:00:01", "--trainer.callbacks.interval", "step"]
    for _ in range(2):
        assert run("fit", "--config", small, *flags) == 0
        steps = read_record(tmp_path / "run").steps
    assert run("fit", "--config", small, *flags) == 0
    assert read_record(tmp_path / "run").steps <= steps + 1


def test_a_run_may_not_go_on_with_an_interval_beyond_its_end(
    run: Run, small: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", small, "--trainer.val_check_interval", "9999") == 2
    assert "trainer.val_check_interval is 9999 steps and the run has 40" in capsys.readouterr().err


def test_without_validation_its_interval_does_not_matter(run: Run, small: Path) -> None:
    assert (
        run("fit", "--config", small, "--trainer.val_check_interval", "9999", "--trainer.limit_val_batches", "0") == 0
    )


def test_a_run_goes_on_with_other_data_when_it_is_told_to(run: Run, small: Path, stopped: Path, tmp_path: Path) -> None:
    done = 12
    other = ["--data.generations", "2", "--data.global_batch", "8"]
    assert run("fit", "--config", small, *other) == 2
    assert run("fit", "--config", small, *other, "--data.ignore_plan", "true") == 0
    # 40 steps of 4 windows were planned; the rest of the windows came in eights.
    state = torch.load(max((tmp_path / "run" / "checkpoints").iterdir()), weights_only=True)
    (data,) = [value for key, value in state.items() if "Stream" in key]
    assert data["steps"] == state["global_step"] == done + (20 * 8 - done * 4) // 8
    assert data["consumed_samples"] == done * 4 + (data["steps"] - done) * 8
    record = read_record(tmp_path / "run")
    assert record.steps == data["steps"]
    assert [point.tokens for point in record.training_curve] == [
        32 * (4 * step if step <= done else 4 * done + 8 * (step - done)) for step in range(1, record.steps + 1)
    ]
    assert sum(record.tokens_seen.values()) == record.validation_curve[-1].tokens == 32 * data["consumed_samples"]
    # What measures and exports the run reads from there what it was trained on.
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["init_args"]
    assert (settings["global_batch"], settings["ignore_plan"]) == (8, False)


def test_a_run_that_could_not_go_on_with_other_data_is_still_the_old_one(
    run: Run, small: Path, stopped: Path, tmp_path: Path
) -> None:
    def fails(*_: object) -> None:
        raise UserError("no first step")

    longer = ["--data.context_length", "64", "--data.ignore_plan", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "on_train_batch_end", fails)
        assert run("fit", "--config", small, *longer) == 2
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["init_args"]
    assert settings["context_length"] == 32
    # The tokens of windows of both lengths count.
    assert run("fit", "--config", small, *longer) == 0
    record = read_record(tmp_path / "run")
    assert record.training_curve[12].tokens == 12 * 4 * 32 + 4 * 64
    assert run("export", "--run", "run", "--output", "hf") == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["max_position_embeddings"] == 64


def test_ctrl_c_says_how_the_run_goes_on(small: Path, tmp_path: Path) -> None:
    process = start_interpreter("fit", "--config", small, "--data.total_tokens", "400000", folder=tmp_path)
    wait_for_checkpoint(process, tmp_path / "run")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "megalit fit: interrupted; the same command continues" in said
    assert "Traceback" not in said


WRITE_IS_KILLED = """
import os, signal, sys, torch
from megalit.cli import main
save, calls = torch.save, []
def killed(value, file, *rest, **more):
    calls.append(1)
    if len(calls) == 3:
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(value, file, *rest, **more)
torch.save = killed
main(sys.argv[1:])
"""


def test_a_run_killed_while_it_writes_a_checkpoint_continues_to_bit_identical_weights(
    run: Run, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "killed.py").write_text(WRITE_IS_KILLED)
    victim = fork(tmp_path / "killed.py", "fit", "--config", small, folder=tmp_path)
    assert victim.wait(120) == -signal.SIGKILL
    checkpoints = tmp_path / "run" / "checkpoints"
    # The third, at step 15, is half written under another name.
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-000000005.ckpt", "step-000000010.ckpt"]
    assert list(checkpoints.glob(".step-000000015.ckpt.*"))
    assert run("fit", "--config", small) == 0
    assert run("fit", "--config", small, "--run", "whole") == 0
    resumed, whole = (
        torch.load(tmp_path / name / "checkpoints" / "step-000000040.ckpt", weights_only=True)["state_dict"]
        for name in ("run", "whole")
    )
    assert all(torch.equal(value, whole[key]) for key, value in resumed.items())
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert not list(checkpoints.glob(".step-*"))


def test_two_commands_do_not_train_in_one_folder(run: Run, small: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    with files.lock(tmp_path / "run"):
        assert run("fit", "--config", small) == 2
    assert "another process trains in run" in capsys.readouterr().err
    assert run("fit", "--config", small) == 0


def test_a_run_that_dies_in_a_validation_makes_it_again(run: Run, small: Path, tmp_path: Path) -> None:
    """A checkpoint of the same step stands behind the validation, not before it."""
    callback = tmp_path / "dying.py"
    callback.write_text(
        """
import os, lightning

class Dying(lightning.Callback):
    def on_validation_start(self, trainer, *_):
        if trainer.global_step == 20 and not os.path.exists("died"):
            open("died", "w").close()
            os._exit(9)
"""
    )
    flags = ["--config", small, "--trainer.callbacks+=dying.Dying", "--checkpoint.every_n_steps", "20"]
    process = start("fit", *flags, folder=tmp_path)
    assert process.wait(120) == 9
    process = start("fit", *flags, folder=tmp_path)
    assert process.wait(120) == 0, process.communicate()
    again = start("fit", *flags, "--run", "undisturbed", folder=tmp_path)
    assert again.wait(120) == 0
    curves = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("run", "undisturbed")]
    assert curves[0]["validation_curve"] == curves[1]["validation_curve"]
    assert [point["step"] for point in curves[0]["validation_curve"]] == [20, 40]
    assert curves[0]["training_curve"] == curves[1]["training_curve"]
