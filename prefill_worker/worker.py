"""A prefill or mixed worker: the composition root of its parts."""

from __future__ import annotations

from contextlib import AsyncExitStack

import grpc
from prometheus_client import REGISTRY, CollectorRegistry

from prefill_worker.control import ControlChannel, open_control_channel
from prefill_worker.engine import start_prefill_engine
from prefill_worker.metrics import PrefillMetrics
from prefill_worker.service import PrefillService
from stream2llm.api.v1 import worker_pb2_grpc
from stream2llm.engine.answer_metrics import AnswerMetrics
from stream2llm.engine.stats import EngineStats
from stream2llm.engine.vllm_engine import Engine
from stream2llm.engine.worker import EngineWorker
from stream2llm.serving.mux.service import MultiplexService
from stream2llm.serving.sessions.answer_use import AnswerUses
from stream2llm.serving.settings.worker_spec import WorkerSpec


class Worker(EngineWorker):
    """Prefills streaming sessions; hands over their KV, or, as a mixed worker, answers them."""

    def __init__(self, spec: WorkerSpec, registry: CollectorRegistry = REGISTRY) -> None:
        super().__init__(spec, registry)
        self._import_paths = spec.options.prefill.import_paths
        self._metrics = PrefillMetrics(registry, self._import_paths, spec.role)
        self._control: ControlChannel

    async def start_engine(self) -> Engine:
        """Starts vLLM with our scheduler."""
        return await start_prefill_engine(self.spec, EngineStats())

    async def start_more(self, stack: AsyncExitStack) -> None:
        """Opens the control channel to the scheduler."""
        channel = open_control_channel(
            self.engine, self._metrics.record, import_paths=self._import_paths
        )
        self._control = await stack.enter_async_context(channel)

    def add_services(self, server: grpc.aio.Server, multiplexed: MultiplexService) -> None:
        """Adds `PrefillService`."""
        uses = AnswerUses(self.spec.security.tenants)
        if self.spec.role == "mixed":
            self._show(AnswerMetrics(uses))
        service = PrefillService(self, uses)
        worker_pb2_grpc.add_PrefillServiceServicer_to_server(service, multiplexed)

    @property
    def policy(self) -> str:
        """The policy in the scheduler's newest report."""
        return self._control.newest_report.policy

    @property
    def policy_failure(self) -> str:
        """What the policy raised that the scheduler does not follow any more; "" for nothing."""
        return self._control.newest_report.policy_failure

    async def set_policy(self, policy: str) -> None:
        """Sets the scheduler's policy; returns when it follows. Sessions continue."""
        await self._control.set_policy(policy)
