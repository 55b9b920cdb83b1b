"""The routes of lanes, and what all connections share: the model's tokenizer, and memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from router.text_input import TextInput
from stream2llm.api.call_metadata import TTFT_SLO_NAMES, Metadata
from stream2llm.api.errors import (
    NotPermittedError,
    OverloadedError,
    Stream2LLMError,
    UnsupportedError,
)
from stream2llm.client import AsyncSession
from stream2llm.gateway.app import GatewayParts, answer
from stream2llm.gateway.calls import admitted, metadata_of
from stream2llm.gateway.lanes.http import lane_response
from stream2llm.gateway.lanes.lane import LaneGroup
from stream2llm.gateway.lanes.memory import Memory
from stream2llm.gateway.lanes.rendering import RememberingEncoder, Rendering
from stream2llm.gateway.lanes.requests import CreateRequest, OpenedWith
from stream2llm.gateway.lanes.session import Open
from stream2llm.gateway.lanes.socket import ResponsesSocket
from stream2llm.gateway.lanes.state import LaneLimits
from stream2llm.gateway.lanes.stored import LaneStore, StoreLimits, TenantStore
from stream2llm.gateway.middleware import error_response
from stream2llm.gateway.model_tokenizer import SharedTokenizer
from stream2llm.gateway.responses import ResponseForm
from stream2llm.security.principal import Scope
from stream2llm.serving.settings.gateway_spec import GatewayLimits
from stream2llm.serving.system.clock import Clock


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """Limits of connections, and of callers without one."""

    # Limits of one connection.
    lanes: LaneLimits = field(default_factory=LaneLimits)
    # As long as OpenAI's.
    duration_s: float = 3600.0
    store: StoreLimits = field(default_factory=StoreLimits)
    max_connections: int = GatewayLimits().max_websockets
    # Characters of all.
    max_chars: int = GatewayLimits().max_conversation_chars

    @staticmethod
    def of(limits: GatewayLimits) -> RoomLimits:
        """As the configuration has them."""
        chars = limits.max_conversation_chars_per_tenant
        return RoomLimits(
            LaneLimits(max_chars=chars),
            store=StoreLimits(LaneLimits(max_lanes=limits.max_stored_lanes, max_chars=chars)),
            max_connections=limits.max_websockets,
            max_chars=limits.max_conversation_chars,
        )


class LanesRoom:
    """What all connections share. Call `close` at the end."""

    def __init__(
        self, tokenizer: SharedTokenizer, clock: Clock, limits: RoomLimits = RoomLimits()
    ) -> None:
        """The model's tokenizer is read when the first client comes."""
        self.limits = limits
        self.memory = Memory(limits.max_chars, "all clients")
        self.store = LaneStore(limits.store, clock, self.memory)
        self._num_connections = 0
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
        memory: Memory,
        kept: TenantStore | None = None,
    ) -> LaneGroup:
        """Returns new lanes for a caller; raises where the router does not know the caller."""
        info = await parts.clients.present().model_info(metadata=metadata)
        rendering = await self._rendering_for(info.max_model_len)
        opened = opener(parts, metadata)
        return LaneGroup(rendering, parts.parsers, info, opened, parts.clock, limits, memory, kept)

    @property
    def num_connections(self) -> int:
        """Connections that are open, or about to be."""
        return self._num_connections

    @contextmanager
    def connection(self) -> Iterator[None]:
        """The place of a connection; raises OverloadedError when all are taken."""
        most = self.limits.max_connections
        if self._num_connections >= most:
            raise OverloadedError(
                f"Responses websocket connection limit reached ({most} connections).",
                reason="WEBSOCKET_CONNECTION_LIMIT_REACHED",
            )
        self._num_connections += 1
        try:
            yield
        finally:
            self._num_connections -= 1

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


def opener(parts: GatewayParts, metadata: Metadata) -> Open:
    """Opens sessions with what a request shows to the router."""

    def opened(opened_with: OpenedWith) -> AsyncSession:
        return parts.clients.present().session(
            prefix=[],  # no begin token of its own: the pieces have it
            sampling=opened_with.sampling,
            model=opened_with.model,
            ttft_slo_ms=opened_with.ttft_slo_ms,
            metadata=metadata,
        )

    return opened


def lanes_routes(room: LanesRoom) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.websocket("/v1/responses")
    async def responses(socket: WebSocket) -> None:
        parts: GatewayParts = socket.app.state.parts
        with ExitStack() as place:
            try:
                place.enter_context(room.connection())
                group = await _group_of(room, parts, socket)
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
        metadata = _without_deadlines(metadata_of(request, parts.guard))
        tenant = (await admitted(request, parts.guard, Scope.SESSION)).tenant
        make_group = partial(room.group, parts, metadata)
        lane = await room.store.lane(tenant, body.previous_response_id, make_group)
        return await lane_response(request, body, room.store, lane, opener(parts, metadata))

    return routes


async def _group_of(room: LanesRoom, parts: GatewayParts, socket: WebSocket) -> LaneGroup:
    """The lanes of a new connection; raises what refuses it."""
    _check_origin(socket)
    metadata = metadata_of(socket, parts.guard)
    tenant = (await admitted(socket, parts.guard, Scope.SESSION)).tenant
    kept = room.store.of(tenant)
    return await room.group(parts, metadata, room.limits.lanes, room.memory, kept)


def _without_deadlines(metadata: Metadata) -> Metadata:
    """Without what a session cannot have that other requests go on with."""
    return tuple(pair for pair in metadata if pair[0] not in TTFT_SLO_NAMES)


def _check_origin(socket: WebSocket) -> None:
    """Refuses pages of other sites: browsers let any page open a socket, and CORS is off."""
    origin = socket.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != socket.headers.get("host"):
        raise NotPermittedError(f"pages of {origin} may not connect", reason="FOREIGN_ORIGIN")
