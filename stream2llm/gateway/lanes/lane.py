"""One lane at work: its requests become changes of its session, and events for its client."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from router.arrangement import Arrangement
from stream2llm.api.errors import InvalidRequestError, Stream2LLMError
from stream2llm.api.events import Finished, ModelInfo, Progress
from stream2llm.client.stream import Gathered
from stream2llm.gateway.forms import Opening
from stream2llm.gateway.lanes.forms import LaneForm, progress_event
from stream2llm.gateway.lanes.rendering import Rendered, Rendering
from stream2llm.gateway.lanes.requests import CreateRequest
from stream2llm.gateway.lanes.session import LaneSession, Open
from stream2llm.gateway.lanes.state import Kind, LaneLimits, LaneName, Lanes, Step
from stream2llm.serving.clock import Clock

Emit = Callable[[str], Awaitable[None]]


class LaneGroup:
    """What lanes that know each other's responses share."""

    def __init__(
        self,
        rendering: Rendering,
        info: ModelInfo,
        open_session: Open,
        clock: Clock,
        limits: LaneLimits,
    ) -> None:
        self.rendering = rendering
        self.info = info
        self.open_session = open_session
        self.clock = clock
        self.lanes = Lanes(limits)


class Lane:
    """Serves one request after the other."""

    def __init__(self, name: LaneName, group: LaneGroup, emit: Emit) -> None:
        """`emit` sends what comes between responses, which is progress."""
        self._name = name
        self._group = group
        self._emit = emit
        self._session = LaneSession(group.open_session, self._on_progress)
        self._layout = Arrangement()
        # Of the request whose progress is wanted.
        self._listener: tuple[str, str | None] | None = None
        self._response_id = ""
        # None until its first event.
        self._form: LaneForm | None = None

    async def events(self, request: CreateRequest) -> AsyncGenerator[str, None]:
        """The events of one response; raises what refuses it before the first."""
        group = self._group
        step = group.lanes.step(self._name, request.previous_response_id, request.given())
        self._form, self._response_id = None, f"resp_{uuid.uuid4().hex}"
        response_id = self._response_id
        self._listener = (response_id, request.stream_id) if request.wants_progress else None
        rendered = await self._rendered(step, request)
        change = await self._session.become(request.opened_with(), rendered.parts)
        self._layout = rendered.layout
        opening = Opening(response_id, int(group.clock.wall_s()), self._session.model)
        self._form = form = LaneForm(request, opening, step, change)
        if not request.generates:
            self._commit(step, response_id, None)
            for event in form.prepared(rendered.num_tokens):
                yield event
            return
        async with aclosing(self._answer(form, step, response_id)) as events:
            async for event in events:
                yield event

    def cancelled(self) -> list[str]:
        """The events that end a response whose `events` were cancelled."""
        return [] if self._form is None else list(self._form.cancelled())

    @property
    def response_id(self) -> str:
        """The response under way, or the last one."""
        return self._response_id

    async def close(self) -> None:
        """Ends its session."""
        await self._session.close()

    async def _rendered(self, step: Step, request: CreateRequest) -> Rendered:
        layout = self._layout
        if step.kind is Kind.FORK and step.base is not None:
            layout = step.base.layout
        rendered = await self._group.rendering.rendered(
            step.conversation, request.first_turns(), layout, begins_answer=request.generates
        )
        limit = self._group.info.max_prompt_tokens
        if limit and rendered.num_tokens > limit:
            raise InvalidRequestError(
                f"the context has {rendered.num_tokens} tokens; at most {limit} are possible",
                reason="CONTEXT_TOO_LONG",
                field="input",
            )
        return rendered

    async def _answer(
        self, form: LaneForm, step: Step, response_id: str
    ) -> AsyncGenerator[str, None]:
        for piece in form.begin():
            yield piece
        gathered = Gathered()
        try:
            async with aclosing(self._session.answer()) as events:
                async for event in events:
                    gathered.add(event)
                    if isinstance(event, Progress):
                        await self._on_progress(event)
                    elif isinstance(event, Finished):  # before the client can continue from it
                        self._commit(step, response_id, gathered.answer().text)
                    for piece in form.pieces(event):
                        yield piece
        except Stream2LLMError as error:
            for piece in form.failed(error):
                yield piece

    def _commit(self, step: Step, response_id: str, answer: str | None) -> None:
        group = self._group
        group.lanes = group.lanes.committed(step, response_id, answer, self._layout)

    async def _on_progress(self, progress: Progress) -> None:
        if self._listener is not None:
            await self._emit(progress_event(progress, *self._listener))
