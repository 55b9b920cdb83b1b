"""The common part of prefill and decode workers: an engine behind a gRPC server.

A plain class, which Ray actors and tests can host. `start` builds everything in
order, `stop` ends it in reverse.
"""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import grpc
from prometheus_client import REGISTRY, CollectorRegistry

from stream2llm.api.errors import UnavailableError
from stream2llm.api.grpc_options import server_options
from stream2llm.api.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from stream2llm.engine import side_channel
from stream2llm.engine.vllm_engine import Engine
from stream2llm.engine.worker_metrics import WorkerGauges
from stream2llm.serving.metrics_http import MetricsServer
from stream2llm.serving.undecodable import RefuseUndecodable
from stream2llm.serving.worker_spec import WorkerAddress, WorkerSpec, WorkerStatus

_log = logging.getLogger(__name__)

# Twice as long as vLLM's readers wait for an answer.
_SIDE_CHANNEL_LIMIT_S = 10.0


class EngineWorker(ABC):
    """One engine, its gRPC services and its metrics."""

    def __init__(self, spec: WorkerSpec, registry: CollectorRegistry = REGISTRY) -> None:
        self.spec = spec
        self.registry = registry
        self.engine: Engine
        self._open = AsyncExitStack()
        self._num_sessions = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

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

    @abstractmethod
    def add_services(self, server: grpc.aio.Server) -> None:
        """Registers the role's services."""

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
        await self.start_more(self._open)
        gauges = WorkerGauges(self.spec.role, self._read_status)
        self.registry.register(gauges)
        self._open.callback(self.registry.unregister, gauges)
        metrics = self._open.enter_context(
            MetricsServer(self.spec.host, self.spec.metrics_port, self.registry)
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

    async def _start_grpc(self) -> str:
        server = grpc.aio.server(
            interceptors=[RefuseUndecodable()],
            options=server_options(self.spec.max_message_bytes),
        )
        self.add_services(server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(_StatusService(self), server)
        port = server.add_insecure_port(f"{self.spec.host}:0")
        await server.start()
        self._open.push_async_callback(server.stop, None)
        return f"{self.spec.host}:{port}"

    @property
    def is_draining(self) -> bool:
        """Whether new sessions are refused."""
        return self._draining

    @contextmanager
    def session(self) -> Iterator[None]:
        """Counts a session while it lasts; refuses it when draining or dead."""
        self.require_open()
        self._num_sessions += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_sessions -= 1
            if not self._num_sessions:
                self._idle.set()

    def require_open(self) -> None:
        """Raises UnavailableError when draining or dead."""
        if self._draining:
            raise UnavailableError("the worker is draining", reason="DRAINING")
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

    async def wait_dead(self) -> str:
        """Returns the reason once the engine has died."""
        return await self.engine.wait_dead()

    async def status(self) -> WorkerStatus:
        """Returns the present load and memory."""
        return self._read_status()

    def _read_status(self) -> WorkerStatus:
        info = self.engine.info
        return WorkerStatus(
            num_sessions=self._num_sessions,
            num_kv_blocks=info.num_kv_blocks,
            num_kv_blocks_held=self.engine.stats.num_blocks_held(info.num_kv_blocks),
            block_size=info.block_size,
            pids=self.engine.pids,
            policy=self.policy,
        )

    async def drain(self, timeout_s: float) -> None:
        """Refuses new sessions and waits for the open ones, up to `timeout_s`."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            _log.warning("%s sessions did not end while draining", self._num_sessions)

    async def stop(self) -> None:
        """Ends everything; no process of the engine is left. May be called again."""
        await self._open.aclose()


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
