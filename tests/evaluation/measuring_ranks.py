"""One of two ranks that measure a suite together; test_measuring.py is the other.

python measuring_ranks.py STORE WEIGHTS RENDEZVOUS
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megalit.evaluation.losses import token_losses
from megalit.evaluation.measuring import measure
from megalit.modeling.language_model import LanguageModel
from megalit.streams.store import TokenStore
from megalit.streams.suites import suite_of


def measure_as(rank: int, store: Path, weights: Path, rendezvous: Path) -> dict[str, Any]:
    """What this rank gets, three windows in a batch: the ranks have different numbers of windows."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        model = LanguageModel("nano", vocabulary_size=300)
        model.configure_model()
        model.load_state_dict(torch.load(weights, weights_only=True))
        suite = suite_of(TokenStore(store), 32, separate=False)
        found = asdict(measure([model], suite, batch=3, bucket=1))
        return {**found, "losses": torch.from_numpy(token_losses(model, suite, batch=3, divide=True))}
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    store, weights, rendezvous = map(Path, sys.argv[1:])
    torch.save(measure_as(1, store, weights, rendezvous), weights.with_name("rank1.pt"))
