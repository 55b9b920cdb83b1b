"""Groups of tasks: a failure and a cancellation in the same moment."""

from __future__ import annotations

import asyncio

import pytest

from router.outbox import Outbox
from stream2llm.api.events import TokenDelta
from stream2llm.api.tasks import TaskGroup, is_cancelled, single_error


class _FailureError(Exception):
    pass


async def _fail(go: asyncio.Event) -> None:
    await go.wait()
    raise _FailureError


async def _wait_in_group(go: asyncio.Event) -> None:
    with single_error():
        async with TaskGroup() as group:
            group.create_task(_fail(go))
            await asyncio.Event().wait()


async def test_a_failure_alone_is_raised_as_it_is() -> None:
    go = asyncio.Event()
    waiting = asyncio.create_task(_wait_in_group(go))
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(_FailureError):
        await waiting


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_a_cancellation_goes_ahead_of_a_failure(cancelled_first: bool) -> None:
    go = asyncio.Event()
    waiting = asyncio.create_task(_wait_in_group(go))
    for _ in range(2):
        await asyncio.sleep(0)  # the group's task waits, too
    if cancelled_first:
        waiting.cancel()
        go.set()
    else:
        go.set()
        waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()


async def test_a_failure_while_the_group_waits_for_its_end_cancels_no_owner() -> None:
    go = asyncio.Event()
    asyncio.get_running_loop().call_soon(go.set)
    with pytest.raises(_FailureError), single_error():
        async with TaskGroup() as group:
            group.create_task(_fail(go))
    assert not is_cancelled()


async def test_tasks_may_begin_others_while_the_group_waits_for_its_end() -> None:
    done: list[int] = []

    async def begin(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)
        if number:
            group.create_task(begin(number - 1))

    async with TaskGroup() as group:
        group.create_task(begin(3))
    assert done == [3, 2, 1, 0]


async def test_a_cancellation_while_the_group_waits_ends_its_tasks() -> None:
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def own() -> None:
        async with TaskGroup() as group:
            group.create_task(wait())

    owner = asyncio.create_task(own())
    for _ in range(3):
        await asyncio.sleep(0)
    owner.cancel()
    await asyncio.wait({owner})
    assert owner.cancelled()
    assert ended.is_set()


async def test_a_task_that_took_its_cancellation_back_goes_on() -> None:
    task = asyncio.current_task()
    assert task is not None
    assert not is_cancelled()
    task.cancel()
    assert is_cancelled()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    task.uncancel()
    assert not is_cancelled()


async def test_a_stopped_outbox_makes_no_producer_wait() -> None:
    outbox, delta = Outbox(), TokenDelta("a", (1,))

    async def produce() -> None:
        while not outbox.is_closed:
            await outbox.put(delta)

    producing = asyncio.create_task(produce())
    await asyncio.sleep(0)
    assert not producing.done()  # the outbox is full
    outbox.stop()
    await asyncio.wait_for(producing, 10)
    for _ in range(100):
        await outbox.put(delta)
