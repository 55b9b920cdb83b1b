"""Relays of gRPC streams that do nothing else: what any router in Python has to pay.

`/null/Relay` reads a stream of its own from the worker for each client. `/null/Multiplexed`
reads one stream for all clients, with one message for each step of the engine. Messages are
bytes that are not parsed; those of the multiplexed stream are (client, token) pairs.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from experiments.path.pace import Pace

_RELAY, _MULTIPLEXED, _IDLE = "/null/Relay", "/null/Multiplexed", "/null/Idle"
_STREAM, _STEPS = "/null/Stream", "/null/Steps"
# What clients get: as long as a message with one token's text and id.
_MESSAGE = bytes(16)
_PAIR = struct.Struct("<II")
Handle = Callable[[bytes, Any], Any]


class NullRelay:
    """The relay's side; `target` is the worker's address."""

    def __init__(self, target: str) -> None:
        self._upstream = grpc.aio.insecure_channel(target)
        self._clients: dict[int, asyncio.Queue[bytes]] = {}
        self._reading: asyncio.Task[None] | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server."""
        _add(server, {_RELAY: self._relay, _MULTIPLEXED: self._multiplexed, _IDLE: _idle})

    async def close(self) -> None:
        """Ends what is under way."""
        if self._reading is not None:
            self._reading.cancel()
        await self._upstream.close()

    async def _relay(self, request: bytes, context: Any) -> None:
        async for message in self._upstream.unary_stream(_STREAM)(request):
            await context.write(message)

    async def _multiplexed(self, request: bytes, context: Any) -> None:
        (client,) = struct.unpack("<I", request)
        messages = self._clients[client] = asyncio.Queue[bytes]()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        await context.write(_MESSAGE)
        while message := await messages.get():
            await context.write(message)

    async def _read(self) -> None:
        async for step in self._upstream.unary_stream(_STEPS)(b""):
            for client, _ in _PAIR.iter_unpack(step):
                self._clients[client].put_nowait(_MESSAGE)
        clients, self._clients = self._clients, {}
        for messages in clients.values():
            messages.put_nowait(b"")


class NullWorker:
    """The worker's side: a token at once, and one at each step, `num_steps` in all."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.num_clients = 0
        self.num_steps = 0

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server."""
        _add(server, {_STREAM: self._stream, _STEPS: self._steps})

    async def _stream(self, _request: bytes, context: Any) -> None:
        await context.write(_MESSAGE)
        for step in range(1, self.num_steps):
            await self._pace.wait(step)
            await context.write(_MESSAGE)

    async def _steps(self, _request: bytes, context: Any) -> None:
        a_step = b"".join(_PAIR.pack(client, 1) for client in range(self.num_clients))
        for step in range(1, self.num_steps):
            await self._pace.wait(step)
            await context.write(a_step)


class NullClient:
    """Opens streams at a relay; each has a message at once, and one for each step."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.relay = channel.unary_stream(_RELAY)
        self._multiplexed = channel.unary_stream(_MULTIPLEXED)
        self.idle = channel.unary_stream(_IDLE)

    def multiplexed(self, client: int) -> Any:
        """The stream of that client, of which each is there once."""
        return self._multiplexed(struct.pack("<I", client))


async def _idle(_request: bytes, context: Any) -> None:
    await context.write(_MESSAGE)
    await asyncio.Event().wait()


def _add(server: grpc.aio.Server, handlers: Mapping[str, Handle]) -> None:
    rpcs = {
        name.rpartition("/")[2]: grpc.unary_stream_rpc_method_handler(handle)
        for name, handle in handlers.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("null", rpcs),))
