"""The measures: what a subject needs for a token, an event, a session, and an open one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.path.load import Clients, Received, Session, Workers, at_once, clients_of
from experiments.path.subject import Plan, Subject, a_subject
from stream2llm.api.tasks import TaskGroup

NUM_STREAMS = 64
_NUM_AT_ONCE = 16
# Appends of one session.
_NUM_APPENDS = 20
# Steps before the measurement, so that what a hand-over costs is not in it.
_NUM_WARM = 4


@dataclass(frozen=True, slots=True)
class Lab:
    """One subject, its workers and its clients."""

    subject: Subject
    workers: Workers
    clients: Clients

    async def cpu_us(self, *, tokenizing: bool = False) -> float:
        """CPU microseconds of the subject so far; either without its tokenizing, or that alone."""
        figures = await self.subject.figures()
        return 1e6 * (figures.tokenizing_s if tokenizing else figures.cpu_s)


@asynccontextmanager
async def a_lab(model_path: Path) -> AsyncIterator[Lab]:
    """Starts everything, and ends it."""
    workers = Workers()
    try:
        plan = Plan(model_path, *(await workers.start()))
        async with (
            a_subject(plan) as subject,
            clients_of(subject.router_address, subject.null_address) as clients,
        ):
            yield Lab(subject, workers, clients)
    finally:
        await workers.stop()


# -- tokens --------------------------------------------------------------------------


async def token_us(lab: Lab, num_steps: int) -> float:
    """CPU microseconds by the router of a token, each in a message of its own."""

    async def stream(client: int) -> AsyncIterator[int]:
        session = await lab.clients.opened(client, max_tokens=1 + _NUM_WARM + num_steps)
        await session.seal()
        async for num_tokens in session.token_counts():
            yield num_tokens

    return await _relayed_us(lab, stream, num_steps)


async def null_token_us(lab: Lab, num_steps: int) -> float:
    """The same by a relay with a stream to the worker for each client."""

    async def stream(client: int) -> AsyncIterator[int]:
        async for _ in lab.clients.null(client).relay(b""):
            yield 1

    return await _relayed_us(lab, stream, num_steps)


async def multiplexed_token_us(lab: Lab, num_steps: int) -> float:
    """The same by a relay with one stream to the worker for all clients."""

    async def stream(client: int) -> AsyncIterator[int]:
        async for _ in lab.clients.null(client).multiplexed(client):
            yield 1

    return await _relayed_us(lab, stream, num_steps)


async def _relayed_us(
    lab: Lab, stream: Callable[[int], AsyncIterator[int]], num_steps: int
) -> float:
    """`num_steps` steps of one token for each stream.

    A step begins when all clients have the tokens of the one before, so that no token waits
    for another one, however busy the machine is.
    """
    received, pace, null = Received(NUM_STREAMS), lab.workers.pace, lab.workers.null
    null.num_clients, null.num_steps = NUM_STREAMS, 1 + _NUM_WARM + num_steps
    began_us = 0.0
    pace.allow(0)
    async with TaskGroup() as group:
        for client in range(NUM_STREAMS):
            group.create_task(received.read(client, stream(client)))
        for step in range(1, num_steps + _NUM_WARM):
            await received.wait(step)
            if step == _NUM_WARM:
                began_us = await lab.cpu_us()
            pace.allow(step)
        await received.wait(num_steps + _NUM_WARM)
        used_us = await lab.cpu_us() - began_us
        pace.allow_all()
    lab.workers.forget()
    return used_us / (num_steps * NUM_STREAMS)


# -- events and sessions ----------------------------------------------------------------


async def append_us(lab: Lab, num_sessions: int, *, text: bool, tokenizing: bool = False) -> float:
    """CPU microseconds of an append, or of its tokenizing in other threads alone.

    The next append of a session comes when the one before is prefilled.
    """
    sessions = [await lab.clients.opened(number) for number in range(num_sessions)]

    async def appends(number: int) -> None:
        for _ in range(_NUM_APPENDS):
            await sessions[number].append(text=text)

    began_us = await lab.cpu_us(tokenizing=tokenizing)
    await at_once(_NUM_AT_ONCE, num_sessions, appends)
    used_us = await lab.cpu_us(tokenizing=tokenizing) - began_us
    for each in sessions:
        each.cancel()
    lab.workers.forget()
    return used_us / (num_sessions * _NUM_APPENDS)


async def session_us(lab: Lab, num_sessions: int) -> float:
    """CPU microseconds of a session: open, a document of 300 ids, seal, two tokens."""

    async def session(number: int) -> None:
        mine = await lab.clients.opened(number, max_tokens=2)
        await mine.append(text=False)
        await mine.finish()

    await at_once(_NUM_AT_ONCE, _NUM_AT_ONCE, session)
    began_us = await lab.cpu_us()
    await at_once(_NUM_AT_ONCE, num_sessions, session)
    used_us = await lab.cpu_us() - began_us
    lab.workers.forget()
    return used_us / num_sessions


# -- what is open ------------------------------------------------------------------------


class Open(NamedTuple):
    """A subject with so many open idle sessions."""

    num_sessions: int
    # Longest automatic garbage collection since there were fewer, and a full one, CPU time.
    longest_pause_ms: float
    full_collection_ms: float
    rss_kib: float


async def open_sessions(lab: Lab, numbers: Sequence[int]) -> list[Open]:
    """Opens sessions, and looks at the subject at each of the numbers; a few of them are used."""
    sessions: list[Session] = []

    async def one(number: int) -> None:
        sessions.append(await lab.clients.opened(number))

    found = []
    for num_sessions in numbers:
        await at_once(_NUM_AT_ONCE, num_sessions - len(sessions), one)
        for each in sessions[:_NUM_AT_ONCE]:
            await each.append(text=False)
        found.append(await _look(lab, num_sessions))
    return found


async def open_null_streams(lab: Lab, numbers: Sequence[int]) -> list[Open]:
    """The same with streams that nothing is behind."""
    streams: list[Any] = []  # kept, so that they stay open

    async def one(number: int) -> None:
        streams.append(call := lab.clients.null(number).idle(b""))
        await call.read()

    found = []
    for num_sessions in numbers:
        await at_once(_NUM_AT_ONCE, num_sessions - len(streams), one)
        found.append(await _look(lab, num_sessions))
    return found


async def _look(lab: Lab, num_sessions: int) -> Open:
    figures = await lab.subject.figures()
    full_ms = 1e3 * await lab.subject.collect()
    return Open(num_sessions, 1e3 * figures.longest_pause_s, full_ms, figures.rss_bytes / 1024)


def kib_each(found: Sequence[Open]) -> float:
    """What an open one takes, from the last number of them but one to the last.

    The first ones take what the start of the process has left free.
    """
    before, last = found[-2:]
    return (last.rss_kib - before.rss_kib) / (last.num_sessions - before.num_sessions)
