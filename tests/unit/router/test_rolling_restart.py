"""A cluster whose routers and workers are all replaced while it serves: no session fails.

The production supervisor, rolling restart and routers, over gRPC, with workers without engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from router.server import Router
from stream2llm.api.errors import UnavailableError
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import inference_pb2_grpc
from stream2llm.cluster import rollout as ro
from stream2llm.cluster import supervision as sv
from stream2llm.cluster.rolling_restart import RollingRestart
from stream2llm.cluster.supervisor import Settings, Supervisor
from stream2llm.serving.settings.launch import RouterStarted, StartOutcome
from stream2llm.serving.settings.router_spec import RouterLimits, RouterSpec
from stream2llm.serving.settings.worker_spec import ClusterView, WorkerAddress
from tests.fake_workers import MAX_MODEL_LEN, Brain, FakeWorker
from tests.router_ring import Conversation, NoMetricsServer, as_document
from tests.unit.control.test_rollout import changed

NUM_CLIENTS = 8
NUM_DOCUMENTS = 4
NUM_TOKENS = 12
# Time for a session that does not leave; far above what one takes.
DRAIN_S = 60.0
LIMIT_S = 120.0


class Processes:
    """What Ray's actors are elsewhere: routers and workers, in this event loop."""

    def __init__(self, model_path: Path, brain: Brain) -> None:
        self._model_path = model_path
        self._brain = brain
        self.now: dict[str, Any] = {}

    async def create(
        self, name: str, incarnation: int, waits: Callable[[str], None]
    ) -> StartOutcome:
        role = name.split("-")[0]
        if role == "router":
            return await self._create_router(name)
        assert role in ("prefill", "decode")
        worker = self.now[name] = FakeWorker(name, role, self._brain)
        worker.prefill.offers_blocks_of = 2
        return StartOutcome(await worker.start(pid=incarnation))

    async def _create_router(self, name: str) -> StartOutcome:
        spec = RouterSpec(
            router_id=name, host="127.0.0.1", port=0, metrics_port=0, model_name="tiny",
            model_path=str(self._model_path), max_model_len=MAX_MODEL_LEN, handover="streamed",
            drain_timeout_s=DRAIN_S, limits=RouterLimits(input_idle_timeout_s=LIMIT_S),
        )  # fmt: skip
        router = self.now[name] = Router(spec, serve_metrics=NoMetricsServer)
        address = await router.start()
        return StartOutcome(RouterStarted(name, "router", address.grpc_address, "", ()))

    async def wait_dead(self, name: str) -> str:
        return await asyncio.Future[str]()

    async def connect(self, decode: str, prefill: WorkerAddress) -> None:
        pass

    async def examine(self, name: str) -> str:
        return ""

    async def status(self, name: str) -> Any:
        return None

    async def push_view(self, router: str, view: ClusterView) -> None:
        self.now[router].set_view(view)

    async def leaving(self) -> tuple[str, ...]:
        return ()

    async def drain(self, name: str, timeout_s: float) -> None:
        await self.now[name].drain(timeout_s)

    async def stop(self, name: str) -> None:
        process = self.now[name]
        await (process.stop() if isinstance(process, Router) else process.kill())

    async def clean(self, name: str) -> None:
        del self.now[name]

    async def missing_room(self, name: str) -> str:
        return ""


@dataclass
class Load:
    """Clients that have one session after the other, until they are to stop.

    Those of the odd ones that begin before the routers' turns stay open until then.
    """

    supervisor: Supervisor
    restart: RollingRestart
    hosts: Processes
    brain: Brain
    is_over: bool = False
    num_sessions: int = 0
    num_opened: int = 0
    num_moved: int = 0
    routers: set[str] = field(default_factory=set)

    async def client(self, number: int) -> None:
        while not self.is_over:
            name = f"client {number} session {self.num_sessions}"
            await self._session(name, is_long=number % 2 == 1)

    async def _session(self, name: str, *, is_long: bool) -> None:
        """Tries the next router where one refuses it at the door, and fails with anything else."""
        for router, address in self._routers():
            async with grpc.aio.insecure_channel(address) as channel:
                try:
                    await self._converse(channel, name, is_long=is_long)
                except grpc.aio.AioRpcError as error:
                    if not _is_refused(error):
                        raise
                else:
                    self.routers.add(f"{router} {self.supervisor.fleet[router].incarnation}")
                    return

    def _routers(self) -> list[tuple[str, str]]:
        """Those that are ready, the one with the fewest sessions first."""
        ready = [
            name
            for name, replica in self.supervisor.fleet.items()
            if replica.role == "router" and replica.phase is sv.Phase.ADMITTED
        ]
        addresses = self.supervisor.addresses
        at = self.num_sessions % max(len(ready), 1)
        return [(name, addresses[name].grpc_address) for name in ready[at:] + ready[:at]]

    async def _until_workers_are_replaced(self) -> None:
        """Returns at the turn of the first router, which would wait for the session."""
        while not self.is_over:
            rollout = self.restart.rollout
            if rollout is not None and rollout.turn.startswith("router"):
                return
            await changed(self.supervisor)

    async def _converse(self, channel: Any, name: str, *, is_long: bool) -> None:
        texts = [f"{name} text {number}" for number in range(NUM_DOCUMENTS)]
        session = Conversation(inference_pb2_grpc.StreamingInferenceServiceStub(channel))
        sampling = pb.SamplingParameters(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        await session.open("begin", sampling=sampling)
        await session.next("accepted")
        self.num_opened += 1
        if is_long:
            await self._until_workers_are_replaced()
        for text in texts:
            await session.append(as_document(text))
            await session.next("progress")
        answered = await session.finish()
        prompt = self._encode("begin", *texts)
        assert answered.token_ids == self.brain.answer(prompt, NUM_TOKENS), name
        self.num_sessions += 1
        self.num_moved += answered.finished.restarts > 0

    def _encode(self, *texts: str) -> list[int]:
        router = next(each for each in self.hosts.now.values() if isinstance(each, Router))
        encode = router._parts.text.tokenizer.encode
        return [token for text in texts for token in encode(text)]


def _is_refused(error: grpc.aio.AioRpcError) -> bool:
    """Whether the router was about to end, so that it has not admitted the session."""
    ours = from_rpc_error(error)
    return isinstance(ours, UnavailableError) and ours.message == "the router is draining"


@asynccontextmanager
async def a_cluster(
    model_path: Path, num_each: int
) -> AsyncIterator[tuple[Supervisor, RollingRestart, Load]]:
    """Everything ready and under load."""
    brain = Brain()
    hosts = Processes(model_path, brain)
    roles: dict[str, sv.Role] = {
        f"{role}-{number}": role
        for role, count in (("router", 2), ("prefill", num_each), ("decode", num_each))
        for number in range(count)
    }
    supervisor = Supervisor(roles, hosts, Settings(3, 3600.0, 3600.0))
    restart = RollingRestart(supervisor, hosts)
    load = Load(supervisor, restart, hosts, brain)
    tasks = [asyncio.create_task(each.run()) for each in (supervisor, restart)]
    try:
        async with asyncio.timeout(LIMIT_S):
            while not supervisor.is_ready:
                await supervisor.wait_change(supervisor.num_events)
        yield supervisor, restart, load
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for name in sorted(hosts.now, reverse=True):  # routers before workers
            await hosts.stop(name)


@pytest.mark.parametrize("num_each", [1, 2])
async def test_no_session_fails_while_everything_is_replaced(
    tiny_model: Path, num_each: int
) -> None:
    """With one worker of each role, a stand-in takes their sessions meanwhile."""
    async with a_cluster(tiny_model, num_each) as (supervisor, restart, load):
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            for number in range(NUM_CLIENTS):
                group.create_task(load.client(number))
            while load.num_opened < NUM_CLIENTS:
                await changed(supervisor)
            names = restart.begin([], DRAIN_S, LIMIT_S)
            while restart.rollout is None or restart.rollout.state is ro.State.RUNNING:
                await changed(supervisor)
            load.is_over = True
        assert restart.rollout.state is ro.State.DONE, restart.rollout.reason
        assert {name: supervisor.fleet[name].incarnation for name in names} == dict.fromkeys(
            names, 2
        )
        assert len(names) == 2 + 2 * num_each
        assert load.num_sessions > NUM_CLIENTS
        assert load.num_moved >= NUM_CLIENTS // 2
        assert len(load.routers) > 2
