"""What a device can do at best, to say how much of it a run used."""

import re
from collections.abc import Mapping

# Dense bf16 tensor-core FLOP/s by words of the device's name, from the makers' data sheets.
PEAK_FLOPS = {
    "B300": 2250e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "GB300": 2500e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}

# Memory in GB (10^9 bytes), from the same sheets.
MEMORY_GB = {
    "B300": 288,
    "B200": 180,
    "GB200": 186,
    "GB300": 288,
    "H200": 141,
    "GH200": 96,
    "H100 NVL": 94,
    "H100": 80,
    "H800": 80,
    "H20": 96,
    "A100": 80,
    "A800": 80,
    "A40": 48,
    "A30": 24,
    "A10G": 24,
    "A10": 24,
    "L40S": 48,
    "L40": 48,
    "L4": 24,
    "RTX 5090": 32,
    "RTX 4090": 24,
    "RTX 3090": 24,
}


def peak_flops(device: str) -> float | None:
    """Dense bf16 FLOP/s of a device by its name, or None where it is not known (a CPU, for example)."""
    return _of(PEAK_FLOPS, device)


def device_memory(device: str) -> float | None:
    """Bytes of memory of a device by its name, the larger of several editions, or None where it is not known."""
    gigabytes = _of(MEMORY_GB, device)
    return None if gigabytes is None else gigabytes * 1e9


def _of(table: Mapping[str, float], device: str) -> float | None:
    found = [name for name in table if re.search(rf"\b{name}\b", device, re.IGNORECASE)]
    # The longest name says most: an H100 PCIe is slower than an H100.
    return table[max(found, key=len)] if found else None


def mfu(flops_per_token: float, tokens_per_second: float, device: str, devices: int) -> float | None:
    """Model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B).

    The model's FLOPs per token, recomputation not counted, times tokens per second over all devices, over what the
    devices could do at best; None where that is not known.
    """
    peak = peak_flops(device)
    return None if peak is None else flops_per_token * tokens_per_second / (peak * devices)
