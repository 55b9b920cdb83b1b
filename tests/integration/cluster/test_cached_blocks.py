"""What workers report of their caches is what a following prompt finds there."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from experiments.lab_cluster import workers
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.api.v1 import worker_pb2_grpc
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from stream2llm.serving.sessions.block_hashes import BlockHashes, from_wire
from stream2llm.serving.sessions.prefix import as_tokens
from tests.cluster_pool import worker_calls
from tests.streams import GREEDY, Stream, play

pytestmark = pytest.mark.cluster("sensitive-1x1")

STREAM = Stream("cached", (("append", ("a",)), ("append", ("b",))), {"a": 200, "b": 310})


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_the_blocks_of_a_prompt_are_reported(
    role: str, cluster: Cluster, client: AsyncClient
) -> None:
    await play(client, STREAM)
    async with AsyncExitStack() as stack:
        address = workers(cluster, role)[0].grpc_address
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        stub = worker_pb2_grpc.CacheServiceStub(worker_calls(cluster, channel))
        call = stub.WatchCache(pb.WatchCacheRequest())
        stack.callback(call.cancel)
        first = await call.read()
        hashes = BlockHashes(first.begin.block_size, first.begin.hash_root)
        hashes.extend(as_tokens(STREAM.prompt), len(STREAM.prompt))
        held = set(from_wire(first.added, "added"))
        async with asyncio.timeout(30):  # decode's may come with a later step
            while not held.issuperset(hashes.hashes):
                message = await call.read()
                held.difference_update(from_wire(message.removed, "removed"))
                held.update(from_wire(message.added, "added"))
    again = await client.generate(STREAM.prompt, sampling=GREEDY).answer()
    if role == "prefill":
        assert again.finished.usage.reused_tokens == len(hashes.hashes) * hashes.block_size
