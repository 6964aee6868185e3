"""Peaks of devices and what they make of a speed."""

import pytest

from megalit.scaling.devices import mfu, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA RTX A4000", None),
        ("2 x NVIDIA H200", 989e12),
        ("cpu", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_device_is_known_by_its_name(name: str, peak: float | None) -> None:
    """Lightning knows no peak of an H200, and others take an A100's for it, which inflates MFU three times."""
    assert peak_flops(name) == peak


def test_mfu_is_the_share_of_all_devices_peaks() -> None:
    # 300M parameters, 6 FLOPs each: at half the peak of 8 devices.
    flops = 6 * 300e6
    assert mfu(flops, 0.5 * 8 * 989e12 / flops, "NVIDIA H200", 8) == pytest.approx(0.5)
    assert mfu(flops, 1e6, "cpu", 1) is None
