"""The router's composition root: builds everything in order, closes in reverse."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, ProcessCollector

from router.background import Background
from router.detokenizer import Detokenizers
from router.message_limit import MessageLimit, grpc_limit
from router.metrics import RouterMetrics
from router.quotas import RouterPart
from router.router_parts import RouterParts
from router.service import LIMITED_METHODS, SCOPES, StreamingInferenceServicer
from router.sessions import OpenSessions
from router.text_input import TextInput
from router.tokenizer import ModelTokenizer
from router.workers import WorkerPool
from stream2llm.api.errors import UnavailableError
from stream2llm.api.grpc_options import SERVICE_NAME, server_options
from stream2llm.api.v1 import inference_pb2_grpc
from stream2llm.security.certificates import open_certificates
from stream2llm.security.grpc_access import Authenticate
from stream2llm.security.tls import PeerChannels, add_port, http_server_context
from stream2llm.security.tls_metrics import TlsMetrics
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.actor.replica_status import RouterStatus
from stream2llm.serving.http.metrics_http import MetricsServer
from stream2llm.serving.observability.tracing import Tracing
from stream2llm.serving.rpc.health_servicer import HealthService
from stream2llm.serving.rpc.undecodable import RefuseUndecodable
from stream2llm.serving.settings.router_spec import RouterSpec
from stream2llm.serving.settings.worker_spec import ClusterView
from stream2llm.serving.system.clock import Clock, SystemClock
from stream2llm.serving.system.gc_pauses import GcPauses
from stream2llm.serving.system.loop_lag import LoopLag
from stream2llm.serving.system.processes import own_origin

_logger = logging.getLogger(__name__)
# For work that outlives its session: releases of hand-overs.
_BACKGROUND_GRACE_S = 5.0
_CANCEL_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """A router that has started."""

    router_id: str
    # host:port
    grpc_address: str
    metrics_address: str


class Router:
    """One router process, independent of Ray. Call `start` once and `stop` once."""

    def __init__(
        self,
        spec: RouterSpec,
        clock: Clock | None = None,
        serve_metrics: Callable[..., MetricsServer] = MetricsServer,
        new_server: Callable[..., Any] = grpc.aio.server,
        channels: PeerChannels | None = None,
        tokenizer: ModelTokenizer | None = None,
    ) -> None:
        """Without `channels` and `tokenizer` they are made as the spec says.

        `new_server` takes the arguments of `grpc.aio.server`.
        """
        self.spec = spec
        self._new_server = new_server
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        clock = clock or SystemClock()
        self._loop_lag = LoopLag(self.registry, clock)
        self._gc_pauses = GcPauses(clock)
        self.registry.register(self._gc_pauses)
        metrics = RouterMetrics(self.registry, spec.model_name, spec.security.tenants)
        self._certificates = open_certificates(spec.security.tls_files)
        if self._certificates is not None:
            self.registry.register(TlsMetrics(self._certificates))
        self._guards = Guards(spec.security.auth, clock)
        self.registry.register(self._guards.metrics)
        tokenizer = tokenizer or ModelTokenizer(spec.model_path)
        self._background = Background()
        self._parts = RouterParts(
            spec=spec,
            text=TextInput(tokenizer, spec.max_model_len),
            detokenizers=Detokenizers(tokenizer.backend),
            workers=WorkerPool(
                channels
                or PeerChannels(
                    self._certificates,
                    spec.limits.max_message_bytes,
                    spec.security.peer_name,
                    spec.cluster_token,
                ),
                self._background,
                clock=clock,
                cache_metrics=metrics.caches,
            ),
            sessions=OpenSessions(
                spec.limits,
                metrics,
                clock,
                spec.security.tenants,
                RouterPart(spec.router_index, spec.num_routers),
            ),
            metrics=metrics,
            clock=clock,
            tracing=Tracing(
                spec.observability.tracing,
                "router",
                own_origin(spec.router_id),
                clock,
                self.registry,
            ),
        )
        self._health = HealthService(("", SERVICE_NAME))
        self._server: Any = None
        self._serve_metrics = serve_metrics
        self._metrics_server: MetricsServer | None = None

    async def start(self) -> RouterAddress:
        """Listens; not serving until a view has workers of both roles."""
        self._metrics_server = self._serve_metrics(
            self.spec.host,
            self.spec.metrics_port,
            self.registry,
            http_server_context(self._certificates),
            self._guards.of("metrics"),
        )
        self._gc_pauses.watch()
        try:
            port = await self._start_grpc()
        except BaseException:
            self._gc_pauses.stop()
            self._metrics_server.close()
            raise
        address = f"{self.spec.host}:{port}"
        _logger.info("router_started router_id=%s address=%s", self.spec.router_id, address)
        return RouterAddress(self.spec.router_id, address, self._metrics_server.address)

    async def watch_loop(self) -> None:
        """Measures how late the router's event loop is, until it is cancelled."""
        await self._loop_lag.watch()

    def set_view(self, view: ClusterView) -> None:
        """Sets the workers that are ready now. Call it in the router's event loop."""
        self._parts.workers.set_view(view)
        self._show_health()

    async def status(self) -> RouterStatus:
        """Returns the status for operators."""
        sessions = self._parts.sessions
        return RouterStatus(
            router_id=self.spec.router_id,
            sessions_by_phase=sessions.by_phase(),
            tenants=sessions.by_tenant(),
            is_draining=sessions.is_draining,
        )

    async def drain(self, timeout_s: float | None = None) -> None:
        """Stops admission and waits for the open sessions; then ends the rest (`DRAINING`).

        They have `timeout_s`, without it `drain_timeout_s` of the configuration.
        """
        sessions = self._parts.sessions
        limit_s = self.spec.drain_timeout_s if timeout_s is None else timeout_s
        sessions.refuse_new()
        self._health.drain()
        if await sessions.wait_empty(limit_s):
            return
        _logger.warning("drain_timed_out limit_s=%s sessions=%s", limit_s, sessions.by_phase())
        sessions.end_all(
            UnavailableError(
                f"the router is draining, and the {limit_s:g} s that open sessions had are over",
                reason="DRAINING",
            )
        )
        await sessions.wait_empty(_CANCEL_GRACE_S)

    async def stop(self) -> None:
        """Cancels what is open and frees everything."""
        self._gc_pauses.stop()
        self._parts.sessions.refuse_new()
        if self._server is not None:
            await self._server.stop(None)
        # Cancelled sessions still have to end their worker RPCs and release hand-overs.
        await self._parts.sessions.wait_empty(_CANCEL_GRACE_S)
        self._parts.workers.stop_tasks()
        await self._background.close(_BACKGROUND_GRACE_S)
        await self._parts.workers.close()
        self._parts.text.close()
        await self._parts.tracing.close()
        if self._metrics_server is not None:  # its thread may take half a second
            await asyncio.to_thread(self._metrics_server.close)

    async def _start_grpc(self) -> int:
        limit_bytes = self.spec.limits.max_message_bytes
        servicer = StreamingInferenceServicer(self._parts)
        refuse_undecodable = RefuseUndecodable(servicer.refusals.turned_away)
        self._server = self._new_server(
            interceptors=[
                Authenticate(self._guards.of("grpc"), SCOPES),
                refuse_undecodable,
                MessageLimit(limit_bytes, LIMITED_METHODS),
            ],
            options=server_options(grpc_limit(limit_bytes)),
        )
        inference_pb2_grpc.add_StreamingInferenceServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._show_health()
        port = self._bind()
        await self._server.start()
        return port

    def _bind(self) -> int:
        address = f"{self.spec.host}:{self.spec.port}"
        try:
            return add_port(self._server, address, self._certificates, for_peers=False)
        except RuntimeError as error:
            raise UnavailableError(
                f"router {self.spec.router_id} cannot listen on {address}: the port is taken"
                " or the host is not ours (set router.port to another port, or to 0 for any"
                " free one)",
                reason="PORT_TAKEN",
            ) from error

    def _show_health(self) -> None:
        self._health.set(is_serving=self._parts.workers.can_answer)
