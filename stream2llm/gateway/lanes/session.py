"""The session of a lane at a router: it has a part of the lane's sequence, or is opened anew."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing

from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Event, Progress, TokenDelta
from stream2llm.client import AsyncSession
from stream2llm.gateway.lanes.pieces import Change, Sent, change_to
from stream2llm.gateway.lanes.requests import OpenedWith
from stream2llm.serving.sessions.prefix import Tokens

Open = Callable[[OpenedWith], AbstractAsyncContextManager[AsyncSession]]
OnProgress = Callable[[Progress], Awaitable[None]]
_log = logging.getLogger(__name__)
# Reasons of a router to end an unsealed session, which may cross with a seal.
_ENDED_BY_TIME = frozenset({"INPUT_IDLE", "SESSION_TOO_LONG"})


class LaneSession:
    """At most one open session; used by one task at a time."""

    def __init__(self, open_session: Open, on_progress: OnProgress) -> None:
        """`on_progress` is called while the context streams in."""
        self.open_session = open_session
        self._on_progress = on_progress
        self._stack = AsyncExitStack()
        self._session: AsyncSession | None = None
        self._watching: asyncio.Task[None] | None = None
        self._opened_with: OpenedWith | None = None
        self._sent = Sent()
        # What the seal brings, and whether the session was open before that was asked for.
        self._last: Change | None = None
        self._was_open = False

    @property
    def model(self) -> str:
        """The served model's name, while a session is open."""
        return "" if self._session is None else self._session.model

    async def become(
        self, opened_with: OpenedWith, parts: Sequence[Tokens], *, seals: bool
    ) -> Change:
        """Makes the sequence that of `parts`; raises the router's refusal.

        A session that has ended meanwhile, as an idle one does, is opened anew, and so is one
        that was opened with other parameters: the whole sequence is sent to it. With `seals`
        the router gets the change with the seal of `answer`, which has to follow.
        """
        has_ended = self._watching is not None and self._watching.done()
        if has_ended or self._opened_with != opened_with:
            await self.close()
        was_open = self._was_open = self._session is not None
        try:
            return await self._changed(opened_with, parts, seals=seals)
        except Stream2LLMError as error:
            if not was_open:
                raise
            _log.info("lane_session_ended reason=%s", error.reason)
        return await self._changed(opened_with, parts, seals=seals)

    async def answer(self) -> AsyncGenerator[Event, None]:
        """Seals the sequence as it is; the session ends with the answer."""
        opened_with, last = self._opened_with, self._last
        assert opened_with is not None, "become comes first"
        assert last is not None, "it was to be sealed"
        # That an open session has ended may become known only now.
        may_have_ended = self._was_open and not last.is_empty
        has_begun = False
        try:
            async with aclosing(self._sealed()) as events:
                async for event in events:
                    has_begun = has_begun or isinstance(event, TokenDelta)
                    yield event
            return
        except Stream2LLMError as error:
            if has_begun or not (may_have_ended or error.reason in _ENDED_BY_TIME):
                raise
            _log.info("lane_session_ended reason=%s", error.reason)
        await self._changed(opened_with, [last.after.sequence], seals=True)
        async with aclosing(self._sealed()) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        """Ends the session, if there is one."""
        stack, self._stack = self._stack, AsyncExitStack()
        watching, self._watching = self._watching, None
        self._session, self._opened_with, self._sent = None, None, Sent()
        self._last = None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await stack.aclose()

    async def _changed(
        self, opened_with: OpenedWith, parts: Sequence[Tokens], *, seals: bool
    ) -> Change:
        try:
            session = self._session or await self._opened(opened_with)
            change = change_to(self._sent, parts)
            self._last = change if seals else None
            if seals:
                return change
            if change.is_update:
                await session.update(change.documents)
            elif change.documents:
                await session.append(*change.documents)
        except BaseException:  # what it has is not known
            await self.close()
            raise
        self._sent = change.after
        return change

    async def _sealed(self) -> AsyncGenerator[Event, None]:
        assert self._session is not None, "it was opened by the last change"
        assert self._last is not None, "and is to be sealed"
        last, documents = self._last, self._last.documents
        try:
            sealing = (
                self._session.seal(update=documents)
                if last.is_update
                else self._session.seal(append=documents or None)
            )
            async with sealing as events:
                async for event in events:
                    yield event
        finally:
            await self.close()

    async def _opened(self, opened_with: OpenedWith) -> AsyncSession:
        self._session = await self._stack.enter_async_context(self.open_session(opened_with))
        self._opened_with = opened_with
        self._watching = asyncio.create_task(self._watch(self._session.events()))
        return self._session

    async def _watch(self, events: AsyncIterator[Event]) -> None:
        """Ends with the session; not with the seal, before which it is not looked at."""
        try:
            async for event in events:
                if isinstance(event, Progress):
                    await self._on_progress(event)
        except Stream2LLMError as error:  # the next request opens another session
            _log.info("lane_session_ended reason=%s", error.reason)
