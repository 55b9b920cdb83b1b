"""Two sessions in each phase, which engines that stand still keep there until a fault has happened.

One of each two is at the first worker of its role, or, with two routers, at the first router.
Engines stand still for seconds; where that is long enough for one to be declared hung, its
sessions lose it as well.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain

from experiments.faults.parts import Kind, living_parts
from stream2llm.client import (
    AsyncClient,
    AsyncSession,
    Document,
    Event,
    Finished,
    SamplingParameters,
)
from stream2llm.serving.system.processes import signal_owned
from tests.cluster_pool import START_TIMEOUT_S
from tests.polling import eventually
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Stream, collect, read_tokens, until_prefilled

NUM_TOKENS = GREEDY.max_tokens
# So many that they are not all there a moment after the first ones.
LONG_TOKENS = 600
LONG = SamplingParameters(max_tokens=LONG_TOKENS, temperature=0.0, ignore_eos=True)

# What sessions do when their engines stand still.
OPEN = "open"
PREFILL = "prefill"
UPDATE = "update"
PREFETCH = "prefetch"
SEALED = "sealed"
FIRST_TOKEN = "first token"
DECODE = "decode"

# The name of a session's first document.
FIRST = "a"


@dataclass
class HeldSession:
    """One session, and what it should answer."""

    phase: str
    session: AsyncSession
    # The context as it is now.
    prompt: list[int]
    num_tokens: int = NUM_TOKENS
    tokens: list[int] = field(default_factory=list)
    finished: Finished | None = None
    _answer: AsyncIterator[Event] | None = None
    _reading: asyncio.Task[None] | None = None

    async def append(self, name: str, length: int) -> None:
        """Appends a document that no other phase has."""
        tokens = Stream(self.phase, ()).tokens(name, length)
        await self.session.append(Document(tokens, id=name))
        self.prompt += tokens

    async def put_in_front(self, name: str, length: int) -> None:
        """Updates the list: a new document is before the only one."""
        stream = Stream(self.phase, ())
        tokens, num_before = stream.tokens(name, length), len(stream.prefix)
        await self.session.update([Document(tokens, id=name), Document(id=FIRST)])
        self.prompt[num_before:num_before] = tokens

    async def read(self, num_tokens: int) -> None:
        """Seals, and reads the answer's first tokens."""
        self._answer = aiter(self.session.seal())
        self.tokens = await read_tokens(self._answer, num_tokens)

    def begin_answer(self) -> None:
        """Seals; the answer is read as it comes."""
        self._reading = asyncio.create_task(self._read_rest())

    async def finish(self) -> None:
        """Seals, unless that was done, and reads the answer to its end."""
        await (self._reading or self._read_rest())

    async def _read_rest(self) -> None:
        rest = await collect(self._answer or aiter(self.session.seal()))
        self.tokens += rest.token_ids
        self.finished = rest.finished

    async def until_taken(self, sequence: int) -> None:
        """Returns when the router has that event."""

        async def last_sequence() -> int:
            return self.session.progress.last_sequence

        await eventually(last_sequence, lambda now: now >= sequence)


class HeldSessions:
    """All of them; `begin` them first."""

    def __init__(self, cluster_id: str, client: AsyncClient, stack: AsyncExitStack) -> None:
        parts = living_parts(cluster_id)
        self._engines = [each for each in parts if each.kind is Kind.ENGINE_CORE]
        self._client = client
        self._stack = stack
        self.pairs: dict[str, list[HeldSession]] = {}

    async def begin(self) -> None:
        """Brings them into their phases."""
        for phase in (FIRST_TOKEN, PREFETCH, SEALED, UPDATE, PREFILL):
            for each in await self._pair(phase):
                await each.append(FIRST, 70)
                await until_prefilled(each.session, 2)
        # Last, because answers do not wait for their reader.
        for each in await self._pair(DECODE, LONG):
            each.num_tokens = LONG_TOKENS
            await each.read(3)
        self._signal("decode", signal.SIGSTOP)
        await self._until_decode_is_missed()
        self._signal("prefill", signal.SIGSTOP)
        await self._until_prefill_is_missed()

    async def _until_decode_is_missed(self) -> None:
        for each in self.pairs[FIRST_TOKEN]:
            await each.read(1)
        for each in self.pairs[PREFETCH]:
            await each.append("b", 90)
            await until_prefilled(each.session, 3)

    async def _until_prefill_is_missed(self) -> None:
        for each in self.pairs[SEALED]:
            each.begin_answer()
        for each in self.pairs[UPDATE]:
            await each.put_in_front("b", 90)
        for each in self.pairs[PREFILL]:
            await each.append("b", 700)  # more than a step
        for each in (*self.pairs[UPDATE], *self.pairs[PREFILL]):
            await each.until_taken(3)
        await self._pair(OPEN)

    async def _pair(self, phase: str, sampling: SamplingParameters = GREEDY) -> list[HeldSession]:
        self.pairs[phase] = pair = []
        for _ in range(2):
            prefix = Stream(phase, ()).prefix
            session = self._client.session(prefix=prefix, sampling=sampling)
            await self._stack.enter_async_context(session)
            pair.append(HeldSession(phase, session, prefix))
        return pair

    def go_on(self, but: Collection[str] = ()) -> None:
        """The engines that live go on, `but` those of some workers."""
        self._signal("", signal.SIGCONT, but)

    def _signal(self, role: str, which: signal.Signals, but: Collection[str] = ()) -> None:
        for part in self._engines:
            if part.replica.startswith(role) and part.replica not in but:
                signal_owned(part.process, which)

    async def finish(self) -> None:
        """Reads all answers to their ends, at other workers or at successors of the lost ones."""
        for each in self.pairs[OPEN]:
            await each.append(FIRST, 70)
        async with asyncio.timeout(2 * START_TIMEOUT_S), asyncio.TaskGroup() as group:
            for each in chain(*self.pairs.values()):
                group.create_task(each.finish())

    def check(self, reference: ReferenceEngine) -> None:
        """Every answer is the reference's."""
        for each in chain(*self.pairs.values()):
            assert each.tokens == reference.answer(each.prompt, each.num_tokens), each.phase

    def restarts(self) -> dict[str, int]:
        """How often the one of each two that restarted most has done so."""
        return {
            phase: max(each.finished.restarts for each in pair)
            for phase, pair in self.pairs.items()
        }


@asynccontextmanager
async def held_sessions(cluster_id: str, client: AsyncClient) -> AsyncIterator[HeldSessions]:
    """The sessions, each in its phase; whatever happens, their engines go on at the end."""
    async with AsyncExitStack() as stack:
        sessions = HeldSessions(cluster_id, client, stack)
        stack.callback(sessions.go_on)
        await sessions.begin()
        yield sessions
