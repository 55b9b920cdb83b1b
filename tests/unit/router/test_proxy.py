"""With a proxy in the environment that never answers, all of our parts still connect."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import URLError
from urllib.request import build_opener

import grpc
import pytest
from prometheus_client import CollectorRegistry

from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import inference_pb2_grpc
from stream2llm.client import AsyncClient, SamplingParameters
from stream2llm.serving.http.metrics_http import MetricsServer
from stream2llm.serving.http.own_http import open_url
from tests.command_lines import cli
from tests.router_ring import Ring


@pytest.fixture(autouse=True)
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A proxy's address with nothing behind it, in every variable that means one."""
    with socket.socket() as holder:  # bound, but not listening: connections are refused
        holder.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{holder.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(name, address)
            monkeypatch.setenv(name.upper(), address)
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield address


async def test_a_client_meets_its_router_and_the_router_its_workers(
    make_ring: Callable[..., Any],
) -> None:
    ring: Ring = await make_ring()
    sampling = SamplingParameters(max_tokens=3)
    async with (
        AsyncClient(ring.address.grpc_address) as client,
        client.session(sampling=sampling) as session,
    ):
        await session.append("one")
        assert (await session.answer()).token_ids


async def test_status_meets_the_router(ring: Ring) -> None:
    arguments = ["status", "--json", "--address", ring.address.grpc_address]
    result = await asyncio.to_thread(cli, *arguments)
    assert result.exit_code == 4, "this router has no controller"
    assert json.loads(result.stdout)["router_id"] == "router-0"


def test_pages_of_metrics_are_fetched_past_it() -> None:
    with MetricsServer("127.0.0.1", 0, CollectorRegistry()) as server:
        url = f"http://{server.address}/metrics"
        with open_url(url, 30) as page:
            assert page.status == 200
        # So this can fail: `urlopen`'s own opener, made now, asks the proxy.
        with pytest.raises(URLError, match="refused"):
            build_opener().open(url)


async def test_without_our_options_the_proxy_is_asked(ring: Ring) -> None:
    """So the tests above can fail: gRPC does heed these variables."""
    async with grpc.aio.insecure_channel(ring.address.grpc_address) as channel:
        stub: Any = inference_pb2_grpc.StreamingInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetServerInfo(pb.GetServerInfoRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
