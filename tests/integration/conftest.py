"""What every answer of the sensitive model is compared with: one engine for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster_pool import MAX_MODEL_LEN, model_path
from tests.reference_engine import ReferenceEngine


@pytest.fixture(scope="session")
def reference() -> Iterator[ReferenceEngine]:
    """One plain engine with the sensitive model; it starts with the first question."""
    with ReferenceEngine(model_path("random-llama-sensitive"), MAX_MODEL_LEN) as engine:
        yield engine
