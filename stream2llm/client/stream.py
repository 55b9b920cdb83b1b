"""The answers as a stream of events, and as values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from stream2llm.api.errors import InternalError, InvalidRequestError
from stream2llm.api.events import Answer, Event, Finished, TokenDelta


class AnswerStream:
    """Iterate it once, or await `answer()` or `answers()`. The last event is a Finished.

    `async with` (or `aclose()`) ends a stream that is not read to its end.
    """

    def __init__(self, events: AsyncGenerator[Event, None], num_answers: int = 1) -> None:
        self._events = events
        self._num_answers = num_answers

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
        """Reads to the end; returns the whole answer. Raises where several were asked for."""
        if self._num_answers != 1:
            raise InvalidRequestError(
                f"sampling.n is {self._num_answers}: `answers()` returns all of them",
                field="sampling.n",
            )
        (answer,) = await self.answers()
        return answer

    async def answers(self) -> tuple[Answer, ...]:
        """Reads to the end; returns all answers in the order of their index."""
        gathered = Gathered()
        async with self:
            async for event in self:
                gathered.add(event)
        return gathered.answers()


@dataclass(slots=True)
class _Parts:
    deltas: list[TokenDelta] = field(default_factory=list)
    finished: Finished | None = None

    def answer(self) -> Answer:
        if self.finished is None:
            raise InternalError("the answer ended without saying why", reason="STREAM_ENDED_EARLY")
        return Answer(
            text="".join(delta.text for delta in self.deltas),
            token_ids=tuple(token for delta in self.deltas for token in delta.token_ids),
            finished=self.finished,
            logprobs=tuple(item for delta in self.deltas for item in delta.logprobs),
        )


class Gathered:
    """Collects the events of one session's answers."""

    def __init__(self) -> None:
        self._parts: defaultdict[int, _Parts] = defaultdict(_Parts)

    def add(self, event: Event) -> None:
        """Takes the next event."""
        if isinstance(event, TokenDelta):
            self._parts[event.index].deltas.append(event)
        elif isinstance(event, Finished):
            self._parts[event.index].finished = event

    def answer(self) -> Answer:
        """Returns the whole answer of index 0; only after its Finished."""
        return self._parts[0].answer()

    def answers(self) -> tuple[Answer, ...]:
        """Returns the whole answers in the order of their index; only after the last Finished."""
        num_answers = max(self._parts, default=0) + 1
        return tuple(self._parts[index].answer() for index in range(num_answers))
