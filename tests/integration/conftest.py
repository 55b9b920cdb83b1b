"""What several files share: the engine that answers are compared with, and the built wheel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster_pool import MAX_MODEL_LEN, model_path
from tests.reference_engine import ReferenceEngine
from tests.wheels import build_wheel


@pytest.fixture(scope="session")
def reference() -> Iterator[ReferenceEngine]:
    """One plain engine with the sensitive model; it starts with the first question."""
    with ReferenceEngine(model_path("random-llama-sensitive"), MAX_MODEL_LEN) as engine:
        yield engine


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    source, built = (tmp_path_factory.mktemp(name) for name in ("source", "built"))
    return build_wheel(source, built)
