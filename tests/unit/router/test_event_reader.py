"""When the router reads a client's next event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from router.event_reader import EventReader
from router.timeline import Timeline
from stream2llm.api.errors import IdleTimeoutError
from stream2llm.api.requests import AppendContext, ClientEvent, SealContext
from stream2llm.serving.system.clock import ManualClock
from tests.clocks import SteppedClock


class FakeLive:
    """A session as its reader sees it; credit is the test's to give."""

    def __init__(self) -> None:
        self.is_sealed = False
        self.state = "open"
        self.progress: Any = self
        self.has_credit = True
        self.credit_came = asyncio.Event()
        self.parts: Any = self
        self.spec: Any = self
        self.limits: Any = self
        self.input_idle_timeout_s = 60.0
        self.open_timeout_s = 10.0
        self.clock: Any = ManualClock()
        self.metrics: Any = self
        self.waits_s: list[float] = []
        self.timeline = Timeline(self.clock)

    async def wait_for_credit(self) -> None:
        await self.credit_came.wait()
        self.has_credit = True

    def apply(self, event: Any) -> None: ...

    def event_waited(self, seconds: float) -> None:
        self.waits_s.append(seconds)


async def reading(*events: ClientEvent) -> tuple[FakeLive, EventReader]:
    """A reader that has read the first event, and has no credit for the rest."""

    async def client() -> AsyncIterator[ClientEvent]:
        for event in events:
            yield event
        await asyncio.Event().wait()

    live = FakeLive()
    reader = EventReader(live, client())  # type: ignore[arg-type]
    assert await reader.next() is events[0]
    live.has_credit = False
    return live, reader


async def test_a_seal_needs_no_credit() -> None:
    live, reader = await reading(AppendContext((), 2), SealContext(sequence=3))
    assert await asyncio.wait_for(reader.next(), 5) == SealContext(sequence=3)
    assert not live.credit_came.is_set()
    await reader.close()


async def test_a_seal_behind_a_change_that_is_held_travels_with_it() -> None:
    _, reader = await reading(AppendContext((), 2), SealContext(sequence=3))
    await asyncio.wait({reader._coming})
    assert await reader.has_arrived(0.0)
    await reader.close()


async def test_a_document_waits_for_credit() -> None:
    live, reader = await reading(
        AppendContext((), 2), AppendContext((), 3), SealContext(sequence=4)
    )
    coming = asyncio.create_task(reader.next())
    await asyncio.wait({coming}, timeout=0.01)
    assert not coming.done()
    assert not await reader.has_arrived(0.0)
    live.credit_came.set()
    assert await asyncio.wait_for(coming, 5) == AppendContext((), 3)
    await reader.close()


async def test_the_client_waits_from_when_its_seal_is_here() -> None:
    """Not from when what came before it has been handled."""
    live, reader = await reading(AppendContext((), 2), SealContext(sequence=3))
    await asyncio.wait({reader._coming})
    live.clock.advance(7.0)
    await reader.next()
    live.timeline.first_token()
    assert live.timeline.timings().ttft_from_seal_s == pytest.approx(7.0)
    await reader.close()


async def test_an_event_waits_from_its_arrival_until_the_one_before_it_is_handled() -> None:
    live, reader = await reading(AppendContext((), 2), AppendContext((), 3))
    live.has_credit = True
    await asyncio.wait({reader._coming})
    live.clock.advance(7.0)
    await asyncio.wait_for(reader.next(), 5)
    assert live.waits_s == [0.0, 7.0]
    await reader.close()


async def test_an_event_that_was_sent_beyond_the_credit_is_not_late() -> None:
    live, reader = await reading(AppendContext((), 2), AppendContext((), 3))
    coming = asyncio.create_task(reader.next())
    await asyncio.wait({coming}, timeout=0.01)
    live.clock.advance(7.0)
    live.credit_came.set()
    await asyncio.wait_for(coming, 5)
    assert live.waits_s == [0.0]
    await reader.close()


class CreditByLook:
    """Progress of a session that has credit, or has not, each time it is looked at."""

    def __init__(self, *looks: bool) -> None:
        self.to_come = list(looks)

    @property
    def has_credit(self) -> bool:
        return self.to_come.pop(0)


async def test_time_without_credit_is_not_the_clients_silence() -> None:
    """A prefill worker that is lost while the client is being read takes its credit along."""
    live, reader = await reading(AppendContext((), 2))
    look_s = 1 / 128  # sums of it are exact
    live.input_idle_timeout_s, live.clock = 4 * look_s, SteppedClock(look_s)
    read_at = [True, True]
    live.progress = CreditByLook(*read_at, *[True] * 3, *[False] * 20, *[True] * 5)
    with pytest.raises(IdleTimeoutError, match="input_idle_timeout_s"):
        await asyncio.wait_for(reader.next(), 60)
    assert not live.progress.to_come
    await reader.close()
