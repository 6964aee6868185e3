"""Two ranks that go through every way of being told to stop, one after the other; started by test_preemption.py.

RANK=… python preempted_training.py STORES FOLDER

For each case a run of its own: it is signalled at the case's moment, ends, and is continued to its end.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from megalit.callbacks import AtomicCheckpointIO, Checkpoint, Preemption
from megalit.callbacks import preemption as preempting
from megalit.evaluation.checkpoints import newest_checkpoint
from megalit.modeling.language_model import LanguageModel
from megalit.preemption import STOP, Preempted
from megalit.streams import StitchedStream

STEPS, GLOBAL_BATCH, CONTEXT = 24, 4, 16
USR1, TERM = signal.SIGUSR1, signal.SIGTERM
RANK = int(os.environ["RANK"])


@dataclass(frozen=True)
class Case:
    """When which ranks signal themselves; ``group`` signals the loader processes, too, and with ``long`` the steps of
    one rank take long by its clock."""

    hook: str
    step: int
    ranks: tuple[int, ...] = (0, 1)
    number: signal.Signals = USR1
    again: bool = False
    group: bool = False
    long: bool = False


CASES = {
    "undisturbed": Case("never", 0),
    "one_rank": Case("on_train_batch_end", 6, ranks=(1,)),
    "sigterm": Case("on_train_batch_end", 6, number=TERM),
    "between_agreements": Case("on_train_batch_end", 5, ranks=(0,)),
    "long_steps": Case("on_train_batch_end", 5, ranks=(0,), long=True),
    "loader_processes": Case("on_train_batch_end", 6, number=TERM, group=True),
    "second_signal": Case("on_train_batch_end", 6, again=True),
    "in_backward": Case("on_after_backward", 6, ranks=(1,)),
    "before_first_step": Case("on_fit_start", 0, ranks=(1,)),
    "in_validation": Case("on_validation_batch_end", 12, ranks=(0,)),
    "last_step": Case("on_train_batch_end", STEPS),
}


class Moments(lightning.Callback):
    """Signals at a case's moment, and appends each rank's windows and validations to a file of its own."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder

    def at(self, hook: str, step: int) -> None:
        case = self.case
        if hook == case.hook and step == case.step and RANK in case.ranks:
            if case.group:
                # From outside, as SLURM does it: a loader process obeys the process that it works for.
                subprocess.run(["kill", f"-{case.number.value}", "--", f"-{os.getpgrp()}"], check=False)
            else:
                os.kill(os.getpid(), case.number)

    def note(self, line: str) -> None:
        with (self.folder / f"trace-{RANK}.txt").open("a") as file:
            file.write(line + "\n")

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.at("on_fit_start", trainer.global_step)

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        self.at("on_after_backward", trainer.global_step)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.at("on_train_batch_end", trainer.global_step)
        windows = " ".join(":".join(map(str, row)) for row in batch["provenance"].tolist())
        self.note(f"step {trainer.global_step} {windows}")

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        self.at("on_validation_batch_end", trainer.global_step)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.note(f"validation {trainer.global_step}")


class Clock:
    """Stands still, or goes on by a minute whenever it is looked at; so no step is long because a machine is busy."""

    def __init__(self, runs: bool) -> None:
        self.runs, self.seconds = runs, 0.0

    def monotonic(self) -> float:
        self.seconds += 60.0 * self.runs
        return self.seconds


class SignalledIO(AtomicCheckpointIO):
    """Is told to stop again while it writes."""

    def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), TERM)
        super().save_checkpoint(*arguments, **options)
        os.kill(os.getpid(), USR1)


def fit(stores: str, folder: Path, case: Case, requeue: Callable[[], bool]) -> int:
    """Train until the end or the signal; give the exit code."""
    preempting.time = Clock(case.long and RANK == 1)  # type: ignore[assignment]
    preemption = Preemption(every_n_steps=2)
    preemption.requeue_job = requeue
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        use_distributed_sampler=False,
        val_check_interval=0.5,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[SignalledIO() if case.again else AtomicCheckpointIO()],
        callbacks=[Moments(case, folder), Checkpoint(), preemption],
    )
    data = StitchedStream(
        stores=stores,
        context_length=CONTEXT,
        global_batch=GLOBAL_BATCH,
        generations=3,
        total_tokens=STEPS * GLOBAL_BATCH * CONTEXT,
        num_workers=1 if case.group else 0,
    )
    model = LanguageModel("nano", seed=1)
    with STOP.installed():
        STOP.at_once = False
        try:
            trainer.fit(model, data, ckpt_path=newest_checkpoint(folder), weights_only=True)
        except Preempted as stopped:
            return int(str(stopped.code))
    torch.save(model.state_dict(), folder / f"weights-{RANK}.pt")
    return 0


def main() -> None:
    stores, folder = sys.argv[1], Path(sys.argv[2])
    never = Case("never", 0)
    for name, case in CASES.items():
        run = folder / name
        run.mkdir(exist_ok=True)
        requeued: list[str] = []

        def requeue(run: Path = run, requeued: list[str] = requeued) -> bool:
            # SLURM may end everything from here on: what is there now has to do.
            requeued.extend(sorted(path.name for path in (run / "checkpoints").glob("*")))
            os.kill(os.getpid(), TERM)
            return True

        codes = [fit(stores, run, case, requeue)]
        # A process behind the first one may end without a code.
        codes += [] if (run / f"weights-{RANK}.pt").exists() else [fit(stores, run, never, requeue)]
        (run / f"result-{RANK}.json").write_text(json.dumps({"codes": codes, "requeued": requeued}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
