"""One request to a router: its admission first, which decides the status, then the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from stream2llm.api.errors import InternalError, Stream2LLMError
from stream2llm.api.events import Accepted, Event
from stream2llm.client.stream import AnswerStream
from stream2llm.gateway.forms import Form
from stream2llm.gateway.middleware import CLIENT_LEFT

_log = logging.getLogger(__name__)
T = TypeVar("T")
Events = AsyncGenerator[Event, None]


class ClientLeftError(Exception):
    """The client has closed its connection."""


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Awaits `work` as long as the client is there; raises ClientLeftError when it has left.

    For a request whose body has been read.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def respond(
    request: Request,
    events: Events,
    make_form: Callable[[Accepted], Form],
    *,
    streams: bool,
    headers: Mapping[str, str],
) -> Response:
    """The response to a request with these events; raises what refuses it.

    The router's refusals come before the first byte, so that they have a status of their own.
    """
    try:
        first = await while_connected(request, anext(events))
        if not isinstance(first, Accepted):
            raise InternalError("the router answered before it admitted the request")
        form = make_form(first)
        if streams:
            return AnswerResponse(form, events, headers)
        answers = AnswerStream(events).answers()
        whole = form.whole(*await while_connected(request, answers))
    except BaseException:
        await events.aclose()
        raise
    content = whole.model_dump_json(exclude_unset=True, by_alias=True)
    return Response(content, media_type="application/json", headers=headers)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class AnswerResponse(StreamingResponse):
    """An answer as server-sent events; its session ends with the response, however that ends."""

    def __init__(self, form: Form, events: Events, headers: Mapping[str, str]) -> None:
        super().__init__(
            _pieces(form, events),
            media_type="text/event-stream",
            # Proxies that buffer would make one piece of all.
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers},
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


async def _pieces(form: Form, events: Events) -> AsyncGenerator[str, None]:
    for piece in form.begin():
        yield piece
    try:
        async for event in events:
            for piece in form.pieces(event):
                yield piece
    except Stream2LLMError as error:
        for piece in form.failed(error):
            yield piece
    except Exception:  # the status has been sent: the client must hear of it all the same
        _log.exception("answer_failed")
        for piece in form.failed(InternalError("the gateway failed")):
            yield piece


def unsent() -> Response:
    """The response to a client that has left: only its status counts, in the metrics."""
    return Response(status_code=CLIENT_LEFT)
