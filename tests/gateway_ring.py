"""A real gateway in front of a ring: a real router with fake workers, all in one event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from fastapi import APIRouter

from stream2llm.api.tls import ClientTls
from stream2llm.gateway.server import Gateway
from stream2llm.serving.settings.gateway_spec import GatewayLimits, GatewaySpec
from stream2llm.serving.settings.worker_spec import ClusterView
from tests.router_ring import Ring, a_ring

# A bound against a hang, on machines that are busy too.
REQUEST_LIMIT_S = 60.0


class GatewayRing:
    """The gateway, the ring behind it, and how clients reach it."""

    def __init__(self, gateway: Gateway, address: str, ring: Ring, scheme: str = "http") -> None:
        self.gateway = gateway
        self.ring = ring
        self.url = f"{scheme}://{address}"
        self.base_url = f"{self.url}/v1"

    def show(self, *routers: str) -> None:
        """Gives the gateway a view with these routers and the ring's workers."""
        workers = tuple(worker.address for worker in self.ring.workers)
        self.gateway.set_view(ClusterView(self.ring.version, workers, routers=routers))

    def http(self, **options: Any) -> aiohttp.ClientSession:
        """A client whose paths begin at the gateway."""
        return aiohttp.ClientSession(
            self.url, timeout=aiohttp.ClientTimeout(REQUEST_LIMIT_S), **options
        )

    def metric(self, name: str, **labels: str) -> float | None:
        return self.gateway.registry.get_sample_value(name, labels)


@asynccontextmanager
async def a_gateway(
    model_path: Path,
    *more: APIRouter,
    max_message_bytes: int = 1 << 20,
    has_lanes: bool = True,
    web_folder: Path | None = None,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
    shown: ClientTls | None = None,
    limits: GatewayLimits | None = None,
    **options: Any,
) -> AsyncIterator[GatewayRing]:
    """Everything started, and everything gone afterwards; `options` are the ring's.

    `shown` has the certificate that the gateway shows to the router.
    """
    async with a_ring(model_path, **options) as ring:
        security = ring.router.spec.security
        spec = GatewaySpec(
            "gateway-0",
            "127.0.0.1",
            0,
            str(model_path) if has_lanes else "",
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
            web_folder=web_folder,
            max_message_bytes=max_message_bytes,
            limits=limits or GatewayLimits(),
            client_certificate=shown and Path(shown.certificate or ""),
            client_key=shown and Path(shown.key or ""),
            security=security,
        )
        gateway = Gateway(spec, None, *more)
        address = (await gateway.start()).http_address
        try:
            found = GatewayRing(gateway, address, ring, "http" if security.tls is None else "https")
            found.show(ring.address.grpc_address)
            yield found
        finally:
            await gateway.stop()
