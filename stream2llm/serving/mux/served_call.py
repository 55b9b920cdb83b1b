"""A call at the side that serves it: its handler's context, and the stream of its requests.

As in grpc.aio the handler is cancelled when its peer has left. Other than there, a handler may
write whatever its tasks do meanwhile: a message is sent whole or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError

from stream2llm.api.call_metadata import Metadata
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.rpc_status import abort
from stream2llm.api.v1.worker_pb2 import CallEnd, CallMetadata, CallOpening, Frame
from stream2llm.serving.mux.flow import Inbound, MessageTooLargeError, ProtocolError, SendCredit
from stream2llm.serving.mux.outbox import Ticket
from stream2llm.serving.mux.sender import Sender
from stream2llm.serving.mux.statuses import end_of, entries, pairs
from stream2llm.serving.rpc.stream_writer import PeerGoneError
from stream2llm.serving.rpc.undecodable import not_decodable

_log = logging.getLogger(__name__)


class MessageWriter(Protocol):
    """What a handler writes to; see `ServedCall.write`."""

    async def write(self, message: Any) -> None:
        """Sends a message; raises PeerGoneError."""


class ServedCall:
    """One call; its connection passes it the frames that come for it."""

    def __init__(
        self, call_id: int, opening: CallOpening, sender: Sender, max_message_bytes: int
    ) -> None:
        self.call_id = call_id
        self._opening = opening
        self._sender = sender
        self._credit, self._inbound = SendCredit(), Inbound(max_message_bytes)
        self._inbox: deque[bytes] = deque()
        self._has_news = asyncio.Event()
        self._is_half_closed = self._is_cancelled = self._has_ended = False
        self._is_task_cancelled = False
        self._handler: Any = None
        # Serves the call.
        self.task: asyncio.Task[None]

    # -- from the connection ----------------------------------------------------------

    def begin(self, handler: Any) -> None:
        """Serves the call by a method's handler; None: there is no such method."""
        self._handler = handler
        self.task = asyncio.create_task(self._serve())

    def receive(self, frame: Frame, kind: str | None) -> None:
        """Takes a frame; raises ProtocolError."""
        match kind:
            case "message" | "piece":
                self._receive(frame.message or frame.piece, is_last=kind == "message")
            case "half_close":
                self._is_half_closed = True
            case "cancel":
                self.break_off()
            case "credit_bytes":
                self._credit.granted(frame.credit_bytes)
            case _:
                raise ProtocolError(f"{kind} is nothing that a router sends")
        self._has_news.set()

    def _receive(self, data: bytes, *, is_last: bool) -> None:
        if self._is_half_closed:
            raise ProtocolError("a message behind the last one")
        if self._is_cancelled:
            return
        try:
            message = self._inbound.add(data, is_last=is_last)
        except MessageTooLargeError as error:
            self.break_off()
            end = end_of(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            self._sender.push(Frame(call_id=self.call_id, end=end))
            return
        if message is not None:
            self._inbox.append(message)

    def break_off(self) -> None:
        """The peer has left: cancels the handler, when it has had what came before."""
        if not self._is_cancelled:
            self._is_cancelled = True
            self._sender.drop_long(self.call_id)
            self._has_news.set()
            # Behind the step that a message in the same batch has made ready, or the opening: a
            # task that is cancelled before its first step does not run at all.
            asyncio.get_running_loop().call_soon(self._cancel_task)

    def _cancel_task(self) -> None:
        self._is_task_cancelled = True
        self.task.cancel()

    # -- the context that the handler gets --------------------------------------------

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        """That with which the call was opened."""
        return pairs(self._opening.metadata)

    def cancelled(self) -> bool:
        """Whether the peer has left."""
        return self._is_cancelled

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Returns when gRPC has taken it; raises PeerGoneError."""
        sent, initial = Ticket(self._has_news.set), CallMetadata(metadata=entries(metadata))
        self._push(Frame(call_id=self.call_id, initial_metadata=initial), sent)
        await self._until(lambda: sent.is_sent or self._is_cancelled)
        self._require_peer()

    async def write(self, message: Any) -> None:
        """Sends a message as soon as the peer has room for it; raises PeerGoneError."""
        data = self._handler.response_serializer(message)
        while not (self._is_cancelled or (self._credit.may_send and self._sender.has_room)):
            if not self._sender.has_room:
                self._sender.at_room(self._has_news.set)
            self._has_news.clear()
            await self._has_news.wait()
        self._require_peer()
        self._credit.sent(len(data))
        self._sender.push_message(self.call_id, data)

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> NoReturn:
        """Ends the call with a status; raises AbortError, which the handler lets pass."""
        self._end(end_of(code, details, trailing_metadata))
        raise grpc.aio.AbortError

    async def abort_with_status(self, final: grpc.Status) -> NoReturn:
        """The same with a status that has everything."""
        await self.abort(final.code, final.details, final.trailing_metadata)

    def __aiter__(self) -> ServedCall:
        return self

    async def __anext__(self) -> Any:
        """The next request; raises InvalidRequestError for bytes that are none.

        A peer that has left ends the stream no earlier than the handler is cancelled.
        """
        while not (self._inbox or self._is_half_closed):
            if self._is_task_cancelled:
                raise PeerGoneError
            self._has_news.clear()
            await self._has_news.wait()
        if not self._inbox:
            raise StopAsyncIteration
        data = self._inbox.popleft()
        credit_bytes = self._inbound.taken(len(data))
        if credit_bytes:
            self._push(Frame(call_id=self.call_id, credit_bytes=credit_bytes))
        try:
            return self._handler.request_deserializer(data)
        except DecodeError as error:
            raise not_decodable(error) from error

    # -- inside -----------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            await self._handled()
            self._end(end_of(grpc.StatusCode.OK))
        except (grpc.aio.AbortError, PeerGoneError):
            return  # the peer has its status, or has left
        except asyncio.CancelledError:
            self._end(end_of(grpc.StatusCode.CANCELLED, "the worker has cancelled the call"))
        except Exception as error:
            _log.exception("handler_raised method=%s", self._opening.method)
            # As grpc.aio says it.
            unexpected = f"Unexpected {type(error)}: {error}"
            self._end(end_of(grpc.StatusCode.UNKNOWN, unexpected))

    async def _handled(self) -> None:
        handler = self._handler
        if handler is None:
            await self.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        elif handler.request_streaming:
            await handler.stream_stream(self, self)
        else:
            await handler.unary_stream(await self._only_request(), self)

    async def _only_request(self) -> Any:
        try:
            request = await anext(self, None)
        except InvalidRequestError as error:
            await abort(self, error)
        if request is None:
            await abort(self, InvalidRequestError("there is no request", reason="NO_MESSAGE"))
        return request

    def _end(self, end: CallEnd) -> None:
        """Sends the status, behind all messages; the first one counts."""
        if not self._has_ended:
            self._push(Frame(call_id=self.call_id, end=end))
            self._has_ended = True

    def _push(self, frame: Frame, ticket: Ticket | None = None) -> None:
        if not (self._is_cancelled or self._has_ended):
            self._sender.push(frame, ticket)

    def _require_peer(self) -> None:
        if self._is_cancelled:
            raise PeerGoneError

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._has_news.clear()
            await self._has_news.wait()
