"""Answers undecodable request bytes with INVALID_ARGUMENT.

grpc.aio answers such bytes with UNKNOWN, the status of a broken server, and logs a
traceback for each. With this interceptor a handler gets them as an InvalidRequestError,
or is not called at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.rpc_status import abort

_OURS = "/stream2llm."
TurnedAway = Callable[[InvalidRequestError, str, str], None]


class RefuseUndecodable(grpc.aio.ServerInterceptor):
    """For servers of our services; the services of others stay as they are.

    The handlers must be coroutines that write to their context, as all of ours are.
    `turned_away` is called for a request that reaches no handler: the error, RPC and peer.
    """

    def __init__(self, turned_away: TurnedAway | None = None) -> None:
        self._turned_away = turned_away

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """Returns the handler, with a decoder that does not raise."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith(_OURS):
            return handler
        decode = _decoder(handler.request_deserializer)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _with_stream(handler.stream_stream), decode, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._with_message(handler.unary_stream, details.method),
                decode,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._with_message(handler.unary_unary, details.method),
            decode,
            handler.response_serializer,
        )

    def _with_message(
        self, handler: Callable[..., Awaitable[Any]], method: str
    ) -> Callable[..., Awaitable[Any]]:
        async def handle(request: Any, context: Any) -> Any:
            if isinstance(request, InvalidRequestError):
                if self._turned_away is not None:
                    self._turned_away(request, method.rpartition("/")[2], context.peer())
                await abort(context, request)
            return await handler(request, context)

        return handle


def _decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a decoder that returns an error as a value."""

    def decode_or_refuse(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            return not_decodable(error)

    return decode_or_refuse


def not_decodable(error: DecodeError) -> InvalidRequestError:
    """The error for the sender of bytes that are no message."""
    return InvalidRequestError(f"the message cannot be decoded: {error}", reason="NO_MESSAGE")


def _with_stream(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def handle(requests: AsyncIterator[Any], context: Any) -> Any:
        return await handler(_Messages(requests), context)

    return handle


class _Messages:
    """The messages of a stream; raises InvalidRequestError for undecodable ones.

    Not a generator: a cancelled read must leave the stream intact.
    """

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._stream = requests
        # Created with the first read: gRPC warns about an iterator that is never used.
        self._requests: AsyncIterator[Any] | None = None

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> Any:
        if self._requests is None:
            self._requests = aiter(self._stream)
        message = await anext(self._requests)
        if isinstance(message, InvalidRequestError):
            raise message
        return message
