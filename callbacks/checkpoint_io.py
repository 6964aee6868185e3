"""Writing and reading a checkpoint's file."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from megalit.evaluation.checkpoints import read_checkpoint
from megalit.files import write_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary name, flushes it to the disk and renames it; reads sharded ones too."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            write_atomic(Path(path), lambda file: torch.save(checkpoint, file))
        except RuntimeError as error:
            # torch's writer covers what the disk said with an error of its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint; one that was written in shards is put together, so that any strategy goes on with it."""
        if Path(path).is_dir():
            return read_checkpoint(Path(path))
        checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location or _cpu, weights_only)
        return checkpoint


def _cpu(storage: Any, location: str) -> Any:
    return storage
