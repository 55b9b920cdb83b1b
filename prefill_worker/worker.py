"""A prefill worker: the composition root of its parts."""

from __future__ import annotations

import grpc

from prefill_worker.engine import start_prefill_engine
from prefill_worker.service import PrefillService
from stream2llm.engine_stats import EngineStats
from stream2llm.engine_worker import EngineWorker
from stream2llm.v1 import worker_pb2_grpc
from stream2llm.vllm_engine import Engine


class Worker(EngineWorker):
    """Prefills streaming sessions and hands their KV over."""

    async def start_engine(self) -> Engine:
        """vLLM with our scheduler."""
        return await start_prefill_engine(self.spec, EngineStats())

    def add_services(self, server: grpc.aio.Server) -> None:
        """`PrefillService`."""
        service = PrefillService(self)
        worker_pb2_grpc.add_PrefillServiceServicer_to_server(service, server)
