"""Fixtures of the control plane's tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def collector_as_before() -> Iterator[None]:
    """Undoes what the start of an actor sets in Python's garbage collector."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
