"""The queue of messages to one client.

One task writes, so messages keep their order and a slow client blocks only its own
session: `put` waits until there is room again. Progress neither waits nor accumulates: a
newer one replaces one that has not been written yet. Nor do the tokens of an answer each
cost a message while one is being written: what waits meanwhile becomes one delta.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import chain

from stream2llm.api.events import Event, Progress, TokenDelta
from stream2llm.serving.system.light_event import LightEvent

Send = Callable[[Event], Awaitable[None]]
_MAX_QUEUED = 16


class _Mark:
    """The queue entry that stands for the newest progress."""


_PROGRESS = _Mark()


class Outbox:
    """Many producers, one consumer (`drain`)."""

    def __init__(self) -> None:
        self._queue: list[Event | _Mark] = []
        self.is_closed = False
        # Set when there is an entry, or an end.
        self._has_news = LightEvent()
        self._has_room = LightEvent()
        self._has_room.set()
        self._progress: Progress | None = None

    async def put(self, event: Event) -> None:
        """Queues an event that must be delivered; returns when there is room for another one.

        Returns at once where the outbox has ended, and the event is not written. A caller that is
        cancelled in the wait has queued the event: what an answer counts is sent.
        """
        self._add(event)
        if len(self._queue) > _MAX_QUEUED and not self.is_closed:
            self._has_room.clear()
            await self._has_room.wait()

    def put_progress(self, figures: Progress) -> None:
        """Queues the newest figures, unless figures are queued already.

        A full queue is full of tokens of the answer, to which progress no longer matters:
        dropped.
        """
        if self._progress is None:
            if len(self._queue) >= _MAX_QUEUED:
                return
            self._add(_PROGRESS)
        self._progress = figures

    def close(self) -> None:
        """Ends the queue; `drain` returns when all is written."""
        self.is_closed = True
        self._has_news.set()

    def stop(self) -> None:
        """Ends the queue without what is still in it; `drain` returns after the present write."""
        self._queue.clear()
        self._progress = None
        self._has_room.set()
        self.close()

    def _add(self, entry: Event | _Mark) -> None:
        self._queue.append(entry)
        self._has_news.set()

    async def drain(self, send: Send) -> None:
        """Writes until `close` or `stop`. Not to be cancelled where a write must not be."""
        while True:
            while not self._queue:
                if self.is_closed:
                    return
                self._has_news.clear()
                await self._has_news.wait()
            await send(self._take())

    def _take(self) -> Event:
        """Removes the oldest entry; of tokens, all that follow for the same answer."""
        entry = self._queue[0]
        if isinstance(entry, TokenDelta):
            deltas = self._deltas(entry)
            del self._queue[: len(deltas)]
            entry = deltas[0] if len(deltas) == 1 else merged(deltas)
        else:
            del self._queue[0]
        if len(self._queue) <= _MAX_QUEUED:
            self._has_room.set()
        if not isinstance(entry, _Mark):
            return entry
        figures, self._progress = self._progress, None
        assert figures is not None, "a mark stands for figures"
        return figures

    def _deltas(self, first: TokenDelta) -> list[TokenDelta]:
        """The first entry, and those right behind it that it can be merged with."""
        deltas = [first]
        for entry in self._queue[1:]:
            if not isinstance(entry, TokenDelta) or entry.index != first.index:
                break
            deltas.append(entry)
        return deltas


def merged(deltas: Sequence[TokenDelta]) -> TokenDelta:
    """What deltas of one answer, in this order, say together."""
    return TokenDelta(
        "".join([each.text for each in deltas]),
        tuple(chain.from_iterable(each.token_ids for each in deltas)),
        tuple(chain.from_iterable(each.logprobs for each in deltas)),
        deltas[0].index,
    )
