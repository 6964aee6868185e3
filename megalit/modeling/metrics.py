"""Sums and means over many tokens, on all ranks."""

import torch
from torchmetrics import MeanMetric


def sum_type(device: torch.device) -> torch.dtype:
    """What sums over millions of tokens are kept in: float64, as float32 loses digits, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def mean_loss(device: torch.device) -> MeanMetric:
    """A mean loss over tokens, which may stay without any: a rank gets no window of a small suite, and computing a
    metric waits for all ranks."""
    # A loss that is no number stays one: torchmetrics would leave it out (and "disable" the weights).
    metric = MeanMetric(nan_strategy=torch.nan).set_dtype(sum_type(device)).to(device)
    metric.update(0.0, 0.0)
    return metric
