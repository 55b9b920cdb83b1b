"""The answer as a stream of events, and as one value."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from stream2llm.api.errors import InternalError
from stream2llm.api.events import Answer, Event, Finished, TokenDelta


class AnswerStream:
    """Iterate it once, or await `answer()`. The last event is Finished.

    `async with` (or `aclose()`) ends a stream that is not read to its end.
    """

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def __aenter__(self) -> AnswerStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the stream; does nothing when it has ended."""
        await self._events.aclose()

    async def answer(self) -> Answer:
        """Reads to the end; returns the whole answer."""
        gathered = Gathered()
        async with self:
            async for event in self:
                gathered.add(event)
        return gathered.answer()


class Gathered:
    """Collects the events of one answer."""

    def __init__(self) -> None:
        self._deltas: list[TokenDelta] = []
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Takes the next event."""
        if isinstance(event, TokenDelta):
            self._deltas.append(event)
        elif isinstance(event, Finished):
            self._finished = event

    def answer(self) -> Answer:
        """Returns the whole answer; only after Finished."""
        if self._finished is None:
            raise InternalError("the answer ended without saying why", reason="STREAM_ENDED_EARLY")
        return Answer(
            text="".join(delta.text for delta in self._deltas),
            token_ids=tuple(token for delta in self._deltas for token in delta.token_ids),
            finished=self._finished,
            logprobs=tuple(item for delta in self._deltas for item in delta.logprobs),
        )
