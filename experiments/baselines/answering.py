"""How each baseline uses an engine: what it sends for each change of the context.

non-streaming  nothing before the seal, then one request
warmed         at each change the whole prompt so far with one token to answer, so that the
               prefix cache has it; a newer one aborts it. Then the real request
streaming      vLLM's streaming input: each change is a part; appends only
disaggregated  either of the first two at an engine that prefills, which hands its KV over to one
               that decodes; between them the plainest proxy, as vLLM's examples have it: the
               request with one token to prefill, then, with what that said, to decode, whose
               tokens are the answer
ours           context events, then the seal
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count

from experiments.baselines.cells import (
    DISAGGREGATED,
    DISAGGREGATED_WARMED,
    NON_STREAMING,
    STREAMED,
    WARMED,
    policy_of,
)
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

    def sealed(self, last: TimedSplice) -> list[int]:
        """The complete prompt; nothing is sent for its context any more."""
        return applied(self._context, last)

    def finish(self, last: TimedSplice) -> AsyncIterator[int]:
        """The one request."""
        self._link.send(Ask(self._request_id, self.sealed(last), self._max_tokens))
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

    def sealed(self, last: TimedSplice) -> list[int]:
        """What the warm-up has computed so far is in the cache."""
        self._end_warm_up()
        return super().sealed(last)

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


_HAND_OVER = {"do_remote_decode": True, "do_remote_prefill": False}


class Disaggregated:
    """One question at a pair; `at_prefill` is what is sent there before the seal."""

    def __init__(
        self,
        at_prefill: NonStreaming,
        links: tuple[EngineLink, EngineLink],
        planned: PlannedSession,
        max_tokens: int,
    ) -> None:
        self._at_prefill = at_prefill
        self._prefill, self._decode = links
        self._max_tokens = max_tokens
        self._requests = _unique(planned, "prefill"), _unique(planned, "decode")
        for link, request in zip(links, self._requests, strict=True):
            link.expect(request)

    async def change(self, change: TimedSplice) -> None:
        """Concerns the prefill engine alone."""
        await self._at_prefill.change(change)

    async def finish(self, last: TimedSplice) -> AsyncIterator[int]:
        """The proxy's two requests."""
        prompt = self._at_prefill.sealed(last)
        at_prefill, at_decode = self._requests
        self._prefill.send(Ask(at_prefill, prompt, 1, _HAND_OVER))
        transfer = await self._prefill.transfer(at_prefill)
        self._decode.send(Ask(at_decode, prompt, self._max_tokens, transfer))
        async for num_tokens in self._decode.answer(at_decode):
            yield num_tokens

    async def cancel(self) -> None:
        """Aborts what is under way at either."""
        await self._at_prefill.cancel()
        for link, request in zip((self._prefill, self._decode), self._requests, strict=True):
            link.end(request)


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


_BEFORE_HANDOVER: Mapping[str, Callable[[EngineLink, PlannedSession, int], NonStreaming]] = {
    DISAGGREGATED: NonStreaming,
    DISAGGREGATED_WARMED: Warmed,
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


class PairSystem(EngineSystem):
    """A `System` of two engines: one prefills, the other decodes."""

    def __init__(self, name: str, prefill: EngineLink, decode: EngineLink, max_tokens: int) -> None:
        super().__init__(name, [prefill, decode], max_tokens)
        self._pair = prefill, decode

    def asks(self, planned: PlannedSession) -> Asking:
        """A question that crosses from the one to the other."""
        before = _BEFORE_HANDOVER[self._name](self._pair[0], planned, 1)
        return Disaggregated(before, self._pair, planned, self._max_tokens)
