"""An event that costs next to nothing while nothing waits for it."""

from __future__ import annotations

import asyncio
import sys

from stream2llm.serving.system.light_event import LightEvent


async def test_all_that_wait_go_on_though_it_is_cleared_at_once() -> None:
    event = LightEvent()
    waiting = [asyncio.create_task(event.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    event.set()
    event.clear()
    await asyncio.gather(*waiting)
    assert not event.is_set()


async def test_who_comes_when_it_is_set_does_not_wait() -> None:
    event = LightEvent()
    event.set()
    await event.wait()
    assert event.is_set()


async def test_one_that_was_cancelled_is_forgotten_and_holds_up_no_other() -> None:
    event = LightEvent()
    gone, stays = (asyncio.create_task(event.wait()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait({gone})
    assert gone.cancelled()
    event.set()
    await stays


def test_it_is_light() -> None:
    event = LightEvent()
    assert sys.getsizeof(event) + sys.getsizeof([]) < 150
