"""The events of a session for those who read them.

They go into two bounded buffers, before and after the seal. A router that takes the
session over begins behind what has come, so a reader sees one session: `Accepted` once,
no token twice, and that the session was lost only by `Progress`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from stream2llm.api.errors import EventOrderError
from stream2llm.api.events import Accepted, Event, OversizedDocument, Progress
from stream2llm.client.received import Received

OnEvent = Callable[[Event], None]


class EventBuffer:
    """The bounded buffer between an RPC's reader and its consumer, both in the same event loop.

    A newer Progress replaces an unread one, so that a session whose events are not read
    holds two events, not thousands. A full buffer drops its oldest Progress or
    OversizedDocument: the session has both, and the reader must go on to receive credit and
    failures. When the buffer is full of tokens the reader waits, and gRPC's flow control
    slows the server down.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._events: deque[Event] = deque()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._closed = False
        self._error: BaseException | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing can be added any more."""
        return self._closed

    async def put(self, event: Event) -> None:
        """Adds an event; waits while the buffer is full. Dropped when closed."""
        if self._replaces_last(event):
            self._events[-1] = event
            return
        if len(self._events) >= self._capacity:
            self._drop_oldest_report()
        while len(self._events) >= self._capacity and not self._closed:
            self._writable.clear()
            await self._writable.wait()
        if not self._closed:
            self._events.append(event)
            self._readable.set()

    def close(self, error: BaseException | None = None) -> None:
        """Ends the iteration after what is buffered, or makes it raise `error`."""
        if not self._closed:
            self._closed, self._error = True, error
            self._readable.set()
            self._writable.set()

    def __aiter__(self) -> EventBuffer:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise self._error or StopAsyncIteration
            self._readable.clear()
            await self._readable.wait()
        self._writable.set()
        return self._events.popleft()

    def _drop_oldest_report(self) -> None:
        for index, event in enumerate(self._events):
            if isinstance(event, Progress | OversizedDocument):
                del self._events[index]
                return

    def _replaces_last(self, event: Event) -> bool:
        return (
            isinstance(event, Progress)
            and bool(self._events)
            and isinstance(self._events[-1], Progress)
        )


class CreditGate:
    """Open while there is credit; open for good, with an error, after a failure.

    Credit counts tokens, and only the server can count the tokens of a text, so the rule is
    simple: wait while the last known credit is 0, send otherwise.
    """

    def __init__(self) -> None:
        self._passable = asyncio.Event()
        self._error: BaseException | None = None

    def grant(self, credit_tokens: int) -> None:
        """Replaces the credit with the server's newest."""
        if credit_tokens > 0:
            self._passable.set()
        elif self._error is None:
            self._passable.clear()

    def fail(self, error: BaseException) -> None:
        """Ends sending; `wait` raises the first such error."""
        if self._error is None:
            self._error = error
        self._passable.set()

    async def wait(self) -> None:
        """Returns when there is credit, raises when the session has failed."""
        await self._passable.wait()
        if self._error is not None:
            raise self._error


class Inbox(Received):
    """One writer; `end` is its last call."""

    def __init__(self, on_event: OnEvent | None, num_answers: int = 1) -> None:
        super().__init__(num_answers)
        self.credit = CreditGate()
        self.before_seal = EventBuffer()
        self.after_seal = EventBuffer()
        self._on_event = on_event

    async def take(self, event: Event) -> None:
        """Takes the next event; waits while its reader is far behind."""
        if isinstance(event, Accepted | Progress):
            self.credit.grant(event.credit_tokens)
        if self.note(event):
            await self._show(event)

    async def router_lost(self) -> None:
        """The router is lost: the next one begins with nothing."""
        self.credit.grant(0)
        await self._show(self.lose_router())

    def seal(self) -> None:
        """What comes from now on belongs to the answer."""
        self.before_seal.close()

    def end(self, failure: BaseException | None) -> None:
        """Nothing comes any more."""
        self.credit.fail(failure or EventOrderError("the session has ended"))
        self.before_seal.close(failure)
        self.after_seal.close(failure)

    async def _show(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
        is_sealed = self.before_seal.closed
        await (self.after_seal if is_sealed else self.before_seal).put(event)
