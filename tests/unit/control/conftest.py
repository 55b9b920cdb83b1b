"""Fixtures of the control plane's tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from stream2llm.cluster import machine_preflight


@pytest.fixture
def collector_as_before() -> Iterator[None]:
    """Undoes what the start of an actor sets in Python's garbage collector."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.fixture
def every_port_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """For checks of configured ports alone, whatever listens on this machine."""
    monkeypatch.setattr(machine_preflight, "is_port_free", lambda host, port: True)
