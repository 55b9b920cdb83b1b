"""One WebSocket: reads its events, runs its lanes side by side, and ends them with it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from stream2llm.api.errors import (
    InternalError,
    InvalidRequestError,
    OverloadedError,
    Stream2LLMError,
)
from stream2llm.api.events import Progress
from stream2llm.api.tasks import TaskGroup
from stream2llm.gateway.errors import invalid_parameter
from stream2llm.gateway.lanes.forms import (
    LaneForm,
    error_event,
    progress_event,
    steer_failed,
    written,
)
from stream2llm.gateway.lanes.lane import Lane, LaneGroup
from stream2llm.gateway.lanes.requests import CreateRequest, create_request

_log = logging.getLogger(__name__)
# Requests of one lane that wait for the one under way.
_MAX_WAITING = 64
# Codes after which clients open another connection: this one has lasted as long as it may, or
# the gateway is draining.
_GOING_AWAY, _SERVICE_RESTART = 1001, 1012


class ResponsesSocket:
    """An accepted connection. Call `run` once."""

    def __init__(self, socket: WebSocket, group: LaneGroup, limit_s: float) -> None:
        """After `limit_s` seconds no request is taken any more."""
        self._socket = socket
        self._group = group
        self._limit_s = limit_s
        self._workers: dict[str, _Worker] = {}
        # Characters of requests that are not served yet.
        self._num_waiting_chars = 0
        self._sending = asyncio.Lock()
        self._reading: asyncio.Timeout | None = None
        self._is_draining = False
        self._has_left = False

    def drain(self) -> None:
        """Takes no more requests, and closes after those that were taken."""
        self._is_draining = True
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Returns when the client has left, or the connection has lasted as long as it may."""
        try:
            async with TaskGroup() as tasks:
                await self._serve(tasks)
        except* WebSocketDisconnect:
            pass  # the client has left while it was sent something
        finally:
            self._count(-self._num_waiting_chars)
            self._group.forget()
            for worker in self._workers.values():
                await worker.lane.close()

    async def _serve(self, tasks: TaskGroup) -> None:
        try:
            limit_s = 0.0 if self._is_draining else self._limit_s
            async with asyncio.timeout(limit_s) as self._reading:
                while (text := await self._received()) is not None:
                    await self._take(text, tasks)
        except TimeoutError:
            await self._close()
        finally:
            self._reading = None
        for worker in self._workers.values():
            worker.stop()

    async def _close(self) -> None:
        if not self._is_draining:
            await self._send(error_event(_limit_reached(self._limit_s)))
        for worker in self._workers.values():
            await worker.finish()
        await self._socket.close(_SERVICE_RESTART if self._is_draining else _GOING_AWAY)

    async def _received(self) -> str | None:
        """The next message; None when the client has left."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            self._has_left = True
            return None
        text: str | None = message.get("text")
        return message["bytes"].decode(errors="replace") if text is None else text

    async def _take(self, text: str, tasks: TaskGroup) -> None:
        stream_id: str | None = None
        try:
            event = _parsed(text)
            stream_id = _lane_of(event)
            await self._dispatch(event, stream_id, len(text), tasks)
        except ValidationError as error:
            await self._send(error_event(invalid_parameter(error.errors()[0]), stream_id))
        except Stream2LLMError as error:
            await self._send(error_event(error, stream_id))

    async def _dispatch(
        self,
        event: dict[str, Any],
        stream_id: str | None,
        num_chars: int,
        tasks: TaskGroup,
    ) -> None:
        match event.get("type"):
            case "response.create":
                request = create_request(event)
                await self._group.memory.ensure(num_chars)
                self._worker(stream_id or "", tasks).put(_Taken(request, num_chars))
                self._count(num_chars)
            case "response.cancel":
                worker = self._workers.get(stream_id or "")
                if worker is not None:
                    worker.cancel(event.get("response_id"))
            case "response.steer":
                await self._send(steer_failed(event))
            case other:
                raise InvalidRequestError(f"unknown event type {other!r}", field="type")

    def _worker(self, lane: str, tasks: TaskGroup) -> _Worker:
        if lane not in self._workers:
            most = self._group.lanes.limits.max_lanes
            if len(self._workers) >= most:
                message = f"{most} lanes are in use, which is the limit of a connection"
                raise OverloadedError(message, reason="TOO_MANY_LANES")
            served = Lane(lane, self._group, written, self._send_progress)
            self._workers[lane] = _Worker(served, self._send, self._served)
            self._workers[lane].start(tasks)
        return self._workers[lane]

    def _served(self, taken: _Taken) -> None:
        self._count(-taken.num_chars)

    def _count(self, num_chars: int) -> None:
        self._num_waiting_chars += num_chars
        self._group.memory.add(num_chars)

    async def _send_progress(
        self, request: CreateRequest, response_id: str, progress: Progress
    ) -> None:
        await self._send(progress_event(progress, response_id, request.stream_id))

    async def _send(self, text: str) -> None:
        async with self._sending:
            if self._has_left:
                raise WebSocketDisconnect
            await self._socket.send_text(text)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A request, and the characters of its event."""

    request: CreateRequest
    num_chars: int


class _Worker:
    """Serves the requests of a lane in their order."""

    def __init__(
        self,
        lane: Lane,
        send: Callable[[str], Awaitable[None]],
        on_served: Callable[[_Taken], None],
    ) -> None:
        self.lane = lane
        self._send = send
        self._on_served = on_served
        self._waiting: asyncio.Queue[_Taken | None] = asyncio.Queue()
        self._running: asyncio.Task[None] | None = None
        self._present: asyncio.Task[None] | None = None
        # Writes the response under way, once its client has its id.
        self._form: LaneForm | None = None

    def start(self, tasks: TaskGroup) -> None:
        """Begins to serve, in a task of the group."""
        self._running = tasks.create_task(self._run(tasks))

    def put(self, taken: _Taken) -> None:
        """Takes a request; raises OverloadedError while too many wait."""
        if self._waiting.qsize() >= _MAX_WAITING:
            message = f"{_MAX_WAITING} requests of this lane wait already"
            raise OverloadedError(message, reason="TOO_MANY_REQUESTS")
        self._waiting.put_nowait(taken)

    def cancel(self, response_id: object) -> None:
        """Ends the response under way, if it is this one; None: whatever it is."""
        if self._present is not None and response_id in (None, self.lane.response_id):
            self._present.cancel()

    async def finish(self) -> None:
        """Returns when what was taken is served."""
        self._waiting.put_nowait(None)
        if self._running is not None:
            await asyncio.wait({self._running})

    def stop(self) -> None:
        """Ends what is under way."""
        if self._running is not None:
            self._running.cancel()

    async def _run(self, tasks: TaskGroup) -> None:
        while (taken := await self._waiting.get()) is not None:
            self._present = tasks.create_task(self._serve(taken.request))
            try:
                await asyncio.wait({self._present})
            finally:
                self._present.cancel()
            self._on_served(taken)
            if self._present.cancelled():
                await self._send_all(self._cancelled(taken.request))

    async def _serve(self, request: CreateRequest) -> None:
        self._form = None
        try:
            self._form = form = await self.lane.begin(request)
            if request.generates:
                await self._answer(form)
            else:
                await self._send_all(form.prepared())
        except Stream2LLMError as error:
            await self._send(error_event(error, request.stream_id, request.parameter_names()))
        except WebSocketDisconnect:
            raise
        except Exception:
            _log.exception("response_failed")
            failure = InternalError("the gateway failed; its log says why")
            await self._send(error_event(failure, request.stream_id))

    def _cancelled(self, request: CreateRequest) -> Iterable[str]:
        if self._form is not None:
            return self._form.cancelled()
        error = InvalidRequestError("the request was cancelled", reason="CANCELLED")
        return [error_event(error, request.stream_id)]

    async def _answer(self, form: LaneForm) -> None:
        await self._send_all(form.begin())
        try:
            async with aclosing(self.lane.answer()) as events:
                async for event in events:
                    await self._send_all(form.pieces(event))
        except Stream2LLMError as error:
            await self._send_all(form.failed(error))

    async def _send_all(self, events: Iterable[str]) -> None:
        for event in events:
            await self._send(event)


def _parsed(text: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"the event is no JSON: {error}") from None
    if not isinstance(event, dict):
        raise InvalidRequestError("an event is a JSON object")
    return event


def _lane_of(event: dict[str, Any]) -> str | None:
    stream_id = event.get("stream_id")
    if stream_id is not None and not (isinstance(stream_id, str) and 0 < len(stream_id) <= 256):
        raise InvalidRequestError("stream_id is no text of 1 to 256 characters", field="stream_id")
    return stream_id


def _limit_reached(limit_s: float) -> InvalidRequestError:
    return InvalidRequestError(
        f"Responses websocket connection limit reached ({limit_s / 60:g} minutes)."
        " Create a new websocket connection to continue.",
        reason="WEBSOCKET_CONNECTION_LIMIT_REACHED",
    )
