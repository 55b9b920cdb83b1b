"""Reads a client's events in order.

Reads at most one event beyond the credit window, so gRPC's flow control stops a client
that ignores its credit, at the cost of its own session only. A seal needs no credit: it
brings no document, and until prefill has it, the session ranks as one without a waiting
client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from router.live_session import LiveSession
from stream2llm.api.errors import IdleTimeoutError
from stream2llm.api.requests import (
    AppendContext,
    ClientEvent,
    OpenSession,
    PlainTemplate,
    SealContext,
    UpdateContext,
)
from stream2llm.api.session import Event
from stream2llm.serving.system.light_event import LightEvent
from stream2llm.serving.system.silence import Silence, is_answered

_EVENTS: dict[type[ClientEvent], Event] = {
    OpenSession: Event.OPEN,
    AppendContext: Event.APPEND,
    UpdateContext: Event.UPDATE,
    SealContext: Event.SEAL,
}


class EventReader:
    """The client's events in order, each checked against the life cycle.

    The creator closes it: the next event is being read while one is handled.
    """

    def __init__(self, live: LiveSession, events: AsyncIterator[ClientEvent]) -> None:
        self._live = live
        self._events = events
        # Reads on as soon as the event that has come was taken.
        self._reading: asyncio.Task[None] | None = None
        self._coming = _to_come()
        self._was_taken = LightEvent()
        # Whether the event that is being handled brings content, and the one that has come since.
        self._is_content_in_hand = False
        self._has_content_come = False
        # When the newest event arrived.
        self._arrived_s = 0.0

    @property
    def has_unhandled_content(self) -> bool:
        """Whether content has come, or the seal, and was not handled yet."""
        return self._is_content_in_hand or self._has_content_come

    async def next(self) -> ClientEvent | None:
        """Returns the next event; None when the client has closed its half after the seal.

        The one before has been handled.
        """
        self._is_content_in_hand = False
        has_credit = self._live.progress.has_credit
        if not self._live.is_sealed:
            await self._wait_for_credit()
        event = await self._read()
        if event is not None and has_credit:
            metrics, clock = self._live.parts.metrics, self._live.parts.clock
            metrics.event_waited(clock.monotonic_s() - self._arrived_s)
        self._live.apply(Event.CLOSE if event is None else _EVENTS[type(event)])
        if event is not None:
            self._is_content_in_hand, self._has_content_come = self._has_content_come, False
            self._coming = _to_come()
            self._was_taken.set()
        return event

    async def _wait_for_credit(self) -> None:
        """Returns when the client may be read again, or has sealed."""
        if self._live.progress.has_credit:
            return
        credit = asyncio.create_task(self._live.wait_for_credit())
        try:
            either: set[asyncio.Future[Any]] = {credit, self._coming}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not _is_seal(self._coming):
                await credit
        finally:
            credit.cancel()

    async def has_arrived(self, within_s: float) -> bool:
        """Whether the next event is there, or arrives within `within_s`, and may be read."""
        if not self._live.progress.has_credit:
            return _is_seal(self._coming)
        if not self._coming.done():
            await asyncio.wait({self._coming}, timeout=within_s)
        return self._coming.done()

    async def close(self) -> None:
        """Stops reading; drops an event that has arrived, or its error."""
        # Its error leads back here: without the task no cycle is left to collect.
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})
        self._coming.cancel()
        if not self._coming.cancelled():
            self._coming.exception()

    async def open(self) -> OpenSession:
        """Returns the first event."""
        event = await self.next()
        assert isinstance(event, OpenSession), "the life cycle lets nothing else begin"
        return event

    async def _read_on(self) -> None:
        """Reads one event after the other until there is none, or an error."""
        while not self._coming.done():
            try:
                event = await self._pull()
            except Exception as error:  # for who takes the event
                if not self._coming.done():
                    self._coming.set_exception(error)
                return
            if self._coming.done():  # who waited for it was cancelled
                return
            self._coming.set_result(event)
            self._was_taken.clear()
            if event is not None:
                await self._was_taken.wait()

    async def _pull(self) -> ClientEvent | None:
        event = await anext(self._events, None)
        self._arrived_s = self._live.parts.clock.monotonic_s()
        if isinstance(event, SealContext):
            # From here on the client waits, also while earlier events are being handled.
            self._live.timeline.sealed()
        self._has_content_come = event is not None and _brings_content(event)
        return event

    async def _read(self) -> ClientEvent | None:
        limits = self._live.parts.spec.limits
        is_to_open = self._reading is None and limits.open_timeout_s < limits.input_idle_timeout_s
        limit_s = limits.open_timeout_s if is_to_open else limits.input_idle_timeout_s
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_on())
        coming = self._coming
        if coming.done() or self._live.is_sealed or await self._comes_within(coming, limit_s):
            return await coming
        if is_to_open:
            raise IdleTimeoutError(
                f"no event came within {limit_s:g} s (open_timeout_s)", reason="NOT_OPENED"
            )
        raise IdleTimeoutError(
            f"no event came for {limit_s:g} s while the session was"
            f" {self._live.state} (input_idle_timeout_s)"
        )

    async def _comes_within(self, coming: asyncio.Future[Any], limit_s: float) -> bool:
        """Waits for the event. Only time in which the client may send counts.

        Neither time in which this router itself stood still does, nor time without credit: a
        lost prefill worker takes the credit along that the client had while it was being read.
        """
        silence = Silence(limit_s, look_every_s=limit_s)

        def extended_limit_s() -> float:
            return 0.0 if self._live.progress.has_credit else silence.silent_s + limit_s

        clock = self._live.parts.clock
        return await is_answered(coming, silence, clock.monotonic_s, extended_limit_s)


def _brings_content(event: ClientEvent) -> bool:
    """Whether the event has text or token ids for the context, or completes it."""
    match event:
        case OpenSession(template=PlainTemplate() as template):
            return len(template.prefix) > 0
        case AppendContext() | UpdateContext():
            return any(each.content is not None and len(each.content) for each in event.documents)
        case _:
            return True  # a conversation, or the seal


def _to_come() -> asyncio.Future[ClientEvent | None]:
    return asyncio.get_running_loop().create_future()


def _is_seal(coming: asyncio.Future[ClientEvent | None]) -> bool:
    """Whether the next event has arrived and is the seal."""
    if not coming.done() or coming.cancelled() or coming.exception():
        return False
    return isinstance(coming.result(), SealContext)
