"""What several rooms of unit tests need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.credentials import Keys
from tests.tiny_model import make_tiny_model
from tests.tls_files import Authority


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))
