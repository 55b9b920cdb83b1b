"""A decode worker: the composition root of its parts."""

from __future__ import annotations

import asyncio

import grpc
from prometheus_client import REGISTRY, CollectorRegistry

from decode_worker import peers
from decode_worker.answer_order import AnswerOrder
from decode_worker.engine import start_decode_engine
from decode_worker.fetch_metrics import FetchMetrics
from decode_worker.fetch_sessions import FetchSessions
from decode_worker.handover_check import KnownEngines
from decode_worker.service import DecodeService
from stream2llm.api.v1 import worker_pb2_grpc
from stream2llm.engine.answer_metrics import AnswerMetrics
from stream2llm.engine.stats import EngineStats
from stream2llm.engine.vllm_engine import Engine
from stream2llm.engine.worker import EngineWorker
from stream2llm.engine.worker_metrics import TransferMetrics
from stream2llm.security.tls import PeerChannels
from stream2llm.serving.mux.service import MultiplexService
from stream2llm.serving.settings.worker_spec import WorkerAddress, WorkerSpec
from stream2llm.serving.system.clock import SystemClock


class Worker(EngineWorker):
    """Reads KV from prefill workers and continues answers."""

    def __init__(self, spec: WorkerSpec, registry: CollectorRegistry = REGISTRY) -> None:
        super().__init__(spec, registry)
        self._known = KnownEngines()

    async def start_engine(self) -> Engine:
        """Starts vLLM as a KV consumer over NIXL."""
        self._metrics = TransferMetrics(self.registry)
        self._fetch_metrics = FetchMetrics(self.registry)
        stats = EngineStats(self._metrics.record_read, self._fetch_metrics.reads_ended)
        return await start_decode_engine(self.spec, stats)

    def add_services(self, server: grpc.aio.Server, multiplexed: MultiplexService) -> None:
        """Adds `DecodeService` and `HandoverService`."""
        fetches = FetchSessions(self.engine, self._fetch_metrics, SystemClock())
        order = AnswerOrder(self.spec.security.tenants)
        self._show(AnswerMetrics(order.uses))
        service = DecodeService(self, self._metrics, fetches, self._known, order)
        worker_pb2_grpc.add_DecodeServiceServicer_to_server(service, multiplexed)
        worker_pb2_grpc.add_HandoverServiceServicer_to_server(service, server)

    async def connect_peers(self, prefill: tuple[WorkerAddress, ...]) -> None:
        """Exchanges NIXL metadata with these prefill workers concurrently."""
        spec = self.spec
        channels = PeerChannels(
            self.certificates, spec.max_message_bytes, spec.security.peer_name, spec.cluster_token
        )
        connects = (peers.connect(self.engine, self._known, peer, channels) for peer in prefill)
        await asyncio.gather(*connects)
