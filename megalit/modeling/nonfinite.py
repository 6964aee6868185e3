"""What a loss or gradient that is not finite comes from."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from megalit.ranks import of_all_ranks


@torch.no_grad()
def culprits(model: Any, batch: dict[str, Tensor]) -> str:
    """Samples of the global batch whose own loss is not finite, with their documents; where there is none, or no data
    module to ask, all samples of the batch.

    Every rank must call it: the samples of all ranks are named.
    """
    bad, samples = [], batch["provenance"][:, 0].tolist()
    for window, sample in enumerate(samples):
        one = {name: value[window : window + 1] for name, value in batch.items()}
        if not torch.isfinite(model.term_sums(one)).all():
            bad.append(sample)
    bad, samples = (sorted(chain.from_iterable(of_all_ranks(own))) for own in (bad, samples))
    data = getattr(model.trainer, "datamodule", None)
    if not bad or data is None:
        return f"samples {samples[0]} to {samples[-1]}"
    documents = dict.fromkeys(name for sample in bad[:4] for name in data.documents_of(sample))
    return f"sample {', '.join(map(str, bad))}, documents {', '.join(documents)}"
