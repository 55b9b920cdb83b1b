"""One lane at work: its requests become changes of its session, and an answer where one is asked for."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from router.arrangement import Arrangement
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.events import Event, Finished, ModelInfo, Progress
from stream2llm.api.requests import ChatMessage
from stream2llm.client.stream import Gathered
from stream2llm.gateway.answer_parsers import AnswerParsers
from stream2llm.gateway.forms import Opening
from stream2llm.gateway.lanes.conversation import Given
from stream2llm.gateway.lanes.forms import LaneForm, Write
from stream2llm.gateway.lanes.memory import Memory
from stream2llm.gateway.lanes.rendering import Rendered, Rendering
from stream2llm.gateway.lanes.requests import CreateRequest
from stream2llm.gateway.lanes.session import LaneSession, Open
from stream2llm.gateway.lanes.state import (
    RESPONSE_CHARS,
    Kept,
    Kind,
    LaneLimits,
    LaneName,
    Lanes,
    Step,
)
from stream2llm.gateway.parsing import Parsing
from stream2llm.serving.system.clock import Clock

# Takes the progress of a response, by its request and its id.
OnProgress = Callable[[CreateRequest, str, Progress], Awaitable[None]]


class KeptElsewhere(Protocol):
    """Responses of one caller that outlive a connection."""

    def find(self, response_id: str) -> Kept | None:
        """The response with this id; None if there is none."""

    async def keep(self, response: Kept, group: LaneGroup) -> None:
        """Keeps a response of a group's lane."""


class LaneGroup:
    """What lanes that know each other's responses share."""

    def __init__(
        self,
        rendering: Rendering,
        parsers: AnswerParsers,
        info: ModelInfo,
        open_session: Open,
        clock: Clock,
        limits: LaneLimits,
        memory: Memory,
        kept: KeptElsewhere | None = None,
    ) -> None:
        """`kept` has what outlives the group; None: nothing does. Call `forget` at the end."""
        self.rendering = rendering
        self.parsers = parsers
        self.info = info
        self.open_session = open_session
        self.clock = clock
        self.memory = memory
        self.kept = kept
        self._lanes = Lanes(limits)

    @property
    def lanes(self) -> Lanes:
        """The responses of its lanes, which the memory counts."""
        return self._lanes

    @lanes.setter
    def lanes(self, lanes: Lanes) -> None:
        self.memory.add(lanes.size_chars - self._lanes.size_chars)
        self._lanes = lanes

    def forget(self) -> None:
        """Forgets all responses."""
        self.lanes = Lanes(self._lanes.limits)

    def alike(self, limits: LaneLimits, memory: Memory) -> LaneGroup:
        """Another group of the same caller."""
        return LaneGroup(
            self.rendering,
            self.parsers,
            self.info,
            self.open_session,
            self.clock,
            limits,
            memory,
        )


@dataclass(frozen=True, slots=True)
class _Response:
    """The response under way, or the last one."""

    request: CreateRequest
    id: str
    step: Step


class Lane:
    """Serves one request after the other: `begin`, and `answer` where one is asked for."""

    def __init__(
        self, name: LaneName, group: LaneGroup, write: Write, on_progress: OnProgress | None
    ) -> None:
        """`write` is the form of its events; None: progress is not reported."""
        self._name = name
        self._group = group
        self._write = write
        self._report = on_progress
        self._session = LaneSession(group.open_session, self._on_progress)
        self._layout = Arrangement()
        self._response: _Response | None = None
        # Has the answer under way, or the last one.
        self._form: LaneForm | None = None

    @property
    def response_id(self) -> str | None:
        """The response under way, or the last one; None before the first."""
        return None if self._response is None else self._response.id

    async def begin(self, request: CreateRequest, open_session: Open | None = None) -> LaneForm:
        """Makes the session's sequence that of the request; raises what refuses it.

        A response without an answer is complete then. `open_session` opens sessions from now
        on, with what this request shows to the router; None: they are opened as before.
        """
        group = self._group
        if open_session is not None:
            self._session.open_session = open_session
        given = request.given()
        await group.memory.ensure(RESPONSE_CHARS + given.num_chars)
        step = self._step(request, given)
        self._response = response = _Response(request, f"resp_{uuid.uuid4().hex}", step)
        parsing = await self._parsing(step, request)
        rendered = await self._rendered(step, request)
        change = await self._session.become(
            request.opened_with(parsing), rendered.parts, seals=request.generates
        )
        self._layout = rendered.layout
        opening = Opening(response.id, int(group.clock.wall_s()), self._session.model, parsing)
        self._form = form = LaneForm(request, opening, step, change, self._write)
        if not request.generates:
            await self._commit(response, None)
        return form

    async def answer(self) -> AsyncGenerator[Event, None]:
        """Seals the sequence; yields the answer's events. Once after each `begin`.

        The form that `begin` has returned takes each of them before the next.
        """
        assert self._response is not None, "begin comes first"
        assert self._form is not None, "begin comes first"
        gathered = Gathered()
        async with aclosing(self._session.answer()) as events:
            async for event in events:
                gathered.add(event)
                if isinstance(event, Progress):
                    await self._on_progress(event)
                elif isinstance(event, Finished):  # before the client can continue from it
                    await self._commit(self._response, self._form.turns(gathered.answer()))
                yield event

    async def close(self) -> None:
        """Ends its session."""
        await self._session.close()

    async def _parsing(self, step: Step, request: CreateRequest) -> Parsing:
        """How the answer is parsed, were it to begin now."""
        chat = step.conversation.chat(request.first_chat(), begins_answer=True)
        return await self._group.parsers.parsing(request, chat)

    async def _rendered(self, step: Step, request: CreateRequest) -> Rendered:
        layout = self._layout
        if step.kind is Kind.FORK and step.base is not None:
            layout = step.base.layout
        rendered = await self._group.rendering.rendered(
            step.conversation, request.first_chat(), layout, begins_answer=request.generates
        )
        limit = self._group.info.max_prompt_tokens
        if limit and rendered.num_tokens > limit:
            raise InvalidRequestError(
                f"the context has {rendered.num_tokens} tokens; at most {limit} are possible",
                reason="CONTEXT_TOO_LONG",
                field="input",
            )
        return rendered

    def _step(self, request: CreateRequest, given: Given) -> Step:
        group, previous = self._group, request.previous_response_id
        stored = None
        if group.kept is not None and previous is not None:
            stored = group.kept.find(previous)
        return group.lanes.step(self._name, previous, given, stored)

    async def _commit(self, response: _Response, answer: tuple[ChatMessage, ...] | None) -> None:
        group = self._group
        group.lanes = group.lanes.committed(response.step, response.id, answer, self._layout)
        newest = group.lanes.find(response.id)
        if response.request.store and group.kept is not None and newest is not None:
            await group.kept.keep(newest, group)

    async def _on_progress(self, progress: Progress) -> None:
        response = self._response
        if self._report is not None and response is not None and response.request.wants_progress:
            await self._report(response.request, response.id, progress)
