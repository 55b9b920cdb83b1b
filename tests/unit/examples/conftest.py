"""The fixtures of tests of the client, for examples: a router without a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fake_router import FakeRouter


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    async with FakeRouter() as fake:
        yield fake
