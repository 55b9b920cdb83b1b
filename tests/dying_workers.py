"""Stand between a router and real workers, and die at a chosen moment of one session.

To the router a death is a connection that broke; the engine behind it lives, sees its RPC
cancelled, and is there for the next session. So an engine is needed for all moments
together, not one for each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc

from stream2llm.api.grpc_options import channel_options, server_options
from stream2llm.api.handover import ACCEPTED_METADATA, HELD_METADATA
from stream2llm.api.v1 import worker_pb2_grpc
from stream2llm.serving.settings.worker_spec import WorkerAddress

_MAX_BYTES = 1 << 24


class DyingPrefill(worker_pb2_grpc.PrefillServiceServicer):
    """Forwards sessions; the next one that reaches the chosen moment is its last."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = worker_pb2_grpc.PrefillServiceStub(channel)
        # When so many requests of a session have come; None: never.
        self.dies_after_requests: int | None = None
        # With its first token in hand, which the router never gets.
        self.dies_before_first_token = False

    async def PrefillSession(  # noqa: N802
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        await context.send_initial_metadata(HELD_METADATA)
        forwarded = _Requests(requests, self.dies_after_requests)
        call = self._stub.PrefillSession(aiter(forwarded), metadata=_metadata(context))
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
            call.cancel()
        await _die(context)


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


class DyingDecode(worker_pb2_grpc.DecodeServiceServicer):
    """Forwards answers and fetches; dies when an answer has so many tokens from here."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = worker_pb2_grpc.DecodeServiceStub(channel)
        self.dies_after_tokens: int | None = None

    async def Decode(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        call = self._stub.Decode(request, metadata=_metadata(context))
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

    async def PrefetchKv(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        call = self._stub.PrefetchKv(requests, metadata=_metadata(context))
        try:
            async for response in call:
                yield response
        finally:
            call.cancel()

    async def ReleaseHandover(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._stub.ReleaseHandover(request, metadata=_metadata(context))


async def _die(context: Any) -> None:
    """Ends the RPC as gRPC ends those of a process that is gone."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def _metadata(context: Any) -> list[tuple[str, Any]]:
    own = ("user-agent", "grpc-", ":")
    return [(key, value) for key, value in context.invocation_metadata() if not key.startswith(own)]


@asynccontextmanager
async def dying(worker: WorkerAddress) -> AsyncIterator[tuple[Any, WorkerAddress]]:
    """What stands before a worker, and the address at which a router finds it."""
    options = channel_options(_MAX_BYTES)
    async with grpc.aio.insecure_channel(worker.grpc_address, options=options) as channel:
        server = grpc.aio.server(options=server_options(_MAX_BYTES))
        servicer: Any
        if worker.role == "prefill":
            servicer = DyingPrefill(channel)
            worker_pb2_grpc.add_PrefillServiceServicer_to_server(servicer, server)
        else:
            servicer = DyingDecode(channel)
            worker_pb2_grpc.add_DecodeServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield servicer, replace(worker, grpc_address=f"127.0.0.1:{port}")
        finally:
            await server.stop(None)
