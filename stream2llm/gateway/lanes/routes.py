"""The routes of lanes, and what all connections share: the model's tokenizer, loaded once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from router.text_input import TextInput
from stream2llm.api.call_metadata import Metadata
from stream2llm.api.errors import (
    NotPermittedError,
    Stream2LLMError,
    UnsupportedError,
)
from stream2llm.client import AsyncSession
from stream2llm.gateway.app import GatewayParts, answer
from stream2llm.gateway.calls import metadata_of
from stream2llm.gateway.lanes.http import lane_response
from stream2llm.gateway.lanes.lane import LaneGroup
from stream2llm.gateway.lanes.rendering import RememberingEncoder, Rendering
from stream2llm.gateway.lanes.requests import CreateRequest, OpenedWith
from stream2llm.gateway.lanes.socket import ResponsesSocket
from stream2llm.gateway.lanes.state import LaneLimits
from stream2llm.gateway.lanes.stored import CallerStore, LaneStore, StoreLimits
from stream2llm.gateway.middleware import error_response
from stream2llm.gateway.model_tokenizer import SharedTokenizer
from stream2llm.gateway.responses import ResponseForm
from stream2llm.serving.system.clock import Clock


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """Limits of connections, and of callers without one."""

    # Limits of one connection.
    lanes: LaneLimits = field(default_factory=LaneLimits)
    # As long as OpenAI's.
    duration_s: float = 3600.0
    store: StoreLimits = field(default_factory=StoreLimits)


class LanesRoom:
    """What all connections share. Call `close` at the end."""

    def __init__(
        self, tokenizer: SharedTokenizer, clock: Clock, limits: RoomLimits = RoomLimits()
    ) -> None:
        """The model's tokenizer is read when the first client comes."""
        self.limits = limits
        self.store = LaneStore(limits.store, clock)
        self._tokenizer = tokenizer
        self._sockets: set[ResponsesSocket] = set()
        self._is_draining = False
        self._loading = asyncio.Lock()
        self._text: TextInput | None = None
        self._rendering: Rendering | None = None

    async def group(
        self,
        parts: GatewayParts,
        metadata: Metadata,
        limits: LaneLimits,
        kept: CallerStore | None = None,
    ) -> LaneGroup:
        """Returns new lanes for a caller; raises where the router does not know the caller."""
        info = await parts.clients.present().model_info(metadata=metadata)

        def opened(opened_with: OpenedWith) -> AsyncSession:
            return parts.clients.present().session(
                prefix=[],  # no begin token of its own: the pieces have it
                sampling=opened_with.sampling,
                model=opened_with.model,
                ttft_slo_ms=opened_with.ttft_slo_ms,
                metadata=metadata,
            )

        rendering = await self._rendering_for(info.max_model_len)
        return LaneGroup(rendering, parts.parsers, info, opened, parts.clock, limits, kept)

    async def serve(self, socket: ResponsesSocket) -> None:
        """Serves an accepted connection to its end."""
        self._sockets.add(socket)
        if self._is_draining:
            socket.drain()
        try:
            await socket.run()
        finally:
            self._sockets.discard(socket)

    def drain(self) -> None:
        """Lets connections end after the requests that they have sent."""
        self._is_draining = True
        for socket in self._sockets:
            socket.drain()

    async def close(self) -> None:
        """Ends the sessions of callers without a connection, and frees the tokenizer's threads."""
        await self.store.close()
        if self._text is not None:
            self._text.close()

    async def _rendering_for(self, max_model_len: int) -> Rendering:
        async with self._loading:
            if self._rendering is None:
                tokenizer = await self._tokenizer.get()
                tokenizer.encoder = RememberingEncoder(tokenizer.encoder)
                self._text = TextInput(tokenizer, max_model_len)
                self._rendering = Rendering(self._text)
            return self._rendering


def lanes_routes(room: LanesRoom) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.websocket("/v1/responses")
    async def responses(socket: WebSocket) -> None:
        parts: GatewayParts = socket.app.state.parts
        try:
            _check_origin(socket)
            metadata = metadata_of(socket, parts.guard)
            kept = room.store.of(metadata)
            group = await room.group(parts, metadata, room.limits.lanes, kept)
        except Stream2LLMError as error:
            await socket.send_denial_response(error_response(error))
            return
        await socket.accept()
        await room.serve(ResponsesSocket(socket, group, room.limits.duration_s))

    @routes.post("/v1/responses")
    async def response_or_lane(body: CreateRequest, request: Request) -> Response:
        parts: GatewayParts = request.app.state.parts
        request.state.names = body.parameter_names()
        if body.stream_id is not None:
            raise UnsupportedError("stream_id is of WebSockets alone", field="stream_id")
        if not body.is_of_lane:
            return await answer(parts, request, body, "resp_", ResponseForm)
        body.check_lane()
        metadata, previous = metadata_of(request, parts.guard), body.previous_response_id
        lane = await room.store.lane(metadata, previous, partial(room.group, parts))
        return await lane_response(request, body, room.store, lane)

    return routes


def _check_origin(socket: WebSocket) -> None:
    """Refuses pages of other sites: browsers let any page open a socket, and CORS is off."""
    origin = socket.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != socket.headers.get("host"):
        raise NotPermittedError(f"pages of {origin} may not connect", reason="FOREIGN_ORIGIN")
