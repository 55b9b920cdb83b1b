"""A controller's HTTP server without a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry

from stream2llm.cluster.controller_http import ControllerHttp
from stream2llm.cluster.prefill_policy import PolicyChoice, PrefillPolicy
from stream2llm.security.certificates import CertificateStore
from stream2llm.security.tls import http_server_context
from tests.fakes.prefill_policy import FakeHosts


def controller_http(
    status: Callable[[], dict[str, Any]] = dict,
    *,
    registry: CollectorRegistry | None = None,
    policy: PrefillPolicy | None = None,
    store: CertificateStore | None = None,
    **options: Any,
) -> ControllerHttp:
    """The server of a cluster without prefill workers, unless `policy` has some.

    `options` are further ones of ControllerHttp.
    """
    defaults = {
        "registry": registry or CollectorRegistry(),
        "targets": list,
        "policy": policy or PrefillPolicy(PolicyChoice("fcfs"), FakeHosts({}), list),
        "tls": http_server_context(store),
    }
    return ControllerHttp(status=status, **defaults | options)


@asynccontextmanager
async def a_controller(
    status: Callable[[], dict[str, Any]] = dict, **options: Any
) -> AsyncIterator[str]:
    """The address of one that serves; `options` as `controller_http` takes them."""
    http = controller_http(status, **options)
    try:
        yield await http.start("127.0.0.1", 0)
    finally:
        await http.close()


async def put(address: str, path: str, body: bytes) -> tuple[int, Any]:
    """The status and the JSON of the answer to a PUT."""
    async with aiohttp.request("PUT", f"http://{address}{path}", data=body) as answer:
        return answer.status, await answer.json()
