"""The gateway's composition root: builds everything in order, closes in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import uvicorn
from fastapi import APIRouter
from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from stream2llm.api.errors import UnavailableError
from stream2llm.api.tls import ClientTls
from stream2llm.client import AsyncClient
from stream2llm.gateway.answer_parsers import AnswerParsers
from stream2llm.gateway.app import GatewayParts, create_app
from stream2llm.gateway.connections import BoundedProtocol
from stream2llm.gateway.lanes.routes import LanesRoom, RoomLimits, lanes_routes
from stream2llm.gateway.metrics import GatewayMetrics
from stream2llm.gateway.middleware import BodyLimit, InFlight
from stream2llm.gateway.model_tokenizer import PromptTokenizer, SharedTokenizer
from stream2llm.gateway.routers import RouterClients
from stream2llm.gateway.vllm_parser import ParserNames
from stream2llm.security.certificates import open_certificates
from stream2llm.security.tls import http_server_context
from stream2llm.security.tls_metrics import TlsMetrics
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.actor.replica_status import GatewayStatus
from stream2llm.serving.settings.gateway_spec import GatewaySpec
from stream2llm.serving.settings.worker_spec import ClusterView
from stream2llm.serving.system.clock import Clock, SystemClock
from stream2llm.serving.system.gc_pauses import GcPauses

_logger = logging.getLogger(__name__)
_BACKLOG = 2048
# For requests that a drain has ended, to say so to their clients.
_CANCEL_GRACE_S = 5


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """A gateway that has started."""

    gateway_id: str
    # host:port
    http_address: str


class Gateway:
    """One gateway process, independent of Ray. Call `start` once and `stop` once."""

    def __init__(self, spec: GatewaySpec, clock: Clock | None = None, *more: APIRouter) -> None:
        """`more` are further routes of its application."""
        self.spec = spec
        clock = clock or SystemClock()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._gc_pauses = GcPauses(clock)
        self.registry.register(self._gc_pauses)
        self._certificates = open_certificates(spec.security.tls_files)
        if self._certificates is not None:
            self.registry.register(TlsMetrics(self._certificates))
        guards = Guards(spec.security.auth, clock)
        self.registry.register(guards.metrics)
        self._clients = RouterClients(self._client_of)
        tokenizer = SharedTokenizer(spec.model_path) if spec.model_path else None
        names = ParserNames(spec.tool_parser, spec.reasoning_parser)
        self._parsers = AnswerParsers(names, tokenizer)
        self._prompts = PromptTokenizer(tokenizer) if tokenizer else None
        guard = guards.of("gateway")
        parts = GatewayParts(
            self._clients, self._parsers, self._prompts, guard, self.registry, clock
        )
        metrics = GatewayMetrics(self.registry)
        self._lanes: LanesRoom | None = None
        if tokenizer is not None:
            self._lanes = room = LanesRoom(tokenizer, clock, RoomLimits.of(spec.limits))
            metrics.watch(lambda: room.num_connections, lambda: room.memory.num_chars)
            more = (*more, lanes_routes(room))
        app = create_app(parts, *more)
        if spec.web_folder is not None:
            app.mount("/web", StaticFiles(directory=spec.web_folder, html=True))
        limited = BodyLimit(app, spec.max_message_bytes)
        self._in_flight = InFlight(limited, metrics)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> GatewayAddress:
        """Listens; answers with 503 until a view has a router.

        Raises UnavailableError, or UnsupportedError for a parser that cannot be used.
        """
        await self._parsers.load()
        self._gc_pauses.watch()
        listener = self._bind()
        port = listener.getsockname()[1]
        tls = http_server_context(self._certificates)
        self._server = _Server(_settings(self._in_flight, tls, self.spec.max_message_bytes))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        address = f"{self.spec.host}:{port}"
        _logger.info("gateway_started gateway_id=%s address=%s", self.spec.gateway_id, address)
        return GatewayAddress(self.spec.gateway_id, address)

    def set_view(self, view: ClusterView) -> None:
        """Sets the routers that can be used now. Call it in the gateway's event loop."""
        self._clients.set_view(view)

    async def status(self) -> GatewayStatus:
        """Returns the status for operators."""
        return GatewayStatus(self._in_flight.num_requests, self._in_flight.is_draining)

    async def drain(self, timeout_s: float | None = None) -> None:
        """Refuses new requests and waits for those under way; `stop` ends the rest.

        They have `timeout_s`, without it `drain_timeout_s` of the configuration.
        """
        limit_s = self.spec.drain_timeout_s if timeout_s is None else timeout_s
        self._in_flight.is_draining = True
        if self._lanes is not None:
            self._lanes.drain()
        if not await self._in_flight.wait_empty(limit_s):
            num = self._in_flight.num_requests
            _logger.warning("drain_timed_out limit_s=%s requests=%d", limit_s, num)

    async def stop(self) -> None:
        """Ends what is under way, and frees everything."""
        self._gc_pauses.stop()
        self._in_flight.is_draining = True
        await self._clients.close()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            with suppress(asyncio.CancelledError):
                await self._serving
        if self._lanes is not None:
            await self._lanes.close()
        if self._prompts is not None:
            self._prompts.close()

    def _client_of(self, routers: tuple[str, ...]) -> AsyncClient:
        # Without credentials of its own: those of each request go with its call.
        return AsyncClient(
            routers,
            tls=self._tls(),
            api_key="",
            max_message_bytes=self.spec.max_message_bytes,
        )

    def _tls(self) -> ClientTls | None:
        tls = self.spec.security.tls
        if tls is None:
            return None
        return ClientTls(
            ca=tls.ca,
            certificate=self.spec.client_certificate,
            key=self.spec.client_key,
            server_name=tls.peer_name or "",
        )

    def _bind(self) -> socket.socket:
        host, port = self.spec.host, self.spec.port
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
            # Connections inherit it. asyncio sets it only where the socket names its protocol;
            # without it the second of two events waits 40 ms for the first one's acknowledgement.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return listener
        except OSError as error:
            raise UnavailableError(
                f"gateway {self.spec.gateway_id} cannot listen on {host}:{port}: the port is taken"
                " or the host is not ours (set gateway.port to another port, or to 0 for any free"
                " one)",
                reason="PORT_TAKEN",
            ) from error


def _settings(app: ASGIApp, tls: ssl.SSLContext | None, max_message_bytes: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        # The event loop runs already, and logs are set up.
        loop="none",
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        ws_max_size=max_message_bytes,
        lifespan="off",
        server_header=False,
        # Which peer it is decides whether a tenant's header counts: no header may change that.
        proxy_headers=False,
        timeout_graceful_shutdown=_CANCEL_GRACE_S,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the process that hosts the gateway."""
        yield
