"""How each baseline uses an engine: what it sends for each change of the context.

non-streaming  nothing before the seal, then one request
warmed         at each change the whole prompt so far with one token to answer, so that the
               prefix cache has it; a newer one aborts it. Then the real request
streaming      vLLM's streaming input: each change is a part; appends only
ours           context events, then the seal
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count

from experiments.baselines.cells import NON_STREAMING, STREAMED, WARMED, policy_of
from experiments.baselines.engines.link import EngineLink
from experiments.baselines.engines.messages import Ask, Feed, Splice
from experiments.baselines.systems import Asking
from experiments.token_sessions import TimedSplice, applied
from stream2llm.workload.replay.plan import PlannedSession

_NUMBERS = count(1)


def _unique(planned: PlannedSession, what: str = "") -> str:
    """Sessions of different runs have the same names."""
    return f"{planned.session_id}/{what}{next(_NUMBERS)}"


class _Question:
    """One question of the driver, which is one request of an engine."""

    def __init__(self, link: EngineLink, planned: PlannedSession, max_tokens: int = 1) -> None:
        self._link = link
        self._planned = planned
        self._max_tokens = max_tokens
        self._request_id = _unique(planned)
        link.expect(self._request_id)

    def answer(self) -> AsyncIterator[int]:
        """Numbers of new tokens, as they come."""
        return self._link.answer(self._request_id)

    async def cancel(self) -> None:
        """Aborts what is under way, and frees its blocks."""
        self._link.end(self._request_id)


class NonStreaming(_Question):
    """The usual client: one request with the complete context."""

    def __init__(self, link: EngineLink, planned: PlannedSession, max_tokens: int) -> None:
        super().__init__(link, planned, max_tokens)
        self._context: list[int] = []

    async def change(self, change: TimedSplice) -> None:
        """Keeps it."""
        self._context = applied(self._context, change)

    def finish(self, last: TimedSplice) -> AsyncIterator[int]:
        """The one request."""
        prompt = applied(self._context, last)
        self._link.send(Ask(self._request_id, prompt, self._max_tokens))
        return self.answer()


class Warmed(NonStreaming):
    """The best one can do with an engine that knows no streams."""

    def __init__(self, link: EngineLink, planned: PlannedSession, max_tokens: int) -> None:
        super().__init__(link, planned, max_tokens)
        self._warm_up = ""

    async def change(self, change: TimedSplice) -> None:
        """A request for what is known so far, instead of the last one."""
        is_opening = not self._context
        await super().change(change)
        if is_opening:
            return  # The instruction alone is less than a block: nothing to warm.
        self._end_warm_up()
        self._warm_up = _unique(self._planned, "warm")
        self._link.send(Ask(self._warm_up, self._context, 1))

    def finish(self, last: TimedSplice) -> AsyncIterator[int]:
        """What the warm-up has computed so far is in the cache."""
        self._end_warm_up()
        return super().finish(last)

    async def cancel(self) -> None:
        """Aborts what is under way."""
        self._end_warm_up()
        await super().cancel()

    def _end_warm_up(self) -> None:
        if self._warm_up:
            self._link.end(self._warm_up)
            self._warm_up = ""


class Streaming(_Question):
    """vLLM's own. The instruction goes with the first part, the question with the last."""

    def __init__(self, link: EngineLink, planned: PlannedSession, max_tokens: int) -> None:
        super().__init__(link, planned, max_tokens)
        self._unsent: list[int] = []
        self._is_open = False

    async def change(self, change: TimedSplice) -> None:
        """One part; each costs a sampled token, so the instruction waits for the first page."""
        self._unsent += change.token_ids
        if self._is_open:
            self._link.send(Feed(self._request_id, self._unsent, False, 1))
            self._unsent = []
        self._is_open = True

    def finish(self, last: TimedSplice) -> AsyncIterator[int]:
        """The last part."""
        tokens = self._unsent + last.token_ids
        self._link.send(Feed(self._request_id, tokens, True, self._max_tokens))
        return self.answer()


class Ours(_Question):
    """Our engine: the last change comes with the seal, as a router sends on what a client sends at once."""

    async def change(self, change: TimedSplice) -> None:
        """One event."""
        self._splice(change)

    def finish(self, last: TimedSplice) -> AsyncIterator[int]:
        """The last event and the seal, as one."""
        self._splice(last)
        return self.answer()

    def _splice(self, change: TimedSplice) -> None:
        self._link.send(
            Splice(self._request_id, change.keep_tokens, change.token_ids, change.seals)
        )


_STOCK: Mapping[str, Callable[[EngineLink, PlannedSession, int], Asking]] = {
    NON_STREAMING: NonStreaming,
    WARMED: Warmed,
    STREAMED: Streaming,
}


class EngineSystem:
    """A `System` of one engine, or of several that take the questions in turn."""

    def __init__(self, name: str, links: list[EngineLink], max_tokens: int = 1) -> None:
        self._name = name
        self._links = links
        self._max_tokens = max_tokens
        self._num_asked = 0
        self._before: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        """As in `cells`."""
        return self._name

    def asks(self, planned: PlannedSession) -> Asking:
        """The next engine's, for the whole session: its cache has what was warmed."""
        link = self._links[self._num_asked % len(self._links)]
        self._num_asked += 1
        if policy_of(self._name) is not None:
            return Ours(link, planned)
        return _STOCK[self._name](link, planned, self._max_tokens)

    async def begin_run(self) -> None:
        """Empties the prefix caches; switches our engine's policy."""
        policy = policy_of(self._name)
        for link in self._links:
            if policy is not None:
                await link.command("policy", policy)
            await link.command("reset")
        self._before = [await link.command("counters") for link in self._links]

    async def end_run(self) -> Mapping[str, float]:
        """Sums over the engines."""
        total: dict[str, float] = {}
        for link, before in zip(self._links, self._before, strict=True):
            for name, value in (await link.command("counters")).items():
                total[name] = total.get(name, 0.0) + value - before.get(name, 0.0)
        return total
