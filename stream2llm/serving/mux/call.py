"""A call at the side that has opened it, with what our code uses of a call of grpc.aio.

A writer that is cancelled cancels the call, as there: otherwise its message might go out, or not.
A reader that is cancelled leaves the call as it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from stream2llm.api.v1.worker_pb2 import CallCancel, CallOpening, Frame, HalfClose
from stream2llm.serving.mux.flow import Inbound, MessageTooLargeError, SendCredit
from stream2llm.serving.mux.outbox import Ticket
from stream2llm.serving.mux.sender import Sender
from stream2llm.serving.mux.statuses import cancelled_here, not_sent, pairs, status, status_of

_NO_METADATA = grpc.aio.Metadata()


class Call:
    """One call; its connection passes it the frames that come for it."""

    def __init__(
        self,
        call_id: int,
        sender: Sender,
        max_message_bytes: int,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
    ) -> None:
        self.call_id = call_id
        self._sender = sender
        self._encode, self._decode = encode, decode
        self._last = self._opening = Ticket()
        self._credit, self._inbound = SendCredit(), Inbound(max_message_bytes)
        self._inbox: deque[bytes] = deque()
        # Set when something that is waited for may be there.
        self._has_news = asyncio.Event()
        self._initial: grpc.aio.Metadata | None = None
        # Comes behind the messages that are not read yet.
        self._behind: grpc.aio.AioRpcError | None = None
        self._callbacks: list[Callable[[Call], object]] = []
        self._is_cancelled_here = False
        # The status, also where it is OK; None until the call has ended.
        self.final: grpc.aio.AioRpcError | None = None

    @property
    def has_sent_last(self) -> bool:
        """Whether the other end may get the last message; final when the call has ended."""
        return self._last.is_taken

    # -- grpc.aio's interface -------------------------------------------------------

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> Any:
        """The next message; raises the status, or CancelledError where this side has cancelled."""
        if not self._inbox:
            await self._until(lambda: bool(self._inbox) or self.done())
        if not self._inbox:
            final = self._final_or_cancelled()
            if final.code() is grpc.StatusCode.OK:
                raise StopAsyncIteration
            raise final
        data = self._inbox.popleft()
        self._give_back(len(data))
        if self._behind is not None and not self._inbox:
            self.end(self._behind)
        return self._decode(data)

    async def write(self, message: Any) -> None:
        """Returns when gRPC has taken the message; raises the status, OK too, of a call that has ended."""
        data = self._encode(message)
        sent = self._last = Ticket(self._has_news.set)
        try:
            await self._until_may_send()
            if not self._is_over:
                self._send(data, sent)
                await self._until(lambda: sent.is_sent or self._is_over)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._is_over:
            raise self._final_or_cancelled()

    async def done_writing(self) -> None:
        """Tells the other end that no more messages come."""
        if not self._is_over:
            self._sender.push(Frame(call_id=self.call_id, half_close=HalfClose()))

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """What came before the first message; empty when that or the end came without any."""
        await self._until(lambda: self._initial is not None or self.done())
        return _NO_METADATA if self._initial is None else self._initial

    def done(self) -> bool:
        """Whether the call has ended, and its messages have been read."""
        return self.final is not None

    def add_done_callback(self, callback: Callable[[Call], object]) -> None:
        """Calls it with this call at its end; at once, if that has been."""
        if self.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    def cancel(self) -> bool:
        """Ends the call at both ends; returns False if it has ended before."""
        if self.done():
            return False
        self._is_cancelled_here = True
        self._drop_here(cancelled_here())
        return True

    # -- from the connection ----------------------------------------------------------

    def begin(self, opening: CallOpening, request: Any = None) -> None:
        """Opens the call, and sends its only request where there is one."""
        self._sender.push(Frame(call_id=self.call_id, opening=opening), self._opening)
        if request is not None:
            self._last = Ticket()
            self._send(self._encode(request), self._last)
            self._sender.push(Frame(call_id=self.call_id, half_close=HalfClose()))

    def receive(self, frame: Frame, kind: str | None) -> None:
        """Takes a frame; raises ProtocolError."""
        match kind:
            case "message" | "piece":
                self._receive(frame.message or frame.piece, is_last=kind == "message")
            case "credit_bytes":
                self._credit.granted(frame.credit_bytes)
            case "initial_metadata":
                self._initial = grpc.aio.Metadata(*pairs(frame.initial_metadata.metadata))
            case "end":
                self._ends(status_of(frame.end))
            case _:
                pass  # of a later version
        self._has_news.set()

    def _receive(self, data: bytes, *, is_last: bool) -> None:
        if self._is_over:
            return
        try:
            message = self._inbound.add(data, is_last=is_last)
        except MessageTooLargeError as error:
            self._drop_here(status(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)))
            return
        if message is not None:
            self._inbox.append(message)
            if self._initial is None:
                self._initial = _NO_METADATA

    def _ends(self, final: grpc.aio.AioRpcError) -> None:
        if self._inbox:
            self._behind = self._behind or final
            self._has_news.set()
        else:
            self.end(final)

    def lost(self, broken: grpc.aio.AioRpcError) -> None:
        """The connection has ended with that status."""
        self.end(broken if self._opening.is_taken else not_sent(broken))

    def end(self, final: grpc.aio.AioRpcError) -> None:
        """The call has this status now; messages that were not read are gone."""
        if self.final is not None:
            return
        self.final = final
        self._inbox.clear()
        self._sender.drop_long(self.call_id)
        self._has_news.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    # -- inside -----------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        """Whether the other end takes no more messages."""
        return self.final is not None or self._behind is not None

    def _final_or_cancelled(self) -> grpc.aio.AioRpcError:
        final = self.final or self._behind
        assert final is not None
        if self._is_cancelled_here:
            raise asyncio.CancelledError
        return final

    async def _until_may_send(self) -> None:
        while not (self._is_over or (self._credit.may_send and self._sender.has_room)):
            if not self._sender.has_room:
                self._sender.at_room(self._has_news.set)
            self._has_news.clear()
            await self._has_news.wait()

    def _send(self, data: bytes, ticket: Ticket) -> None:
        self._credit.sent(len(data))
        self._sender.push_message(self.call_id, data, ticket)

    def _give_back(self, num_bytes: int) -> None:
        credit_bytes = self._inbound.taken(num_bytes)
        if credit_bytes and not self._is_over:
            self._sender.push(Frame(call_id=self.call_id, credit_bytes=credit_bytes))

    def _drop_here(self, final: grpc.aio.AioRpcError) -> None:
        """Ends the call from this side."""
        has_ended_there = self._behind is not None
        self.end(final)
        self._sender.drop(self.call_id)
        if self._opening.is_taken and not has_ended_there:
            self._sender.push(Frame(call_id=self.call_id, cancel=CallCancel()))

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._has_news.clear()
            await self._has_news.wait()
