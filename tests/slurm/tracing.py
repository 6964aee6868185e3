"""A callback for runs under SLURM: writes down the windows of each step."""

import os
from pathlib import Path
from typing import Any

import lightning


class Windows(lightning.Callback):
    """Appends 'step sample:stream:epoch:window ...' to a file of its rank and start."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        start = os.environ.get("SLURM_RESTART_COUNT", "0")
        windows = " ".join(":".join(map(str, row)) for row in batch["provenance"].tolist())
        with (Path(trainer.default_root_dir) / f"windows-{start}-{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{trainer.global_step} {windows}\n")


def windows(folder: Path) -> dict[int, set[str]]:
    """The windows of each step, of all ranks and starts together."""
    steps: dict[int, set[str]] = {}
    for path in folder.glob("windows-*.txt"):
        for line in path.read_text().splitlines():
            step, *read = line.split()
            steps.setdefault(int(step), set()).update(read)
    return steps
