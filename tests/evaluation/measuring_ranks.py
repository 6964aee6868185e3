"""One of two ranks that measure a suite together; started by test_measuring.py.

python measuring_ranks.py STORE WEIGHTS OUT RANK
"""

import sys
from dataclasses import asdict
from pathlib import Path

import torch

from megalit.evaluation import measure, token_losses
from megalit.modeling.language_model import LanguageModel
from megalit.streams.store import TokenStore
from megalit.streams.suites import suite_of

if __name__ == "__main__":
    store, weights, out, rank = sys.argv[1:]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{Path(out).resolve()}.store", rank=int(rank), world_size=2
    )
    model = LanguageModel("nano", vocabulary_size=300)
    model.configure_model()
    model.load_state_dict(torch.load(weights, weights_only=True))
    suite = suite_of(TokenStore(Path(store)), 32, separate=False)
    found = asdict(measure([model], suite, batch=3, bucket=1))
    losses = token_losses(model, suite, batch=3, divide=True)
    torch.save({**found, "losses": torch.from_numpy(losses)}, f"{out}{rank}")
    torch.distributed.destroy_process_group()
