"""The health service of real routers: by `stream2llm ready`, and by clients of several of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread
from typing import Any

from typer.testing import Result

from stream2llm.api.grpc_options import SERVICE_NAME, client_channel_options
from stream2llm.api.v1 import inference_pb2
from stream2llm.cli.exits import UNAVAILABLE
from stream2llm.client import AsyncClient
from stream2llm.serving.system.ports import pick_port
from tests.command_lines import cli
from tests.polling import eventually
from tests.router_ring import Ring
from tests.tls_files import Authority


async def ready(address: str, *options: str) -> Result:
    words = ["ready", "--address", address, "--timeout", "20", *options]
    return await asyncio.to_thread(cli, *words)


async def test_a_router_with_workers_is_ready_until_it_drains(ring: Ring) -> None:
    address = ring.address.grpc_address
    assert (await ready(address)).exit_code == 0
    await ring.router.drain()
    ended = await ready(address, "--absent-ok")
    assert ended.exit_code == UNAVAILABLE
    assert "not serving" in ended.output


async def test_with_tls_the_authority_and_the_name_are_needed(
    make_ring: Callable[..., Any], tmp_path: Path
) -> None:
    security = Authority().security(tmp_path)
    ring = await make_ring(security=security)
    trusted = ["--tls-ca", str(security.tls.ca)]
    address = ring.address.grpc_address
    assert (await ready(address, *trusted)).exit_code == 0
    for words in ([], [*trusted, "--tls-server-name", "another"]):
        ended = await ready(address, *words, "--absent-ok")
        assert (ended.exit_code, ended.output) == (UNAVAILABLE, f"{address}: no answer\n")


async def test_where_nothing_listens_no_router_is_ready_unless_that_is_allowed() -> None:
    address = f"127.0.0.1:{pick_port('127.0.0.1', 'absent')}"
    ended = await ready(address)
    assert (ended.exit_code, ended.output) == (UNAVAILABLE, f"{address}: nothing listens there\n")
    assert (await ready(address, "--absent-ok")).exit_code == 0


async def test_a_listener_that_is_no_router_is_not_ready() -> None:
    # Not asyncio's server: what it has accepted when its loop ends stays open.
    with TCPServer(("127.0.0.1", 0), BaseRequestHandler) as hangs_up:
        serving = Thread(target=hangs_up.serve_forever)
        serving.start()
        try:
            address = f"127.0.0.1:{hangs_up.server_address[1]}"
            ended = await ready(address, "--absent-ok")
        finally:
            hangs_up.shutdown()
            serving.join()
    assert (ended.exit_code, ended.output) == (UNAVAILABLE, f"{address}: no answer\n")


async def test_a_client_of_several_routers_takes_them_in_turn_and_leaves_one_that_drains(
    make_ring: Callable[..., Any],
) -> None:
    one, other = await make_ring(num_decode=1), await make_ring(num_decode=2)
    target = f"ipv4:{one.address.grpc_address},{other.address.grpc_address}"
    async with AsyncClient(target) as client:

        async def who_answers() -> set[int]:
            """Routers, by the number of their workers."""
            return {len((await client.server_info()).workers) for _ in range(4)}

        await eventually(who_answers, lambda found: found == {2, 3})
        await one.router.drain()
        await eventually(who_answers, lambda found: found == {3})


def test_one_address_is_not_balanced_and_its_router_says_itself_why_it_does_not_serve() -> None:
    named = {name for name, _ in client_channel_options("router:50051", 1)}
    several = {name for name, _ in client_channel_options("dns:///routers:50051", 1)}
    assert several - named == {"grpc.service_config"}


def test_the_name_is_that_of_the_service() -> None:
    (service,) = inference_pb2.DESCRIPTOR.services_by_name.values()
    assert service.full_name == SERVICE_NAME
