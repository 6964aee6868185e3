"""A server for the engine that asks one."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from serving import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the engine would have waited, had this not been a test."""
    waited: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await real(0)

    monkeypatch.setattr("megalit.synthesis.engines.openai_server.asyncio.sleep", sleep)
    return waited
