"""Rings of a router and fake workers over a tokenizer made on the fly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.router_ring import Ring, a_ring


@pytest.fixture
async def make_ring(tiny_model: Path) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> Ring:
            return await stack.enter_async_context(a_ring(tiny_model, **options))

        yield make


@pytest.fixture
async def ring(make_ring: Callable[..., Any]) -> Ring:
    return await make_ring()
