"""A worker process of the simulation: a model engine behind a server on the virtual network."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from stream2llm.api.v1 import inference_pb2, worker_pb2_grpc
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.engine.worker_sessions import WorkerSessions
from stream2llm.serving.mux.service import MultiplexService
from stream2llm.serving.settings.worker_spec import Role, WorkerAddress, WorkerStatus
from tests.fake_workers import MAX_MODEL_LEN
from tests.simulation.answers import AnswerMemory
from tests.simulation.decode import ModelDecode
from tests.simulation.engine import Engine
from tests.simulation.kv import BLOCK_TOKENS
from tests.simulation.network import Network
from tests.simulation.planned import PlannedSteps
from tests.simulation.prefill import ModelPrefill
from tests.simulation.process import Process
from tests.simulation.server import Server

_MAX_MESSAGE_BYTES = 1 << 24


class CountedStreams(MultiplexService):
    """Serves the streams of routers, and says how many there are."""

    num_streams = 0

    async def Connect(self, requests: Any, context: Any) -> None:  # noqa: N802
        self.num_streams += 1
        try:
            await super().Connect(requests, context)
        finally:
            self.num_streams -= 1


class _UntoldCache(worker_pb2_grpc.CacheServiceServicer):
    """As of a worker that does not know the service."""

    async def WatchCache(self, request: Any, context: Any) -> None:  # noqa: N802
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")


class ModelWorker(worker_pb2_grpc.WorkerServiceServicer):
    """One worker, from its start to its death."""

    def __init__(
        self, name: str, role: Role, engine: Engine, num_blocks: int, *, is_bounded: bool
    ) -> None:
        """`is_bounded`: its sessions take blocks from each other, and wait for them."""
        self.name = name
        self.role = role
        self.engine = engine
        self.num_blocks = num_blocks
        self.sessions = WorkerSessions()
        self.streams = CountedStreams(_MAX_MESSAGE_BYTES)
        has_plan, has_answers = is_bounded and role == "prefill", is_bounded and role == "decode"
        self.planned = PlannedSteps(engine, num_blocks) if has_plan else None
        self.answers = AnswerMemory(num_blocks) if has_answers else None
        # Refuses answers that another worker may take.
        self.is_full = False
        self.address: WorkerAddress

    @property
    def process(self) -> Process:
        return self.engine.process

    async def start(self, network: Network, node: str) -> WorkerAddress:
        """Serves on a node."""
        server: Any = Server(network, self.process)
        multiplexed: Any = self.streams
        if self.role == "prefill":
            prefill = ModelPrefill(self.engine, self.sessions, self.planned)
            worker_pb2_grpc.add_PrefillServiceServicer_to_server(prefill, multiplexed)
        else:
            decode = ModelDecode(self.engine, self.sessions, lambda: self.is_full, self.answers)
            worker_pb2_grpc.add_DecodeServiceServicer_to_server(decode, multiplexed)
            worker_pb2_grpc.add_HandoverServiceServicer_to_server(decode, server)
        worker_pb2_grpc.add_MultiplexServiceServicer_to_server(multiplexed, server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, server)
        worker_pb2_grpc.add_CacheServiceServicer_to_server(_UntoldCache(), server)
        port = server.add_insecure_port(f"{node}:0")
        await server.start()
        if self.planned is not None:
            self.process.spawn(self.planned.run())
        self.address = WorkerAddress(
            worker_id=self.name,
            role=self.role,
            grpc_address=f"{node}:{port}",
            metrics_address=f"{self.name}:metrics",
            pids=(port,),
            max_model_len=MAX_MODEL_LEN,
            num_kv_blocks=self.num_blocks,
            block_size=BLOCK_TOKENS,
        )
        return self.address

    async def GetWorkerStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        info = inference_pb2.WorkerInfo(
            worker_id=self.name, role=self.role, ready=not self.engine.is_dead
        )
        return pb.GetWorkerStatusResponse(worker=info)

    async def status(self) -> WorkerStatus:
        """For the controller."""
        num_held = self.engine.memory.num_blocks_held
        return WorkerStatus(
            num_sessions=self.sessions.num_open,
            num_kv_blocks=self.num_blocks,
            num_kv_blocks_held=num_held,
            block_size=BLOCK_TOKENS,
            pids=self.address.pids,
            is_draining=self.sessions.is_draining,
        )

    async def drain(self, timeout_s: float) -> None:
        """Refuses sessions, and waits for the open ones and for what was handed over."""
        loop = asyncio.get_running_loop()
        by_s = loop.time() + timeout_s
        await self.sessions.drain(timeout_s)
        while self.engine.memory.num_blocks_held and loop.time() < by_s:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
