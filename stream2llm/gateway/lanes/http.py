"""POST /v1/responses for what a lane serves: prepared, continued and stored responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from openai.types import responses as oai
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from stream2llm.api.events import Event
from stream2llm.client.stream import AnswerStream
from stream2llm.gateway.answering import AnswerResponse, while_connected
from stream2llm.gateway.lanes.forms import LaneForm
from stream2llm.gateway.lanes.requests import CreateRequest
from stream2llm.gateway.lanes.session import Open
from stream2llm.gateway.lanes.stored import LaneStore, StoredLane

SSE = "text/event-stream"


async def lane_response(
    request: Request,
    body: CreateRequest,
    store: LaneStore,
    stored: StoredLane,
    open_session: Open,
) -> Response:
    """The response to a request of a lane in use, which it releases."""
    try:
        await while_connected(request, stored.lock.acquire())
    except BaseException:
        store.release(stored)
        raise
    use = _Use(store, stored)
    try:
        form = await while_connected(request, stored.lane.begin(body, open_session))
        if not body.generates:
            return _prepared(form, streams=bool(body.stream))
        events = stored.lane.answer()
        if body.stream:
            return _LaneAnswer(form, events, use.handed_on())
        answer = await while_connected(request, AnswerStream(events).answer())
        return _whole(form.whole(answer))
    finally:
        use.end()


class _Use:
    """The use of a lane, whose end may be handed on to a response that is still to be sent."""

    def __init__(self, store: LaneStore, stored: StoredLane) -> None:
        self._store = store
        self._stored = stored
        self._is_mine = True

    def handed_on(self) -> _Use:
        """The use from now on."""
        self._is_mine = False
        return _Use(self._store, self._stored)

    def end(self) -> None:
        """Lets the next request in; does nothing when it was handed on."""
        if self._is_mine:
            self._is_mine = False
            self._stored.lock.release()
            self._store.release(self._stored)


class _LaneAnswer(AnswerResponse):
    """An answer as server-sent events, with which the use of the lane ends."""

    def __init__(self, form: LaneForm, events: AsyncGenerator[Event, None], use: _Use) -> None:
        super().__init__(form, events, _named(form.response_id))
        self._use = use

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._use.end()


def _prepared(form: LaneForm, *, streams: bool) -> Response:
    if streams:
        return StreamingResponse(
            _all(form.prepared()), media_type=SSE, headers=_named(form.response_id)
        )
    return _whole(form.prepared_response())


async def _all(pieces: Iterable[str]) -> AsyncGenerator[str, None]:
    for piece in pieces:
        yield piece


def _whole(response: oai.Response) -> Response:
    text = response.model_dump_json(exclude_unset=True, by_alias=True)
    return Response(text, media_type="application/json", headers=_named(response.id))


def _named(response_id: str) -> dict[str, str]:
    return {"X-Request-Id": response_id}
