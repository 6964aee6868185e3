"""What the record's callback counts over several starts of a run."""

from types import SimpleNamespace
from typing import Any

import pytest

from megalit.callbacks import ScalingLaw, scaling_law


def test_time_of_devices_is_summed_start_by_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of eight devices that ends on one has not spent all its time on one."""
    now = 0.0
    monkeypatch.setattr(scaling_law, "time", SimpleNamespace(monotonic=lambda: now))

    def start(devices: int, state: dict[str, Any] | None = None) -> ScalingLaw:
        callback: Any = ScalingLaw()
        if state is not None:
            callback.load_state_dict(state)
        callback.on_fit_start(SimpleNamespace(world_size=devices), None)
        return callback  # type: ignore[no-any-return]

    first = start(8)
    now = 100.0
    state = first.state_dict()
    second = start(1, state)
    now = 110.0
    assert (second.state_dict()["seconds"], second.state_dict()["device_seconds"]) == (110.0, 810.0)
    # A checkpoint of a version that did not count devices: how many there were is not known.
    del state["device_seconds"]
    assert start(1, state).state_dict()["device_seconds"] is None
