"""A session that goes away at any moment frees every block, on both workers.

The `client` fixture fails the test when a worker still holds a block at its end.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import pytest

from experiments.lab_cluster import workers
from stream2llm.api.codec import encode
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.client import AsyncClient, Progress, SamplingParameters, TokenDelta
from stream2llm.cluster.cluster import Cluster
from tests.cluster_pool import num_blocks_held, session_calls, until_blocks_are_free, worker_calls
from tests.fuzz_rpcs import packed
from tests.polling import eventually
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Stream, play, until_prefilled

pytestmark = pytest.mark.cluster("sensitive-1x1")
# Where a lease makes nothing good, however slow the machine is.
LONG_LEASE = pytest.mark.cluster("sensitive-tight")
# A cluster of their own, so not in the daily run.
slow = pytest.mark.slow
ENDLESS = SamplingParameters(max_tokens=500, temperature=0.0, ignore_eos=True)
STREAM = Stream("cancel", (("append", ("a",)),), {"a": 3000})
SMALL = Stream("small", (("append", ("a",)),), {"a": 40})


async def num_sessions(client: AsyncClient) -> int:
    """Sessions open at the router."""
    return sum((await client.server_info()).sessions_by_phase.values())


async def until_no_session(client: AsyncClient) -> None:
    await eventually(lambda: num_sessions(client), lambda count: count == 0)


async def test_before_the_first_document(client: AsyncClient) -> None:
    async with client.session(prefix=STREAM.prefix, sampling=ENDLESS) as session:
        await until_prefilled(session, 1)
    await until_no_session(client)


async def test_before_any_token(client: AsyncClient) -> None:
    async with client.session(sampling=ENDLESS):
        pass
    await until_no_session(client)


async def test_in_the_middle_of_prefill(client: AsyncClient) -> None:
    async with client.session(prefix=STREAM.prefix, sampling=ENDLESS) as session:
        await session.append(STREAM.document("a"))
        async for event in session.events():
            if isinstance(event, Progress) and event.prefilled_tokens > len(STREAM.prefix):
                assert event.prefilled_tokens < 3000
                break
    await until_no_session(client)


async def test_after_an_update(client: AsyncClient) -> None:
    async with client.session(prefix=STREAM.prefix, sampling=ENDLESS) as session:
        await session.update([SMALL.document("a")])
        await until_prefilled(session, 2)
        await session.update([])
    await until_no_session(client)


async def test_after_the_seal_before_the_first_token(client: AsyncClient) -> None:
    async with client.session(prefix=STREAM.prefix, sampling=ENDLESS) as session:
        await session.append(STREAM.document("a"))
        events = aiter(session.seal())
        assert isinstance(await anext(events), Progress)
    await until_no_session(client)


async def test_at_the_first_token(client: AsyncClient) -> None:
    """Around the hand-over: decode may or may not have begun to read."""
    for _ in range(3):
        async with client.session(prefix=SMALL.document("a"), sampling=ENDLESS) as session:
            async for event in session.seal():
                if isinstance(event, TokenDelta):
                    break
    await until_no_session(client)


async def test_in_the_middle_of_decode(client: AsyncClient) -> None:
    async with client.session(prefix=SMALL.document("a"), sampling=ENDLESS) as session:
        num_tokens = 0
        async for event in session.seal():
            num_tokens += len(getattr(event, "token_ids", ()))
            if num_tokens > 5:
                break
    await until_no_session(client)


@slow
async def test_many_at_random_moments(client: AsyncClient, reference: ReferenceEngine) -> None:
    """Ten sessions are cancelled at ten different moments while one goes on undisturbed."""

    async def doomed(after_s: float) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(after_s):
                await play(client, STREAM, ENDLESS, paced=False)

    async with asyncio.TaskGroup() as group:
        survivor = group.create_task(play(client, SMALL, GREEDY))
        for i in range(10):
            group.create_task(doomed(0.06 * i))
    assert survivor.result().token_ids == reference.answer(SMALL.prompt, 8)
    await until_no_session(client)


async def test_closing_the_channel(cluster: Cluster, client: AsyncClient) -> None:
    other = AsyncClient(cluster.router_addresses[0])
    session = other.session(prefix=STREAM.prefix, sampling=ENDLESS)
    await session.__aenter__()
    await session.append(STREAM.document("a"))
    await other.close()
    await until_no_session(client)


_VICTIM = """
import asyncio, json, sys
from stream2llm.client import AsyncClient, SamplingParameters, TokenDelta

async def main(address, moment):
    sampling = SamplingParameters(max_tokens=500, temperature=0.0, ignore_eos=True)
    async with AsyncClient(address) as client:
        async with client.session(prefix=[5, 6, 7], sampling=sampling) as session:
            await session.append(list(range(1000)))
            if moment == "decode":
                async for event in session.seal():
                    if isinstance(event, TokenDelta):
                        print("now", flush=True)
            print("now", flush=True)
            await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@slow
@pytest.mark.parametrize("moment", ["prefill", "decode"])
async def test_the_client_process_is_killed_by_force(
    cluster: Cluster, client: AsyncClient, moment: str
) -> None:
    command = [sys.executable, "-c", _VICTIM, cluster.router_addresses[0], moment]
    root = Path(__file__).parents[3]
    victim = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=root)
    assert await victim.stdout.readline() == b"now\n"
    victim.send_signal(signal.SIGKILL)
    await victim.wait()
    await until_no_session(client)


@asynccontextmanager
async def _first_token(cluster: Cluster) -> AsyncIterator[worker_pb2.FirstToken]:
    """A session straight at the prefill worker, up to its first token; its RPC stays open."""
    splice = worker_pb2.SplicePrefill(revision=1, token_ids=packed(SMALL.document("a")))
    seal = worker_pb2.SealPrefill(splice=splice, hand_over=True)
    opening = worker_pb2.OpenPrefill(session_id="alone", sampling=encode(ENDLESS))
    (prefill,) = workers(cluster, "prefill")
    async with (
        grpc.aio.insecure_channel(prefill.grpc_address) as channel,
        aclosing(session_calls(cluster, channel)) as calls,
    ):
        call = worker_pb2_grpc.PrefillServiceStub(calls).PrefillSession()
        await call.write(worker_pb2.PrefillSessionRequest(open=opening))
        await call.write(worker_pb2.PrefillSessionRequest(seal=seal))
        while (response := await anext(call)).WhichOneof("event") != "first_token":
            pass
        yield response.first_token


@slow
@LONG_LEASE
async def test_a_released_hand_over_is_free_long_before_its_lease_ends(
    cluster: Cluster, client: AsyncClient
) -> None:
    async with _first_token(cluster) as first:
        assert await num_blocks_held(client, "prefill") == first.handover.num_blocks > 0
        (decode,) = workers(cluster, "decode")
        async with grpc.aio.insecure_channel(decode.grpc_address) as channel:
            request = worker_pb2.ReleaseHandoverRequest(
                session_id="HB:alone", handover=first.handover
            )
            stub = worker_pb2_grpc.HandoverServiceStub(worker_calls(cluster, channel))
            await stub.ReleaseHandover(request)
        await until_blocks_are_free(client.server_info, cluster.config.handover.lease_s / 2)


async def test_a_forgotten_hand_over_is_free_when_its_lease_ends(
    cluster: Cluster, client: AsyncClient
) -> None:
    async with _first_token(cluster) as first:
        assert await num_blocks_held(client, "prefill") == first.handover.num_blocks
        await until_blocks_are_free(client.server_info, 3 * cluster.config.handover.lease_s)


@slow
async def test_a_hand_over_whose_router_vanishes_is_left_to_decode_and_the_lease(
    cluster: Cluster, client: AsyncClient
) -> None:
    """For all that prefill knows decode is reading; blocks written anew would be wrong KV there."""
    async with _first_token(cluster) as first:
        assert await num_blocks_held(client, "prefill") == first.handover.num_blocks
    assert await num_blocks_held(client, "prefill") == first.handover.num_blocks
    await until_blocks_are_free(client.server_info, 3 * cluster.config.handover.lease_s)


@slow
@LONG_LEASE
async def test_a_hand_over_that_decode_refuses_is_released(
    cluster: Cluster, client: AsyncClient
) -> None:
    (decode,) = workers(cluster, "decode")
    async with (
        _first_token(cluster) as first,
        grpc.aio.insecure_channel(decode.grpc_address) as channel,
        aclosing(session_calls(cluster, channel)) as calls,
    ):
        request = worker_pb2.DecodeRequest(
            session_id="alone",
            token_ids=packed([*SMALL.document("a"), *first.step.token_ids]),
            sampling=encode(SamplingParameters(max_tokens=1)),
            handover=first.handover,
        )
        call = worker_pb2_grpc.DecodeServiceStub(calls).Decode(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await until_blocks_are_free(client.server_info, cluster.config.handover.lease_s / 2)


@slow
@LONG_LEASE
async def test_a_session_id_with_a_meaning_to_nixl_is_only_a_name(
    cluster: Cluster, client: AsyncClient
) -> None:
    """ "HB:" begins a heartbeat among NIXL's notifications."""
    sampling = SamplingParameters(max_tokens=2, temperature=0.0, ignore_eos=True)
    await client.generate(SMALL.prompt, sampling=sampling, session_id="HB:a,b").answer()
    await until_blocks_are_free(client.server_info, cluster.config.handover.lease_s / 2)
