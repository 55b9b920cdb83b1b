"""Every RPC of router and workers with requests that our own code never sends.

Whatever comes, the RPC ends, with a status that says whose fault it was; nothing of
it is held afterwards, and the engines answer others as before.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from experiments.lab_cluster import workers
from stream2llm.api.call_metadata import CallsWith
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import worker_pb2 as worker
from stream2llm.api.v1 import worker_pb2_grpc
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from stream2llm.serving.mux.channel import MuxChannel
from tests import fuzz_rpcs as rpcs
from tests.cluster_kill import incarnation_of
from tests.cluster_pool import session_calls, worker_calls
from tests.reference_engine import ReferenceEngine
from tests.rpc_fuzz import mutants
from tests.streams import Stream, play

pytestmark = pytest.mark.cluster("sensitive-1x1")

ORDINARY = Stream("fuzz", (("append", ("a",)), ("append", ("b",))), {"a": 90, "b": 300})
SEED = 20261128
# Share of an RPC's cases in the daily test.
NUM_CASES = 24
NUM_AT_ONCE = 6


# -- the well-formed RPCs that the cases are made from -----------------------------------


@asynccontextmanager
async def _nothing(_: _Targets) -> AsyncIterator[None]:
    yield None


@asynccontextmanager
async def _a_first_token(targets: _Targets) -> AsyncIterator[worker.FirstToken]:
    """A hand-over that waits for decode, while the block lasts."""
    call = worker_pb2_grpc.PrefillServiceStub(targets.prefill.calls).PrefillSession()
    for request in rpcs.prefill_session(None):
        await call.write(request)
    # Longer than the case that it is for, whose own end is what counts.
    async with asyncio.timeout(3 * rpcs.DEADLINE_S):
        async for response in call:
            if response.HasField("first_token"):
                break
        yield response.first_token
        await call.done_writing()
        assert [response async for response in call] == []


@dataclass(frozen=True, slots=True)
class Rpc:
    """How a well-formed one is made: what it needs first, and then its messages."""

    needs: Callable[[_Targets], Any]
    messages: Callable[[Any], Sequence[Message]]


RPCS = {
    "StreamingInferenceService/StreamGenerate": Rpc(_nothing, rpcs.stream_generate),
    "StreamingInferenceService/Generate": Rpc(_nothing, rpcs.generate),
    "StreamingInferenceService/GetModelInfo": Rpc(_nothing, lambda _: [pb.GetModelInfoRequest()]),
    "StreamingInferenceService/GetServerInfo": Rpc(_nothing, lambda _: [pb.GetServerInfoRequest()]),
    "PrefillService/PrefillSession": Rpc(_nothing, rpcs.prefill_session),
    "DecodeService/PrefetchKv": Rpc(_a_first_token, rpcs.prefetch_kv),
    "DecodeService/Decode": Rpc(_a_first_token, rpcs.decode),
    "HandoverService/ReleaseHandover": Rpc(_a_first_token, rpcs.release),
    "MultiplexService/Connect": Rpc(_nothing, rpcs.connect),
    "CacheService/WatchCache": Rpc(_nothing, lambda _: [worker.WatchCacheRequest()]),
    "WorkerService/GetWorkerStatus": Rpc(_nothing, lambda _: [worker.GetWorkerStatusRequest()]),
}


def test_every_rpc_is_tried() -> None:
    services = [each for file in (pb, worker) for each in file.DESCRIPTOR.services_by_name.values()]
    names = {f"{service.name}/{method.name}" for service in services for method in service.methods}
    assert names == RPCS.keys()


# -- a run ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Worker:
    """A channel to a worker, and the stream over it that carries the calls of sessions."""

    plain: CallsWith
    calls: MuxChannel


@dataclass(frozen=True, slots=True)
class _Targets:
    """A way to each process."""

    router: CallsWith
    prefill: _Worker
    decode: _Worker

    def of(self, rpc: str) -> list[CallsWith | MuxChannel]:
        """Where that RPC is served."""
        match rpc.split("/")[0]:
            case "StreamingInferenceService":
                return [self.router]
            case "PrefillService":
                return [self.prefill.calls]
            case "DecodeService":
                return [self.decode.calls]
            case "HandoverService":
                return [self.decode.plain]
        return [self.prefill.plain, self.decode.plain]


# One of each kind of server every day; all of them, with all cases, in the slow tests.
@pytest.mark.parametrize(
    "rpc",
    [
        "StreamingInferenceService/StreamGenerate",
        "PrefillService/PrefillSession",
        "DecodeService/Decode",
        "MultiplexService/Connect",
    ],
)
async def test_no_request_hurts_anybody_else(
    rpc: str, cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    await _fuzz(rpc, cluster, client, reference, NUM_CASES)


@pytest.mark.slow
@pytest.mark.parametrize("rpc", RPCS)
async def test_no_request_of_all_there_are_hurts_anybody_else(
    rpc: str, cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    await _fuzz(rpc, cluster, client, reference, None)


async def _fuzz(
    rpc: str,
    cluster: Cluster,
    client: AsyncClient,
    reference: ReferenceEngine,
    num_cases: int | None,
) -> None:
    before = [incarnation_of(cluster.status(), role) for role in ("router", "prefill", "decode")]
    async with AsyncExitStack() as stack:
        addresses = (
            cluster.router_addresses[0],
            workers(cluster, "prefill")[0].grpc_address,
            workers(cluster, "decode")[0].grpc_address,
        )
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for address in addresses
        ]
        router, *others = (worker_calls(cluster, channel) for channel in channels)
        calls = [session_calls(cluster, channel) for channel in channels[1:]]
        for each in calls:
            await stack.enter_async_context(aclosing(each))
        targets = _Targets(router, *map(_Worker, others, calls))
        wrong, codes = await _ends(rpc, targets, num_cases)
    print(rpc, dict(codes))
    assert not wrong, "\n".join(wrong)
    rpcs.check_codes(codes)
    assert (await play(client, ORDINARY)).token_ids == reference.answer(ORDINARY.prompt, 8)
    after = [incarnation_of(cluster.status(), role) for role in ("router", "prefill", "decode")]
    assert after == before, "a process had to be replaced"


async def _ends(
    rpc: str, targets: _Targets, num_cases: int | None
) -> tuple[list[str], Counter[str]]:
    """Plays the cases, some at once; what did not end as it should, and how often each status came."""
    made = RPCS[rpc]
    async with made.needs(targets) as needed:
        total = sum(1 for _ in mutants(made.messages(needed), random.Random(SEED)))
    numbers = list(range(total))
    if num_cases is not None:
        random.Random(SEED).shuffle(numbers)
        numbers = numbers[:num_cases]
    wrong: list[str] = []
    codes: Counter[str] = Counter()
    at_once = asyncio.Semaphore(NUM_AT_ONCE)

    async def play_one(number: int) -> None:
        async with at_once, made.needs(targets) as needed:
            case = list(mutants(made.messages(needed), random.Random(SEED)))[number]
            for channel in targets.of(rpc):
                code, told = await rpcs.end_of(channel, rpc, case)
                codes[code] += 1
                if told:
                    wrong.append(f"{rpc} {case.name}: {told}")

    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(play_one(number))
    return wrong, codes
