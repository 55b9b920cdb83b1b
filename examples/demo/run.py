"""One question, answered one way: sends what arrives when it arrives, and measures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from examples.demo.documents import Arrival, Way, conversation
from stream2llm.api.errors import InternalError
from stream2llm.api.requests import Content
from stream2llm.client import (
    AsyncClient,
    AsyncSession,
    Event,
    Finished,
    Progress,
    SamplingParameters,
    TokenDelta,
)
from stream2llm.integrations.feed import by_reference
from stream2llm.serving.system.clock import Clock

MAX_ANSWER_TOKENS = 64
GREEDY = SamplingParameters(max_tokens=MAX_ANSWER_TOKENS, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one way has come to; shown live."""

    way: Way
    elapsed_s: float = 0.0
    # What has arrived last, in words.
    news: str = ""
    # Documents in the list that retrieval has now.
    num_documents: int = 0
    progress: Progress = field(default_factory=Progress)
    sealed: bool = False
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the final table. Times are the client's."""

    way: Way
    num_documents: int
    finished: Finished
    # Seal, which is when the last document is here, to first token.
    ttft_from_seal_s: float
    # Begin of the retrieval to first token.
    ttft_from_open_s: float
    answer: str


class Watcher(Protocol):
    """Sees every change."""

    def show(self, snapshot: Snapshot) -> None: ...


class Run:
    """Answers the question one way, once."""

    def __init__(self, way: Way, run_id: str, clock: Clock, view: Watcher) -> None:
        self._way = way
        self._run_id = run_id
        self._clock = clock
        self._view = view
        self._snapshot = Snapshot(way)
        self._sent: dict[str, Content | None] = {}
        self._finished: Finished | None = None
        self._begin_s = self._sealed_s = self._first_token_s = 0.0

    async def answer(self, client: AsyncClient, arrivals: Sequence[Arrival]) -> Result:
        """Opens, sends, seals, and reads to the end."""
        self._begin_s = self._clock.monotonic_s()
        if self._way is Way.ONCE:
            # Nothing is sent before all is here.
            await self._until(arrivals[-1].at_s)
            self._show(news=_arrived(arrivals[-1]))
        async with client.session(
            chat=conversation(self._way, self._run_id), sampling=GREEDY, on_event=self._on_event
        ) as session:
            for arrival in arrivals:
                await self._until(arrival.at_s)
                await self._send(session, arrival)
            self._sealed_s = self._clock.monotonic_s()
            self._show(sealed=True, news="sealed: the context is complete")
            await session.answer()
        return self._result()

    async def _send(self, session: AsyncSession, arrival: Arrival) -> None:
        if arrival.replaces:
            self._show(num_documents=len(arrival.documents), news=_arrived(arrival))
            await session.update(by_reference(arrival.documents, self._sent))
        else:
            number = self._snapshot.num_documents + len(arrival.documents)
            self._show(num_documents=number, news=_arrived(arrival))
            await session.append(*arrival.documents)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._begin_s + at_s - self._clock.monotonic_s()))

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._show(progress=event)
        elif isinstance(event, TokenDelta):
            self._first_token_s = self._first_token_s or self._clock.monotonic_s()
            self._show(answer=self._snapshot.answer + event.text)
        elif isinstance(event, Finished):
            self._finished = event

    def _show(self, **changes: object) -> None:
        elapsed_s = self._clock.monotonic_s() - self._begin_s
        self._snapshot = replace(self._snapshot, elapsed_s=elapsed_s, **changes)  # type: ignore[arg-type]
        self._view.show(self._snapshot)

    def _result(self) -> Result:
        if self._finished is None or not self._first_token_s:
            raise InternalError("the answer has no token")
        return Result(
            way=self._way,
            num_documents=self._snapshot.num_documents,
            finished=self._finished,
            ttft_from_seal_s=self._first_token_s - self._sealed_s,
            ttft_from_open_s=self._first_token_s - self._begin_s,
            answer=self._snapshot.answer.strip(),
        )


def _arrived(arrival: Arrival) -> str:
    names = ", ".join(document.id for document in arrival.documents)
    return f"new list: {names}" if arrival.replaces else f"arrived: {names}"
