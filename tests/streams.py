"""Sessions as data: what a client sends, and the prompt that it amounts to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from stream2llm.api.handover import HandoverMode
from stream2llm.client import (
    AsyncClient,
    AsyncSession,
    Document,
    Event,
    Finished,
    Progress,
    SamplingParameters,
    TokenDelta,
)

VOCAB_SIZE = 49_000
GREEDY = SamplingParameters(max_tokens=8, temperature=0.0, ignore_eos=True)
# Events of sessions that append and update; see `Stream.events`.
CASES = (
    (("append", ("a",)), ("append", ("b",)), ("append", ("c",))),
    (("update", ("a", "b")), ("update", ("a", "c")), ("append", ("d",))),
    (("append", ("a", "b")), ("update", ("b", "a"))),
    (("update", ("a",)), ("update", ("b",)), ("update", ("a",))),
)


@dataclass(frozen=True, slots=True)
class Stream:
    """A session's events; a document is a name, its tokens follow from the name."""

    name: str
    # ("append" | "update", document names)
    events: tuple[tuple[str, tuple[str, ...]], ...]
    # Length of each document in tokens, by name.
    lengths: dict[str, int] = field(default_factory=dict)
    prefix_tokens: int = 7
    suffix_tokens: int = 5
    # Names in the order in which stable ordering has them at the seal, written by
    # hand; None: the session's documents stand as given.
    laid_out: tuple[str, ...] | None = None

    def tokens(self, name: str, length: int) -> list[int]:
        """Token ids that depend on this stream and on the name alone."""
        rng = random.Random(f"{self.name}/{name}")
        return [rng.randrange(VOCAB_SIZE) for _ in range(length)]

    def document(self, name: str) -> list[int]:
        """A document's token ids."""
        return self.tokens(name, self.lengths[name])

    @property
    def prefix(self) -> list[int]:
        """Before the documents."""
        return self.tokens("prefix", self.prefix_tokens)

    @property
    def suffix(self) -> list[int]:
        """Behind them."""
        return self.tokens("suffix", self.suffix_tokens)

    @property
    def final_documents(self) -> list[str]:
        """The names that are in the context at the seal, in order."""
        if self.laid_out is not None:
            return list(self.laid_out)
        current: list[str] = []
        for kind, names in self.events:
            current = [*current, *names] if kind == "append" else list(names)
        return current

    @property
    def prompt(self) -> list[int]:
        """The sealed sequence."""
        middle = [token for name in self.final_documents for token in self.document(name)]
        return [*self.prefix, *middle, *self.suffix]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer's token ids and how it ended."""

    token_ids: list[int]
    text: str
    finished: Finished


async def play(
    client: AsyncClient,
    stream: Stream,
    sampling: SamplingParameters = GREEDY,
    *,
    paced: bool = True,
    handover: HandoverMode | None = None,
) -> Outcome:
    """Sends a stream's events and reads the answer.

    `paced`: each event only when all before it is prefilled, so that updates
    really have something to invalidate; else as fast as they go.
    """
    # Without the note the prompt has only tokens that a stream has given it.
    stable = {} if stream.laid_out is None else {"ordering": "stable", "ranking_note": ""}
    async with client.session(
        prefix=stream.prefix, suffix=stream.suffix, sampling=sampling, handover=handover, **stable
    ) as session:
        sent: set[str] = set()
        for index in range(len(stream.events)):
            await send_event(session, stream, index, sent)
            if paced:
                await until_prefilled(session, sequence=index + 2)
        return await collect(session.seal())


async def send_event(session: AsyncSession, stream: Stream, index: int, sent: set[str]) -> None:
    """Sends one of a stream's events; `sent` collects the names whose content was sent."""
    kind, names = stream.events[index]
    documents = [_document(stream, name, sent) for name in names]
    if kind == "append":
        await session.append(*documents)
    else:
        await session.update(documents)


async def until_prefilled(session: AsyncSession, sequence: int) -> Progress:
    """Waits until all but the held back token of everything sent so far is prefilled."""

    def is_done(now: Progress) -> bool:
        caught_up = now.prefilled_tokens >= now.received_tokens - 1
        return now.last_sequence >= sequence and caught_up

    return await _until(session, is_done)


async def until_once_prefilled(session: AsyncSession, sequence: int, window_tokens: int) -> None:
    """As `until_prefilled`, where evictions may take the KV before a client hears of it.

    Progress keeps the newest figures only. Credit is whole once all was prefilled, and stays.
    """

    def is_done(now: Progress) -> bool:
        return now.last_sequence >= sequence and now.credit_tokens == window_tokens

    await _until(session, is_done)


async def _until(session: AsyncSession, is_done: Callable[[Progress], bool]) -> Progress:
    async with asyncio.timeout(300):  # a fault ends it, not a slow machine
        events = session.events()  # raises when the session fails
        while not is_done(session.progress):
            await anext(events)
    return session.progress


def _document(stream: Stream, name: str, sent: set[str]) -> Document:
    if name in sent:
        return Document(id=name)
    sent.add(name)
    return Document(stream.document(name), id=name)


async def read_tokens(events: AsyncIterator[Event], at_least: int) -> list[int]:
    """Reads the beginning of an answer, and leaves the rest unread."""
    tokens: list[int] = []
    while len(tokens) < at_least:
        event = await anext(events)
        tokens += event.token_ids if isinstance(event, TokenDelta) else ()
    return tokens


async def collect(events: AsyncIterator[Event]) -> Outcome:
    """Reads an answer to its end."""
    token_ids: list[int] = []
    text = ""
    async for event in events:
        if isinstance(event, TokenDelta):
            token_ids += event.token_ids
            text += event.text
        elif isinstance(event, Finished):
            return Outcome(token_ids, text, event)
    raise AssertionError("the answer did not finish")
