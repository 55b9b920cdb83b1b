"""/health of real gateways, by `stream2llm ready --gateway`, as probes of pods ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result

from stream2llm.cli.exits import UNAVAILABLE
from stream2llm.serving.system.ports import pick_port
from tests.command_lines import cli
from tests.gateway_ring import GatewayRing
from tests.tls_files import Authority


async def ready(url: str, *options: str) -> Result:
    address = url.partition("://")[2]
    words = ["ready", "--gateway", "--address", address, "--timeout", "20", *options]
    return await asyncio.to_thread(cli, *words)


async def test_a_gateway_is_ready_while_it_has_routers(gateway: GatewayRing) -> None:
    assert (await ready(gateway.url)).exit_code == 0
    gateway.show()
    ended = await ready(gateway.url, "--absent-ok")
    assert ended.exit_code == UNAVAILABLE
    assert ": not serving" in ended.output


async def test_with_tls_the_authority_and_the_name_are_needed(
    make_gateway: Callable[..., Any], tmp_path: Path
) -> None:
    security = Authority().security(tmp_path)
    gateway = await make_gateway(security=security)
    trusted = ["--tls-ca", str(security.tls.ca)]
    assert (await ready(gateway.url, *trusted)).exit_code == 0
    for words in ([], [*trusted, "--tls-server-name", "another"]):
        ended = await ready(gateway.url, *words, "--absent-ok")
        assert ended.exit_code == UNAVAILABLE
        assert ended.output.endswith(": no answer\n")


async def test_where_nothing_listens_no_gateway_is_ready_unless_that_is_allowed() -> None:
    url = f"http://127.0.0.1:{pick_port('127.0.0.1', 'absent')}"
    ended = await ready(url)
    assert ended.exit_code == UNAVAILABLE
    assert ended.output.endswith(": nothing listens there\n")
    assert (await ready(url, "--absent-ok")).exit_code == 0
