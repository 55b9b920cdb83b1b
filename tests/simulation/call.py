"""The client's half of RPCs, with what grpc.aio's calls do as far as our code meets it.

That includes what is odd: a reader or writer that is cancelled cancels the RPC; a task that
waits when the RPC is cancelled here gets CancelledError; a write that comes too late makes
an INTERNAL of its own, before or after the true status.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import grpc

from tests.simulation.network import Network, Pipe
from tests.simulation.process import Process

_CANCELLED_HERE = "Locally cancelled by application!"
_LATE_WRITE = "Internal error from Core"
_NOT_CONNECTED = "failed to connect to all addresses; last error: UNAVAILABLE: Connection refused"
_RECONNECT_S = 1.0
_EMPTY = grpc.aio.Metadata()
EOF = grpc.aio.EOF


def status(code: grpc.StatusCode, details: str, trailers: Any = _EMPTY) -> grpc.aio.AioRpcError:
    """A final status."""
    return grpc.aio.AioRpcError(code, _EMPTY, trailers, details)


class Call:
    """One RPC."""

    def __init__(
        self,
        network: Network,
        client: Process,
        path: str,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        metadata: tuple[Any, ...],
        read_s: float,
    ) -> None:
        self.client = client
        self.path = path
        self.metadata = metadata
        self._network = network
        self._read_s = read_s
        self._encode, self._decode = encode, decode
        self._inbox: deque[bytes] = deque()
        # Set when something has come, or ended.
        self._news = asyncio.Event()
        self._initial: Any = None
        self._status: grpc.aio.AioRpcError | None = None
        # Known when all messages before it are read.
        self._behind: grpc.aio.AioRpcError | None = None
        self._is_half_closed = self._is_cancelled_here = False
        self._callbacks: list[Callable[[Call], Any]] = []
        self._responses: AsyncIterator[Any] | None = None
        # None until there is a connection.
        self.link: Any = None

    # -- beginning ---------------------------------------------------------------------

    def begin(
        self, address: str, request: Any, timeout_s: float | None, *, wait_for_ready: bool
    ) -> None:
        """Connects, and sends the request if it is only one."""
        if timeout_s is not None:
            late = status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            self.client.call(self._end_here, late, delay_s=timeout_s)
        self._connect(address, request, wait_for_ready)

    def _connect(self, address: str, request: Any, wait_for_ready: bool) -> None:
        if self.done():
            return
        server = self._network.servers.get(address)
        if server is not None and not self._network.is_cut(self.client, server.process):
            self.link = server.accept(self)
            self._news.set()
            if request is not None:
                self.link.up.send_message(self.link.context.receive, self._encode(request))
                self.link.up.send(self.link.context.half_closed)
        elif wait_for_ready:
            again = (address, request, wait_for_ready)
            self.client.call(self._connect, *again, delay_s=_RECONNECT_S)
        else:
            refused = status(grpc.StatusCode.UNAVAILABLE, _NOT_CONNECTED)
            limit_s = 0.01 if server is None else 20.0
            delay_s = limit_s * self._network.random.random()
            self.client.call(self.end, refused, delay_s=delay_s)

    # -- from the other side --------------------------------------------------------------

    def receive_initial(self, metadata: Any) -> None:
        self._initial = metadata
        self._news.set()

    def receive(self, data: bytes) -> None:
        if not self.done():
            self._inbox.append(data)
            self._news.set()

    def ends(self, final: grpc.aio.AioRpcError) -> None:
        """The server's status, which comes behind its messages."""
        if self._inbox:
            self._behind = final
            self.link.up.wake()
        else:
            self.end(final)

    def end(self, final: grpc.aio.AioRpcError) -> None:
        """The RPC has this status now; messages that were not read are gone."""
        if self._status is not None and self._status.details() != _LATE_WRITE:
            return
        is_first, self._status = self._status is None, final
        self._inbox.clear()
        if self.link is not None:
            self._network.rpcs.pop(self.link, None)
            self.link.up.wake()
        self._news.set()
        if is_first:
            for callback in self._callbacks:
                callback(self)

    def _end_here(self, final: grpc.aio.AioRpcError) -> None:
        if not self.done():
            self.end(final)
            if self.link is not None:
                self.link.up.send(self.link.context.cancelled_by_peer)

    # -- grpc.aio's interface -----------------------------------------------------------

    def done(self) -> bool:
        return self._status is not None

    def cancelled(self) -> bool:
        return self._status is not None and self._status.code() is grpc.StatusCode.CANCELLED

    def cancel(self) -> bool:
        if self.done():
            return False
        self._is_cancelled_here = True
        self._end_here(status(grpc.StatusCode.CANCELLED, _CANCELLED_HERE))
        return True

    def add_done_callback(self, callback: Callable[[Call], Any]) -> None:
        if self.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    async def initial_metadata(self) -> Any:
        await self._until(lambda: self._initial is not None or self.done())
        return _EMPTY if self._initial is None else self._initial

    async def code(self) -> grpc.StatusCode:
        return (await self._final()).code()

    async def details(self) -> str:
        return (await self._final()).details() or ""

    async def trailing_metadata(self) -> Any:
        return (await self._final()).trailing_metadata()

    async def write(self, request: Any) -> None:
        if self.done():
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._is_half_closed:
            raise asyncio.InvalidStateError("RPC is half closed")
        data = self._encode(request)
        try:
            await asyncio.sleep(0)
            await self._until(lambda: self.link is not None or self._is_over)
            if self.link is not None:
                await self.link.up.until_room(lambda: self._is_over)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._is_over:
            await self._too_late()
        else:
            self.link.up.send_message(self.link.context.receive, data)

    async def done_writing(self) -> None:
        if self.done() or self._is_half_closed:
            return
        self._is_half_closed = True
        if self.link is not None:
            self.link.up.send(self.link.context.half_closed)

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._responses is None:
            self._responses = self._all_responses()
        return self._responses

    async def read(self) -> Any:
        message = EOF if self.done() else await self._read()
        if message is EOF:
            await self._raise_for_status()
        return message

    def __await__(self) -> Generator[Any, None, Any]:
        return self.read().__await__()

    # -- inside -----------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return self.done() or self._behind is not None

    async def _final(self) -> grpc.aio.AioRpcError:
        await self._until(self.done)
        assert self._status is not None
        return self._status

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._news.clear()
            await self._news.wait()

    async def _too_late(self) -> None:
        """A write has failed, because the RPC is over."""
        final, late = self._behind, status(grpc.StatusCode.INTERNAL, _LATE_WRITE)
        if final is not None and self._network.random.random() < 0.5:
            self.end(late)
            self.client.call(self.end, final, delay_s=0.05 * self._network.random.random())
        elif final is not None:
            self.end(final)
            self._status = late
        await self._raise_for_status()

    async def _raise_for_status(self) -> None:
        if self._is_cancelled_here:
            raise asyncio.CancelledError
        final = await self._final()
        if final.code() is not grpc.StatusCode.OK:
            raise final

    async def _all_responses(self) -> AsyncIterator[Any]:
        while (message := await self._read()) is not EOF:
            yield message
        await self._raise_for_status()

    async def _read(self) -> Any:
        try:
            await self._until(lambda: bool(self._inbox) or self.done())
            if self._read_s:
                await asyncio.sleep(self._read_s)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not self._inbox:
            return EOF
        data = self._inbox.popleft()
        self.link.note_read()
        if self._behind is not None and not self._inbox:
            self.end(self._behind)
        return self._decode(data)


class Link:
    """What the two halves of one RPC have in common; the network breaks it off."""

    def __init__(self, network: Network, call: Call, context: Any, server: Process) -> None:
        self.client, self.server = call.client, server
        self.call, self.context = call, context
        self.up = Pipe(network, call.client, server)
        self.down = Pipe(network, server, call.client)
        self._network = network
        network.rpcs[self] = None

    def note_read(self) -> None:
        """The client has read a message."""
        self.down.note_read()

    def break_off(self, details: str) -> None:
        self._network.rpcs.pop(self, None)
        self.up.is_cut = self.down.is_cut = True
        delay_s = self._network.delay_s
        lost = status(grpc.StatusCode.UNAVAILABLE, details)
        self.client.call(self.call.end, lost, delay_s=delay_s())
        self.server.call(self.context.cancelled_by_peer, delay_s=delay_s())
