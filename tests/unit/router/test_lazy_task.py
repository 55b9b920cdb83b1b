"""Work of a session that begins when it is asked for."""

from __future__ import annotations

import asyncio

from router.lazy_task import LazyTask


async def test_it_runs_once_at_a_time_and_again_when_asked_again() -> None:
    begun, may_end = 0, asyncio.Event()

    async def work() -> None:
        nonlocal begun
        begun += 1
        await may_end.wait()

    async with asyncio.TaskGroup() as group:
        lazy = LazyTask(group, work)
        await asyncio.sleep(0)
        assert begun == 0
        lazy.begin()
        lazy.begin()
        await asyncio.sleep(0)
        assert begun == 1
        may_end.set()
        await asyncio.sleep(0)
        may_end.clear()
        lazy.begin()
        await asyncio.sleep(0)
        assert begun == 2
        lazy.cancel()


async def test_one_that_was_not_needed_can_be_cancelled() -> None:
    async def work() -> None:
        raise AssertionError("nothing asked for it")

    async with asyncio.TaskGroup() as group:
        LazyTask(group, work).cancel()
