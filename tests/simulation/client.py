"""A simulated client: one session by its plan, with the client library, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Accepted, Event, Finished, Progress, TokenDelta
from stream2llm.client import AsyncClient, AsyncSession
from stream2llm.client.connection import Connection
from stream2llm.client.connections import Connections
from stream2llm.client.stream import AnswerStream
from tests.simulation.channel import Channel
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.routers import TENANT_HEADER
from tests.simulation.sessions import Change, Plan


@dataclass
class Received:
    """What a client saw of one answer."""

    # At the workers.
    session_id: str
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    # Every `Finished`.
    finished: list[Finished] = field(default_factory=list)


@dataclass
class Outcome:
    """What a client saw of its session."""

    plan: Plan
    answers: list[Received] = field(init=False)
    restarts: int = 0
    num_accepted: int = 0
    error: Stream2LLMError | None = None
    # The client has left, on its own or because its process was killed.
    has_left: bool = False
    ended_at_s: float | None = None

    def __post_init__(self) -> None:
        name = self.plan.name
        further = (f"{name}-{index}" for index in range(1, self.plan.num_answers))
        self.answers = [Received(session_id) for session_id in (name, *further)]

    @property
    def has_finished(self) -> bool:
        """Whether all answers have; a session does that, or has an error."""
        return all(answer.finished for answer in self.answers)

    @property
    def is_recoverable(self) -> bool:
        """Whether its client goes on at another router when it loses one."""
        has_begun = any(answer.token_ids or answer.text for answer in self.answers)
        is_resumable = not (self.plan.is_cut and has_begun)
        return self.plan.recovers and bool(self.num_accepted) and is_resumable

    @property
    def reason(self) -> str:
        """The error's reason; empty without one."""
        return "" if self.error is None else self.error.reason

    def __str__(self) -> str:
        if self.has_finished:
            how = "finished"
        elif self.has_left:
            how = "left"
        else:
            how = f"failed {self.reason} {self.error!r}"
        tokens = " ".join(str(answer.token_ids) for answer in self.answers)
        return f"{self.plan.name} {how} restarts={self.restarts} tokens={tokens}"


class Client:
    """Runs one session."""

    def __init__(self, plan: Plan, client: AsyncClient) -> None:
        self.outcome = Outcome(plan)
        self._plan = plan
        self._client = client

    def leave(self) -> None:
        """The client's process dies."""
        if self.outcome.ended_at_s is None:
            self.outcome.has_left = True

    async def run(self) -> None:
        """Returns when the session has ended."""
        plan = self._plan
        await asyncio.sleep(plan.begins_at_s)
        try:
            async with asyncio.timeout(plan.leaves_after_s) as limit:
                await (self._generate() if plan.one_shot else self._stream())
        except Stream2LLMError as error:
            self.outcome.error = error
        except TimeoutError:
            assert limit.expired()
            self.outcome.has_left = True
        finally:
            await self._client.close()
            self.outcome.ended_at_s = asyncio.get_running_loop().time()

    async def _generate(self) -> None:
        plan = self._plan
        answer = self._client.generate(
            plan.prompt,
            session_id=plan.name,
            sampling=plan.sampling,
            ttft_slo_ms=plan.ttft_slo_ms,
            metadata=((TENANT_HEADER, plan.tenant),),
            recover=plan.recovers,
        )
        await self._read(answer)

    async def _stream(self) -> None:
        plan = self._plan
        session = self._client.session(
            session_id=plan.name,
            prefix=list(plan.prefix),
            suffix=list(plan.suffix),
            sampling=plan.sampling,
            ordering="stable" if plan.is_stable else "as_given",
            ranking_note="" if plan.is_stable else None,
            ttft_slo_ms=plan.ttft_slo_ms,
            handover="streamed" if plan.streamed else "at_seal",
            metadata=((TENANT_HEADER, plan.tenant),),
            recover=plan.recovers,
            on_event=self._note,
        )
        async with session:
            for change in plan.changes:
                await asyncio.sleep(change.pause_s)
                await _send(session, change)
            await asyncio.sleep(plan.pause_s)
            await self._read(session.seal())

    async def _read(self, answer: AnswerStream) -> None:
        async for event in answer:
            if self._plan.one_shot:
                self._note(event)
            match event:
                case TokenDelta():
                    self.outcome.answers[event.index].token_ids += event.token_ids
                    self.outcome.answers[event.index].text += event.text
                case Finished():
                    self.outcome.answers[event.index].finished.append(event)

    def _note(self, event: Event) -> None:
        match event:
            case Accepted():
                self.outcome.num_accepted += 1
            case Progress():
                self.outcome.restarts = event.restarts


async def _send(session: AsyncSession, change: Change) -> None:
    if change.op == "append":
        await session.append(*change.documents)
    else:
        await session.update(change.documents)


def client_on(
    network: Network, process: Process, addresses: Sequence[str], *, first: int, read_s: float
) -> AsyncClient:
    """A client of these routers, of which it asks the `first` one first.

    Its process takes `read_s` to read one message.
    """

    def connection(address: str) -> Connection:
        return Connection(lambda: Channel(network, process, address, read_s))

    client = AsyncClient(addresses)
    client._connections = Connections(addresses, connection, first)
    return client
