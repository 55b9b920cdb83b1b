"""The server's half of RPCs: what grpc.aio's servers do as far as our code meets it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc

from tests.simulation.call import EOF, Call, Link, status
from tests.simulation.network import Network
from tests.simulation.process import Process

_logger = logging.getLogger(__name__)
_OK = status(grpc.StatusCode.OK, "")


class Server:
    """Listens in one process."""

    def __init__(
        self, network: Network, process: Process, interceptors: Sequence[Any] = ()
    ) -> None:
        self.process = process
        self._network = network
        self._interceptors = interceptors
        self._handlers: dict[str, Any] = {}
        self._addresses: list[str] = []
        self._contexts: dict[Context, None] = {}
        process.on_death.append(self._unlisten)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = handler

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """They are registered as well."""

    def add_insecure_port(self, address: str) -> int:
        host, _, asked = address.rpartition(":")
        port = int(asked) or self._network.new_port()
        self._addresses.append(f"{host}:{port}")
        return port

    async def start(self) -> None:
        for address in self._addresses:
            self._network.servers[address] = self

    async def stop(self, grace: float | None) -> None:
        """Cancels what runs."""
        self._unlisten()
        contexts = list(self._contexts)
        for context in contexts:
            context.link.break_off("Socket closed")
            context.cancelled_by_peer()
        tasks = [context.task for context in contexts if context.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def accept(self, call: Call) -> Link:
        """A client begins an RPC."""
        context = Context(self._network)
        context.link = Link(self._network, call, context, self.process)
        context.link.up.send(self._begin, context, call)
        return context.link

    def _unlisten(self) -> None:
        for address in self._addresses:
            if self._network.servers.get(address) is self:
                del self._network.servers[address]

    def _begin(self, context: Context, call: Call) -> None:
        if context.is_over:
            return
        context.metadata = call.metadata
        self._contexts[context] = None
        context.task = self.process.spawn(self._serve(context, call.path))
        context.task.add_done_callback(lambda _: self._contexts.pop(context, None))

    async def _serve(self, context: Context, path: str) -> None:
        try:
            handler = await self._handler_of(path, context.metadata)
            await self._handle(handler, context)
            context.finish(_OK)
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            context.finish(status(grpc.StatusCode.CANCELLED, "RPC cancelled"))
        except Exception as error:
            _logger.exception("handler_raised path=%s", path)
            unexpected = f"Unexpected {type(error)}: {error}"
            context.finish(status(grpc.StatusCode.UNKNOWN, unexpected))

    async def _handler_of(self, path: str, metadata: Any) -> Any:
        async def find(details: Any) -> Any:
            return self._handlers.get(details.method)

        found: Any = find
        for interceptor in reversed(self._interceptors):
            found = partial(interceptor.intercept_service, found)
        return await found(SimpleNamespace(method=path, invocation_metadata=metadata))

    async def _handle(self, handler: Any, context: Context) -> None:
        context.decode, context.encode = handler.request_deserializer, handler.response_serializer
        given: Any = context if handler.request_streaming else await context.read()
        if given is EOF:
            return  # the client has left, and gRPC calls no handler
        if handler.request_streaming:
            serve = handler.stream_stream
        else:
            serve = handler.unary_stream or handler.unary_unary
        served = serve(given, context)
        if inspect.isasyncgen(served):
            async for response in served:
                await _send(context, response)
            return
        response = await served
        if not handler.response_streaming:
            await _send(context, response)


async def _send(context: Context, response: Any) -> None:
    """Writes what a handler has returned: a peer that has left meanwhile is not its fault."""
    with suppress(grpc.aio.UsageError):
        await context.write(response)


class Context:
    """A servicer's context, and the requests of a stream."""

    def __init__(self, network: Network) -> None:
        self.link: Link
        self.metadata: Any = ()
        self.task: asyncio.Task[Any] | None = None
        # Set by the method's handler.
        self.decode: Any = None
        self.encode: Any = None
        # Finished here, or given up there.
        self.is_over = False
        self._network = network
        self._inbox: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._is_half_closed = self._is_cancelled = False
        self._requests: AsyncIterator[Any] | None = None

    # -- from the other side --------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        self._inbox.append(data)
        self._news.set()

    def half_closed(self) -> None:
        self._is_half_closed = True
        self._news.set()

    def cancelled_by_peer(self) -> None:
        """The peer has cancelled, or is lost: the handler is cancelled, perhaps a moment later."""
        if self.is_over:
            return
        self.is_over = self._is_cancelled = True
        self._inbox.clear()
        self._news.set()
        self.link.down.wake()
        process = self.link.server
        if self.task is not None:
            delay_s = self._network.random.choice((0.0, 0.0, 0.001))
            process.call(self.task.cancel, delay_s=delay_s)

    # -- grpc.aio's interface -----------------------------------------------------------

    def invocation_metadata(self) -> Any:
        return self.metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def peer_identities(self) -> None:
        """Without TLS there are none."""

    def cancelled(self) -> bool:
        return self._is_cancelled

    async def read(self) -> Any:
        while not self._inbox and not self._is_half_closed and not self.is_over:
            self._news.clear()
            await self._news.wait()
        if not self._inbox:
            return EOF
        self.link.up.note_read()
        return self.decode(self._inbox.popleft())

    async def write(self, message: Any) -> None:
        data = self.encode(message)
        await asyncio.sleep(0)
        await self.link.down.until_room(lambda: self.is_over)
        if self.is_over:
            raise grpc.aio.UsageError("RPC already finished.")
        self.link.down.send_message(self.link.call.receive, data)

    async def send_initial_metadata(self, metadata: Any) -> None:
        await asyncio.sleep(0)
        if not self.is_over:
            self.link.down.send(self.link.call.receive_initial, grpc.aio.Metadata(*metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailers: Any = ()) -> NoReturn:
        self.finish(status(code, details, grpc.aio.Metadata(*trailers)))
        raise grpc.aio.AbortError("aborted")

    async def abort_with_status(self, final: Any) -> NoReturn:
        await self.abort(final.code, final.details, final.trailing_metadata or ())

    def finish(self, final: grpc.aio.AioRpcError) -> None:
        """Sends the status, behind all messages."""
        if not self.is_over:
            self.is_over = True
            self.link.down.send(self.link.call.ends, final)

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._requests is None:
            self._requests = self._all_requests()
        return self._requests

    async def __anext__(self) -> Any:
        return await anext(aiter(self))

    async def _all_requests(self) -> AsyncIterator[Any]:
        while not self.is_over and (message := await self.read()) is not EOF:
            yield message
