"""One question, one way: what reaches the session when, and how long its answer takes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from examples.vector_search.index import Index, recall
from examples.vector_search.questions import Question
from stream2llm.client import (
    AsyncClient,
    AsyncSession,
    Document,
    DocumentOrdering,
    Finished,
    SamplingParameters,
    TokenDelta,
    Usage,
)
from stream2llm.integrations.feed import update_from

GREEDY = SamplingParameters(max_tokens=16, temperature=0.0, stop_strings=("`", "\n"))


class Way(StrEnum):
    """How the results of the search reach the model."""

    WAIT = "waiting"
    STREAM = "streaming"
    FIRST = "first results only"
    NONE = "no context"


@dataclass(frozen=True, slots=True)
class Searching:
    """Duration and size of a search, and the order of its documents."""

    # How long the whole search takes. That of ten thousand vectors takes under a millisecond, so
    # each refinement is held back for its share of the vectors that are compared.
    seconds: float = 3.0
    # Results in a list.
    count: int = 5
    ordering: DocumentOrdering = DocumentOrdering.AS_GIVEN


@dataclass(frozen=True, slots=True)
class Refinement:
    """A list of results, and when the search has it."""

    at_s: float
    num_probes: int
    # Numbers of texts, best first.
    found: tuple[int, ...]
    # Share of the exact nearest that are in it.
    recall: float


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer to one question, with its latency and tokens."""

    way: Way
    question: Question
    answer: str
    # From the question to the answer's first token.
    latency_s: float
    prompt_tokens: int
    invalidated_tokens: int

    @property
    def is_right(self) -> bool:
        """Whether the answer has the name."""
        return self.question.is_answered_by(self.answer)


def refinements(index: Index, question: Question, searching: Searching) -> tuple[Refinement, ...]:
    """Every list of a search with twice as many probes each time. Pure."""
    vector = index.embedder.vectors([question.sentence])
    exact = index.exact(vector, searching.count)
    probes = index.probes()
    found = (tuple(index.search(vector, each, searching.count)) for each in probes)
    return tuple(
        Refinement(searching.seconds * each / probes[-1], each, numbers, recall(numbers, exact))
        for each, numbers in zip(probes, found, strict=True)
    )


def sent_in(way: Way, refined: Sequence[Refinement]) -> tuple[Refinement, ...]:
    """The lists that a way sends, less those that change nothing. Pure."""
    if way is Way.NONE:
        return ()
    if way is Way.FIRST:
        return tuple(refined[:1])
    if way is Way.WAIT:
        return tuple(refined[-1:])
    first, *others = refined
    changed = [new for old, new in zip(refined, others, strict=False) if new.found != old.found]
    return (first, *changed)


def ends_at_s(way: Way, refined: Sequence[Refinement]) -> float:
    """When a way knows that its context is complete, after the question. Pure."""
    ends = {Way.NONE: 0.0, Way.FIRST: refined[0].at_s}
    return ends.get(way, refined[-1].at_s)


async def ask(
    client: AsyncClient, index: Index, question: Question, way: Way, searching: Searching
) -> Asked:
    clock = asyncio.get_running_loop().time
    refined = refinements(index, question, searching)
    began_s, first_token_s = clock(), 0.0
    if way is Way.WAIT:
        await asyncio.sleep(refined[-1].at_s)
    async with client.session(
        prefix=_first_line(),
        suffix=question.prompt,
        sampling=GREEDY,
        ordering=searching.ordering,
    ) as session:
        await _stream(session, index, sent_in(way, refined), began_s)
        await _until(began_s + ends_at_s(way, refined))
        text, usage = "", Usage()
        async for event in session.seal():
            if isinstance(event, TokenDelta | Finished):  # an answer may have no token
                first_token_s = first_token_s or clock()
            if isinstance(event, TokenDelta):
                text += event.text
            elif isinstance(event, Finished):
                usage = event.usage
    return Asked(
        way, question, text.strip(), first_token_s - began_s, usage.prompt_tokens,
        usage.invalidated_tokens,
    )  # fmt: skip


async def _stream(
    session: AsyncSession, index: Index, lists: Sequence[Refinement], began_s: float
) -> None:
    async def documents() -> AsyncIterator[list[Document]]:
        for each in lists:
            await _until(began_s + each.at_s)
            texts = [index.texts[number] for number in each.found]
            yield [Document(text.content, id=text.name) for text in texts]

    await update_from(session, documents())


async def _until(at_s: float) -> None:
    await asyncio.sleep(max(0.0, at_s - asyncio.get_running_loop().time()))


def _first_line() -> str:
    """New each time, so that no prefix cache knows what follows."""
    return f"Run {uuid.uuid4().hex[:8]}. Functions and classes, each with what it does.\n\n"
