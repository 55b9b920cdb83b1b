"""The driver, on systems that are made up, and what each baseline sends to an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise
from typing import Any

import pytest

from experiments.baselines.answering import (
    Disaggregated,
    NonStreaming,
    Ours,
    Streaming,
    Warmed,
)
from experiments.baselines.drive import run_trace
from experiments.baselines.engines.messages import Ask, End, Feed, Splice
from experiments.baselines.systems import SystemDiedError
from experiments.token_sessions import TimedSplice, generated, prompt_ids, submissions
from stream2llm.serving.system.clock import ManualClock
from stream2llm.workload.records import RunRecord
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.report.lateness import LOOP_LAG_MAX
from stream2llm.workload.traces.format import Scale


def some_sessions(count: int = 3) -> list[PlannedSession]:
    scale = Scale(tokens=1 / 100, time=0.0)
    return generated("crawler", count, 1, key="k", rate=1e4, scale=scale)


class FakeAsking:
    def __init__(self, behaviour: str) -> None:
        self._behaviour = behaviour
        self.num_changes = 0
        self.cancelled = False

    async def change(self, change: TimedSplice) -> None:
        self.num_changes += 1

    async def finish(self, last: TimedSplice) -> AsyncIterator[int]:
        if self._behaviour == "silent":
            await asyncio.Event().wait()
        if self._behaviour == "fails":
            raise ValueError("too long")
        if self._behaviour == "dies":
            raise SystemDiedError("gone")
        yield 1
        yield 2

    async def cancel(self) -> None:
        self.cancelled = True


class FakeSystem:
    name = "fake"

    def __init__(self, *behaviours: str) -> None:
        self._behaviours = iter(behaviours)
        self.asked: list[FakeAsking] = []

    def asks(self, planned: PlannedSession) -> FakeAsking:
        self.asked.append(FakeAsking(next(self._behaviours, "answers")))
        return self.asked[-1]

    async def begin_run(self) -> None: ...

    async def end_run(self) -> Mapping[str, float]:
        return {"steps": 7.0}


async def driven(system: FakeSystem, answer_limit_s: float = 60) -> RunRecord:
    settings = {"a": 1}
    return await run_trace(
        system, some_sessions(), "t", answer_limit_s=answer_limit_s, settings=settings
    )


async def test_each_session_gets_its_changes_and_its_tokens_their_times() -> None:
    system, played = FakeSystem(), some_sessions()
    record = await driven(system)
    assert [asking.num_changes for asking in system.asked] == [len(p.steps) for p in played]
    assert [len(session.token_times_s) for session in record.sessions] == [3, 3, 3]
    assert all(session.ttft_s is not None and not session.error for session in record.sessions)
    assert record.counters["steps"] == 7.0
    assert LOOP_LAG_MAX in record.counters
    assert all(asking.cancelled for asking in system.asked)


class SlowToTake(FakeAsking):
    """Holds the driver back until it is released, as a client without credit."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__("answers")
        self._clock = clock

    async def change(self, change: TimedSplice) -> None:
        await super().change(change)
        self._clock.advance(5.0)


async def test_what_a_system_holds_back_is_late_and_not_the_driver_s_fault() -> None:
    clock, system = ManualClock(), FakeSystem()
    asked = SlowToTake(clock)
    system.asks = lambda planned: asked  # type: ignore[method-assign]
    record = await run_trace(
        system, some_sessions(1), "t", answer_limit_s=600, settings={}, clock=clock
    )
    (session,) = record.sessions
    assert session.lateness_s == pytest.approx(5.0 * asked.num_changes, abs=1.0)
    assert session.generator_lateness_s < 1.0


async def test_a_failure_and_a_silence_are_of_their_sessions_alone() -> None:
    record = await driven(FakeSystem("fails", "silent"), answer_limit_s=0.5)
    assert [session.error for session in record.sessions] == [
        "ValueError: too long",
        "no whole answer in time",
        "",
    ]
    assert [session.ttft_s is None for session in record.sessions] == [True, True, False]


async def test_a_system_that_dies_fails_the_run() -> None:
    with pytest.raises(SystemDiedError):
        await driven(FakeSystem("answers", "dies", "silent"))


class FakeLink:
    """An engine that keeps what it is sent and answers with one token."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def expect(self, request_id: str) -> None: ...

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def end(self, request_id: str) -> None:
        self.sent.append(End(request_id))

    async def answer(self, request_id: str) -> AsyncIterator[int]:
        yield 1

    async def transfer(self, request_id: str) -> dict[str, Any]:
        assert self.sent[-1] == Ask(request_id, self.sent[-1].token_ids, 1, self.sent[-1].transfer)
        return {"blocks of": request_id}


async def sent_by(kind: Any, session: PlannedSession, *more: int) -> list[Any]:
    link = FakeLink()
    asking = kind(link, session, *more)
    *before, last = submissions(session)
    for change in before:
        await asking.change(change)
    assert [each async for each in asking.finish(last)] == [1]
    return link.sent


@pytest.fixture
def session() -> PlannedSession:
    return next(each for each in some_sessions(20) if len(each.steps) > 2)


async def test_non_streaming_sends_one_request_with_all(session: PlannedSession) -> None:
    (ask,) = await sent_by(NonStreaming, session, 5)
    assert (ask.token_ids, ask.max_tokens) == (prompt_ids(session), 5)


async def test_warmed_sends_the_prompt_so_far_and_ends_the_older_warm_up(
    session: PlannedSession,
) -> None:
    sent = await sent_by(Warmed, session, 5)
    asks = [message for message in sent if isinstance(message, Ask)]
    # Neither the opening nor the last chunk, which the real request brings.
    assert len(asks) == len(session.steps)
    assert [ask.max_tokens for ask in asks] == [1] * (len(asks) - 1) + [5]
    for shorter, longer in pairwise(asks):
        assert longer.token_ids[: len(shorter.token_ids)] == shorter.token_ids
    ended = [message.request_id for message in sent if isinstance(message, End)]
    assert ended == [ask.request_id for ask in asks[:-1]]


@pytest.mark.parametrize("kind", [NonStreaming, Warmed])
async def test_a_pair_gets_the_prompt_twice_and_decode_what_prefill_says_of_its_kv(
    session: PlannedSession, kind: Any
) -> None:
    prefill, decode = FakeLink(), FakeLink()
    links: Any = (prefill, decode)
    asking = Disaggregated(kind(prefill, session, 1), links, session, 5)
    *before, last = submissions(session)
    for change in before:
        await asking.change(change)
    assert not decode.sent
    assert [each async for each in asking.finish(last)] == [1]
    handed_over, (answer,) = prefill.sent[-1], decode.sent
    assert handed_over.transfer["do_remote_decode"]
    assert (handed_over.token_ids, handed_over.max_tokens) == (prompt_ids(session), 1)
    assert (answer.token_ids, answer.max_tokens) == (prompt_ids(session), 5)
    assert answer.transfer == {"blocks of": handed_over.request_id}
    warm_ups = [each for each in prefill.sent[:-1] if isinstance(each, Ask)]
    assert len(warm_ups) == (0 if kind is NonStreaming else len(session.steps) - 1)
    assert not any(each.transfer for each in warm_ups), "their blocks would be held for a reader"
    await asking.cancel()
    assert prefill.sent[-1] == End(handed_over.request_id)
    assert decode.sent[-1] == End(answer.request_id)


async def test_streaming_sends_each_part_once_and_the_question_with_the_last(
    session: PlannedSession,
) -> None:
    sent = await sent_by(Streaming, session, 5)
    assert all(isinstance(message, Feed) for message in sent)
    assert [token for feed in sent for token in feed.token_ids] == prompt_ids(session)
    assert [feed.last for feed in sent] == [False] * (len(sent) - 1) + [True]
    assert len(sent) == len(session.steps)


async def test_ours_sends_splices_and_seals_with_the_question(session: PlannedSession) -> None:
    sent = await sent_by(Ours, session)
    tokens: list[int] = []
    for splice in sent:
        assert isinstance(splice, Splice)
        tokens = tokens[: splice.keep_tokens] + splice.token_ids
    assert tokens == prompt_ids(session)
    assert [splice.seal for splice in sent] == [False] * len(session.steps) + [True]
