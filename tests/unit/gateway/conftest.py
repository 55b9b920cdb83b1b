"""Gateways before rings, and OpenAI's own clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from tests.gateway_ring import GatewayRing, a_gateway


@pytest.fixture
async def make_gateway(tiny_model: Path) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def make(*more: Any, **options: Any) -> GatewayRing:
            return await stack.enter_async_context(a_gateway(tiny_model, *more, **options))

        yield make


@pytest.fixture
async def gateway(make_gateway: Callable[..., Any]) -> GatewayRing:
    return await make_gateway()


@pytest.fixture
async def http(gateway: GatewayRing) -> AsyncIterator[aiohttp.ClientSession]:
    async with gateway.http() as client:
        yield client


@pytest.fixture
async def sdk(gateway: GatewayRing) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as client:
        yield client
