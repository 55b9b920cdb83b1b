"""Asks one question through a cluster, one way, and measures its hand-over."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field

from experiments.handover_plan import num_settled_tokens
from experiments.token_sessions import prompt_ids
from stream2llm.api.errors import InternalError
from stream2llm.api.handover import HandoverMode
from stream2llm.client import AsyncClient, Event, Finished, Progress, SamplingParameters, TokenDelta
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.replay.session import send

_GREEDY = SamplingParameters(max_tokens=8, temperature=0.0, ignore_eos=True)
# What a client wants: KV that was computed so long before the seal is to be at decode.
SETTLED_BEFORE_S = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer."""

    # First token to second token.
    exposed_s: float
    ttft_s: float
    prompt_tokens: int
    # At decode before the first token.
    prefetched_tokens: int
    # Prompt tokens that were computed half a second before the seal and did not change any more.
    settled_tokens: int

    @property
    def prefetched_share(self) -> float:
        """Share of the settled tokens that were at decode."""
        if not self.settled_tokens:
            return 1.0
        return min(self.prefetched_tokens / self.settled_tokens, 1.0)


@dataclass(slots=True)
class _Watch:
    """What a session's events tell."""

    # (when, tokens of the sequence as it was then that were prefilled)
    prefilled: list[tuple[float, int]] = field(default_factory=list)
    finished: Finished | None = None

    def on_event(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.prefilled.append((time.perf_counter(), event.prefilled_tokens))
        elif isinstance(event, Finished):
            self.finished = event

    def prefilled_at(self, at_s: float) -> int:
        """The last word before that."""
        return next((count for when, count in reversed(self.prefilled) if when <= at_s), 0)


async def ask(client: AsyncClient, question: PlannedSession, mode: HandoverMode) -> Outcome:
    """Streams the question's context as it comes, and reads the answer."""
    watch, begin_s = _Watch(), time.perf_counter()
    async with client.session(
        prefix=question.prefix,
        suffix=question.suffix,
        sampling=_GREEDY,
        handover=mode,
        on_event=watch.on_event,
    ) as session:
        for step in question.steps:
            await _until(begin_s + step.due_s)
            await send(session, step)
        await _until(begin_s + question.seal_due_s)
        before_s = time.perf_counter() - SETTLED_BEFORE_S
        await session.answer()
    settled = min(num_settled_tokens(question, before_s - begin_s), watch.prefilled_at(before_s))
    return _outcome(watch, settled)


async def ask_again(client: AsyncClient, question: PlannedSession) -> Outcome:
    """The same prompt at once: all of it is in decode's cache by now."""
    watch = _Watch()
    async with client.session(
        prefix=prompt_ids(question), sampling=_GREEDY, handover="at_seal", on_event=watch.on_event
    ) as session:
        await session.answer()
    return _outcome(watch, settled_tokens=0)


def _outcome(watch: _Watch, settled_tokens: int) -> Outcome:
    if watch.finished is None:
        raise InternalError("the answer did not end")
    usage, timings = watch.finished.usage, watch.finished.timings
    if timings.first_to_second_token_s is None:
        raise InternalError("the answer has no second token, whose time is the hand-over's")
    return Outcome(
        exposed_s=timings.first_to_second_token_s,
        ttft_s=timings.ttft_from_seal_s,
        prompt_tokens=usage.prompt_tokens,
        prefetched_tokens=usage.prefetched_tokens,
        settled_tokens=settled_tokens,
    )


async def _until(at_s: float) -> None:
    await asyncio.sleep(max(at_s - time.perf_counter(), 0.0))


@dataclass(frozen=True, slots=True)
class Beside:
    """Answers that decoded meanwhile."""

    num_tokens: int
    duration_s: float
    # Between two messages of one answer.
    gaps_s: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second, all answers together."""
        return self.num_tokens / self.duration_s

    @property
    def mean_gap_s(self) -> float:
        """Over all messages."""
        return statistics.fmean(self.gaps_s)


class Decoders:
    """Keeps some answers decoding while its block lasts."""

    def __init__(self, client: AsyncClient, count: int, answer_tokens: int) -> None:
        self._client = client
        self._count = count
        self._sampling = SamplingParameters(
            max_tokens=answer_tokens, temperature=0.0, ignore_eos=True
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._num_tokens = 0
        self._gaps_s: list[float] = []
        self._begin_s = 0.0

    async def __aenter__(self) -> Decoders:
        self._begin_s = time.perf_counter()
        self._tasks = [asyncio.create_task(self._decode(n)) for n in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def figures(self) -> Beside:
        """So far."""
        duration_s = time.perf_counter() - self._begin_s
        return Beside(self._num_tokens, duration_s, tuple(self._gaps_s))

    async def _decode(self, number: int) -> None:
        while True:
            last_s: float | None = None
            async for event in self._client.generate([5 + number, 7, 9], sampling=self._sampling):
                if not isinstance(event, TokenDelta):
                    continue
                now_s = time.perf_counter()
                self._num_tokens += len(event.token_ids)
                if last_s is not None:
                    self._gaps_s.append(now_s - last_s)
                last_s = now_s
