"""What torch.compile is given."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megalit.modeling.language_model import LanguageModel
from megalit.modeling.shapes import Shape


def test_blocks_are_compiled_whole_under_ddp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Torch would cut them where a bucket of gradients may end, the first after 1 MiB."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend=backend))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        # Not monkeypatch: it would leave torch's settings without this one.
        with torch._dynamo.config.patch(optimize_ddp=True):
            model = LanguageModel(Shape(256, 512, 2, 4, 4), vocabulary_size=64, compile=True)
            model.configure_model()
            replica = torch.nn.parallel.DistributedDataParallel(model.transformer)
            # Graphs are cut before anything runs, so no backward pass: a reducer that dies while gloo's threads still
            # let go of its gradients waits for them with Python's lock, which they need.
            replica(torch.zeros(1, 8, dtype=torch.long))
            del replica
    finally:
        torch.distributed.destroy_process_group()
    assert len(graphs) == 1, "one for all layers"
