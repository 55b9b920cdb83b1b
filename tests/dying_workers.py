"""Stand between a router and real workers, and die at a chosen moment of one session.

To the router a death is a connection that broke; the engine behind it lives, sees its RPC
cancelled, and is there for the next session. So an engine is needed for all moments
together, not one for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import grpc

from stream2llm.api.call_metadata import CallsWith, bearer
from stream2llm.api.grpc_options import channel_options, server_options
from stream2llm.api.handover import ACCEPTED_METADATA, HELD_METADATA
from stream2llm.api.v1 import worker_pb2_grpc
from stream2llm.serving.mux.channel import MuxChannel
from stream2llm.serving.mux.service import MultiplexService
from stream2llm.serving.settings.worker_spec import WorkerAddress
from tests.fake_workers import writes

_MAX_BYTES = 1 << 24


class DyingPrefill(worker_pb2_grpc.PrefillServiceServicer):
    """Forwards sessions; the next one that reaches the chosen moment is its last."""

    def __init__(self, calls: MuxChannel) -> None:
        self._stub: Any = worker_pb2_grpc.PrefillServiceStub(calls)
        # When so many requests of a session have come; None: never.
        self.dies_after_requests: int | None = None
        # With its first token in hand, which the router never gets.
        self.dies_before_first_token = False

    @writes
    async def PrefillSession(  # noqa: N802
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        await context.send_initial_metadata(HELD_METADATA)
        forwarded = _Requests(requests, self.dies_after_requests)
        call = self._stub.PrefillSession(metadata=context.invocation_metadata())
        forwarding = asyncio.create_task(_forward(forwarded, call))
        try:
            async for response in call:
                if response.HasField("first_token") and self.dies_before_first_token:
                    self.dies_before_first_token = False
                    break
                yield response
            else:
                return
        except grpc.aio.AioRpcError as error:
            if not forwarded.are_cut:
                await context.abort(error.code(), error.details(), error.trailing_metadata())
            self.dies_after_requests = None
        finally:
            forwarding.cancel()
            call.cancel()
        await _die(context)


async def _forward(requests: Any, call: Any) -> None:
    with suppress(grpc.aio.AioRpcError):  # its reader gets it too
        async for request in requests:
            await call.write(request)
        await call.done_writing()


class _Requests:
    """The requests of an RPC up to the last one that is let through."""

    def __init__(self, requests: AsyncIterator[Any], limit: int | None) -> None:
        self._requests = requests
        self._limit = limit
        self.are_cut = False

    async def __aiter__(self) -> AsyncIterator[Any]:
        number = 0
        async for request in self._requests:
            if number == self._limit:
                self.are_cut = True
                return
            number += 1
            yield request


class DyingDecode(worker_pb2_grpc.DecodeServiceServicer, worker_pb2_grpc.HandoverServiceServicer):
    """Forwards answers and fetches; dies when an answer has so many tokens from here."""

    def __init__(self, calls: MuxChannel, plain: CallsWith) -> None:
        self._stub: Any = worker_pb2_grpc.DecodeServiceStub(calls)
        self._handover: Any = worker_pb2_grpc.HandoverServiceStub(plain)
        self.dies_after_tokens: int | None = None

    @writes
    async def Decode(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        call = self._stub.Decode(request, metadata=context.invocation_metadata())
        try:
            await call.initial_metadata()
            await context.send_initial_metadata(ACCEPTED_METADATA)
            num_tokens = 0
            async for response in call:
                if num_tokens == self.dies_after_tokens:
                    break
                num_tokens += len(response.step.token_ids)
                yield response
            else:
                return
        finally:
            call.cancel()
        self.dies_after_tokens = None
        await _die(context)

    @writes
    async def PrefetchKv(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        call = self._stub.PrefetchKv(metadata=context.invocation_metadata())
        forwarding = asyncio.create_task(_forward(requests, call))
        try:
            async for response in call:
                yield response
        finally:
            forwarding.cancel()
            call.cancel()

    async def ReleaseHandover(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._handover.ReleaseHandover(request)


async def _die(context: Any) -> None:
    """Ends the RPC as gRPC ends those of a process that is gone."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


@asynccontextmanager
async def dying(worker: WorkerAddress, token: str) -> AsyncIterator[tuple[Any, WorkerAddress]]:
    """What stands before a worker, and the address at which a router finds it.

    `token` is that of the worker's cluster.
    """
    options = channel_options(_MAX_BYTES)
    async with grpc.aio.insecure_channel(worker.grpc_address, options=options) as channel:
        plain = CallsWith(channel, lambda: bearer(token))
        server = grpc.aio.server(options=server_options(_MAX_BYTES))
        multiplexed: Any = MultiplexService(_MAX_BYTES)
        servicer: Any
        async with aclosing(MuxChannel(plain, _MAX_BYTES)) as calls:
            if worker.role == "prefill":
                servicer = DyingPrefill(calls)
                worker_pb2_grpc.add_PrefillServiceServicer_to_server(servicer, multiplexed)
            else:
                servicer = DyingDecode(calls, plain)
                worker_pb2_grpc.add_DecodeServiceServicer_to_server(servicer, multiplexed)
                worker_pb2_grpc.add_HandoverServiceServicer_to_server(servicer, server)
            worker_pb2_grpc.add_MultiplexServiceServicer_to_server(multiplexed, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            try:
                yield servicer, replace(worker, grpc_address=f"127.0.0.1:{port}")
            finally:
                await server.stop(None)
