"""Several answers to one prompt, as one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from stream2llm.api.errors import InternalError
from stream2llm.api.events import Event, Finished, TokenDelta

Events = AsyncGenerator[Event, None]
# An event, after the index of its answer.
ChoiceEvents = AsyncGenerator[tuple[int, Event], None]
# What waits until the client has taken the events before.
_MAX_WAITING = 16
_Queue = asyncio.Queue[tuple[int, Event] | Exception]


async def only_choice(events: Events) -> ChoiceEvents:
    """The events of the only answer."""
    async with aclosing(events):
        async for event in events:
            yield 0, event


async def choices(ask: Callable[[int], Events], num_choices: int) -> ChoiceEvents:
    """Yields the events of all answers; `ask` begins the one with that index.

    The others begin with the first token of answer 0: by then the prompt is in the prefix cache,
    where they find it. The failure of one ends them all, and is raised.
    """
    queue: _Queue = asyncio.Queue(_MAX_WAITING)
    # No TaskGroup: it ends in the task that it began in, and generators are resumed by any.
    tasks = [asyncio.create_task(_put_events(queue, 0, ask(0)))]
    num_left = num_choices
    try:
        while num_left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            _, event = item
            if len(tasks) == 1 and isinstance(event, TokenDelta | Finished):
                others = range(1, num_choices)
                tasks += [asyncio.create_task(_put_events(queue, i, ask(i))) for i in others]
            num_left -= isinstance(event, Finished)
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _put_events(queue: _Queue, index: int, events: Events) -> None:
    """Puts the events of one answer, or what it fails with, which `choices` raises."""
    try:
        async with aclosing(events):
            async for event in events:
                await queue.put((index, event))
                if isinstance(event, Finished):
                    return
        raise InternalError("the answer ended without saying why", reason="STREAM_ENDED_EARLY")
    except Exception as error:  # handed on
        await queue.put(error)
