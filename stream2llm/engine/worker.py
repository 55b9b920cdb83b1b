"""The common part of prefill and decode workers: an engine behind a gRPC server.

A plain class, which Ray actors and tests can host. `start` builds everything in
order, `stop` ends it in reverse.
"""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2_grpc
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.registry import Collector

from stream2llm.api.errors import UnavailableError
from stream2llm.api.grpc_options import server_options
from stream2llm.api.loopback import is_loopback
from stream2llm.api.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from stream2llm.engine import listening, side_channel
from stream2llm.engine.cache_service import CacheService
from stream2llm.engine.vllm_engine import Engine
from stream2llm.engine.worker_metrics import GrammarMetrics, WorkerGauges
from stream2llm.engine.worker_sessions import WorkerSessions
from stream2llm.security.certificates import open_certificates
from stream2llm.security.grpc_access import RequireClusterToken
from stream2llm.security.tls import add_port, http_server_context
from stream2llm.security.tls_metrics import TlsMetrics
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.actor.loss import Loss
from stream2llm.serving.http.metrics_http import MetricsServer
from stream2llm.serving.mux.service import MultiplexService
from stream2llm.serving.observability.tracing import Tracing
from stream2llm.serving.rpc.health_servicer import HealthService
from stream2llm.serving.rpc.undecodable import RefuseUndecodable
from stream2llm.serving.settings.worker_spec import WorkerAddress, WorkerSpec, WorkerStatus
from stream2llm.serving.system.clock import SystemClock
from stream2llm.serving.system.gc_pauses import GcPauses
from stream2llm.serving.system.processes import own_origin

_log = logging.getLogger(__name__)

# By which a worker's health is asked for.
_SERVICE_NAME = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name
# Twice as long as vLLM's readers wait for an answer.
_SIDE_CHANNEL_LIMIT_S = 10.0
# Between two looks at the blocks that a draining worker still holds.
_HELD_BLOCKS_INTERVAL_S = 0.2


class EngineWorker(ABC):
    """One engine, its gRPC services and its metrics."""

    def __init__(self, spec: WorkerSpec, registry: CollectorRegistry = REGISTRY) -> None:
        self.spec = spec
        self.registry = registry
        self.certificates = open_certificates(spec.security.tls_files)
        self._guards = Guards(spec.security.auth, SystemClock())
        self.engine: Engine
        self.tracing: Tracing
        self._open = AsyncExitStack()
        self.sessions = WorkerSessions()
        self.grammars = GrammarMetrics(spec.role, registry)
        self._health = HealthService(("", _SERVICE_NAME))

    @abstractmethod
    async def start_engine(self) -> Engine:
        """Starts the role's engine."""

    async def start_more(self, stack: AsyncExitStack) -> None:  # noqa: B027
        """Starts the role's parts beside its engine; the stack ends them before the engine.

        Empty by default: only a prefill worker has such parts.
        """

    @property
    def policy(self) -> str:
        """The scheduling policy in force; empty for a role without policies."""
        return ""

    @property
    def policy_failure(self) -> str:
        """Why another policy than the chosen one is in force; empty while none has failed."""
        return ""

    @abstractmethod
    def add_services(self, server: grpc.aio.Server, multiplexed: MultiplexService) -> None:
        """Registers the role's services: those of a session with `multiplexed`, others with `server`."""

    async def start(self) -> WorkerAddress:
        """Starts all parts; returns when the engine is ready. On failure nothing is left."""
        # vLLM reads it when the engine's processes start. If the host is 0.0.0.0, the actor
        # has already set it to an address of the node.
        os.environ.setdefault("VLLM_NIXL_SIDE_CHANNEL_HOST", self.spec.host)
        if self.spec.side_channel_port:
            os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(self.spec.side_channel_port)
        try:
            return await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> WorkerAddress:
        self.engine = await self.start_engine()
        self._open.callback(self.engine.shutdown)
        await asyncio.to_thread(self._note_listeners)
        self._keep_running(self.engine.kill_when_hung())
        self.tracing = self._start_tracing()
        self._open.push_async_callback(self.tracing.close)
        await self.start_more(self._open)
        self._show(WorkerGauges(self.spec.role, self._read_status))
        if self.certificates is not None:
            self._show(TlsMetrics(self.certificates))
        self._show(self._guards.metrics)
        self._show(gc_pauses := GcPauses(SystemClock()))
        gc_pauses.watch()
        self._open.callback(gc_pauses.stop)
        metrics = self._open.enter_context(
            MetricsServer(
                self.spec.host,
                self.spec.metrics_port,
                self.registry,
                http_server_context(self.certificates),
                self._guards.of("metrics"),
            )
        )
        grpc_address = await self._start_grpc()
        info = self.engine.info
        return WorkerAddress(
            worker_id=self.spec.worker_id,
            role=self.spec.role,
            grpc_address=grpc_address,
            metrics_address=metrics.address,
            pids=self.engine.pids,
            max_model_len=info.max_model_len,
            num_kv_blocks=info.num_kv_blocks,
            block_size=info.block_size,
        )

    def _note_listeners(self) -> None:
        """Logs where the engine listens beyond loopback, and warns of what nothing told it."""
        host = os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"]
        if is_loopback(host):
            return
        devices = listening.device_addresses()
        try:
            listeners = listening.listening_sockets(self.engine.pids[1:])
        except psutil.AccessDenied as error:  # a hardened /proc
            _log.warning("engine_listeners_hidden worker_id=%s %s", self.spec.worker_id, error)
            return
        shown = [f"{at}:{port}" for at, port in listeners if not is_loopback(at)]
        _log.info("engine_listens worker_id=%s sockets=%s", self.spec.worker_id, shown)
        for stray in listening.strays(
            listeners, listening.told(host, os.environ, devices), devices
        ):
            _log.warning("engine_listens_elsewhere worker_id=%s %s", self.spec.worker_id, stray)

    def _keep_running(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it beside the worker, until that stops."""

        async def guarded() -> None:
            try:
                await work
            except Exception:  # a bug: the worker goes on without it
                _log.exception("worker_task_failed worker_id=%s", self.spec.worker_id)

        self._open.push_async_callback(cancel, asyncio.create_task(guarded()))

    def _start_tracing(self) -> Tracing:
        spec = self.spec
        origin = own_origin(spec.worker_id)
        options = spec.observability.tracing
        return Tracing(options, spec.role, origin, SystemClock(), self.registry)

    def _show(self, metrics: Collector) -> None:
        self.registry.register(metrics)
        self._open.callback(self.registry.unregister, metrics)

    async def _start_grpc(self) -> str:
        token = self.spec.cluster_token
        admit = [RequireClusterToken(self._guards.of("grpc"), token)] if token else []
        server = grpc.aio.server(
            interceptors=[*admit, RefuseUndecodable()],
            options=server_options(self.spec.max_message_bytes, for_peers=True),
        )
        multiplexed = MultiplexService(self.spec.max_message_bytes)
        self.add_services(server, multiplexed)
        worker_pb2_grpc.add_MultiplexServiceServicer_to_server(multiplexed, server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(_StatusService(self), server)
        engine = self.engine
        cache = CacheService(engine.stats.cache, engine.info.block_size, engine.hash_root)
        worker_pb2_grpc.add_CacheServiceServicer_to_server(cache, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        port = add_port(server, f"{self.spec.host}:0", self.certificates, for_peers=True)
        await server.start()
        self._open.push_async_callback(server.stop, None)
        self._health.set(is_serving=True)
        self._keep_running(self._not_serving_when_dead())
        return f"{self.spec.host}:{port}"

    async def _not_serving_when_dead(self) -> None:
        await self.engine.wait_dead()
        self._health.set(is_serving=False)

    @property
    def is_draining(self) -> bool:
        """Whether new sessions are refused."""
        return self.sessions.is_draining

    @contextmanager
    def session(self) -> Iterator[None]:
        """Counts a session while it lasts; refuses it when draining or dead."""
        self.require_open()
        with self.sessions.one():
            yield

    def require_open(self) -> None:
        """Raises UnavailableError when draining or dead."""
        self.sessions.require_open()
        if self.engine.is_dead:
            raise UnavailableError("the worker's engine died", reason="WORKER_LOST")

    async def connect_peers(self, prefill: tuple[WorkerAddress, ...]) -> None:  # noqa: B027
        """Prepares to read KV from these prefill workers.

        Empty by default: only a decode worker has peers, and overrides this.
        """

    async def examine(self) -> str:
        """Returns what keeps peers from connecting with this worker; "" if nothing is found.

        Its engine must be alive, and answer on its NIXL side channel.
        """
        if self.engine.is_dead:
            return "its engine is dead"
        if not self.spec.side_channel_port:
            return ""
        # The side channel's address; the worker's own host may be 0.0.0.0.
        host = os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"]
        port = self.spec.side_channel_port
        return await asyncio.to_thread(side_channel.ask, host, port, _SIDE_CHANNEL_LIMIT_S)

    async def wait_dead(self) -> Loss:
        """Returns why once the engine has died."""
        return await self.engine.wait_dead()

    async def status(self) -> WorkerStatus:
        """Returns the present load and memory."""
        return self._read_status()

    def _read_status(self) -> WorkerStatus:
        info = self.engine.info
        return WorkerStatus(
            num_sessions=self.sessions.num_open,
            num_kv_blocks=info.num_kv_blocks,
            num_kv_blocks_held=self.engine.stats.num_blocks_held(info.num_kv_blocks),
            block_size=info.block_size,
            pids=self.engine.pids,
            policy=self.policy,
            policy_failure=self.policy_failure,
            is_draining=self.is_draining,
            silent_s=self.engine.sign_of_life.silent_s,
            silence_limit_s=self.engine.sign_of_life.limit_s,
        )

    async def drain(self, timeout_s: float) -> None:
        """Refuses new sessions and waits for the open ones; after `timeout_s` ends the rest.

        Then waits, within the same time, for decode workers to read what was handed over.
        """
        clock = SystemClock()
        deadline_s = clock.monotonic_s() + timeout_s
        self._health.drain()
        await self.sessions.drain(timeout_s)
        # vLLM reports them with its steps, without an event.
        while self._holds_blocks and clock.monotonic_s() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(_HELD_BLOCKS_INTERVAL_S)

    @property
    def _holds_blocks(self) -> bool:
        return self._read_status().num_kv_blocks_held > 0

    async def stop(self) -> None:
        """Ends everything; no process of the engine is left. May be called again."""
        await self._open.aclose()


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits for its end."""
    task.cancel()
    await asyncio.wait([task])


class _StatusService(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, worker: EngineWorker) -> None:
        self._worker = worker

    async def GetWorkerStatus(  # noqa: N802 - gRPC names its methods so
        self, request: worker_pb2.GetWorkerStatusRequest, context: grpc.aio.ServicerContext
    ) -> worker_pb2.GetWorkerStatusResponse:
        """Returns the present load and memory."""
        status = await self._worker.status()
        info = inference_pb2.WorkerInfo(
            worker_id=self._worker.spec.worker_id,
            role=self._worker.spec.role,
            ready=not self._worker.engine.is_dead,
            num_sessions=status.num_sessions,
            num_kv_blocks_held=status.num_kv_blocks_held,
            num_kv_blocks=status.num_kv_blocks,
            block_size=status.block_size,
        )
        return worker_pb2.GetWorkerStatusResponse(worker=info)
