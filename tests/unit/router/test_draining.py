"""Sessions whose worker drains: who leaves it, who ends there, and that no answer shows it."""

from __future__ import annotations

from typing import Any

import pytest

from router.draining import PrefillWork, leaves_decode, leaves_prefill
from stream2llm.api.errors import UnavailableError
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.settings.router_spec import RecoveryOptions
from tests.fake_workers import FakeWorker
from tests.polling import eventually
from tests.router_ring import Conversation, Ring, reason_of, soon

NUM_TOKENS = 7
SAMPLING = pb.SamplingParameters(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
# Longer than any test.
LONG_S = 3600.0


# -- the decisions ------------------------------------------------------------------------------


def test_an_open_session_leaves_however_little_it_has() -> None:
    assert leaves_prefill(PrefillWork(is_sealed=False, num_computed=900, num_left=0), LONG_S)


@pytest.mark.parametrize(
    ("num_computed", "num_left", "rate", "leaves"),
    [
        (0, 1000, None, True),  # nothing is thrown away
        (499, 501, None, True),
        (501, 499, None, False),  # more would be computed again than is left
        (1000, 0, None, False),
        (501, 499, 50.0, False),  # 10 s
        (501, 499, 49.0, True),  # and more than there are
    ],
)
def test_a_sealed_session_stays_while_that_is_less_work_and_there_is_time(
    num_computed: int, num_left: int, rate: float | None, leaves: bool
) -> None:
    assert leaves_prefill(PrefillWork(True, num_computed, num_left, rate), 10.0) is leaves


@pytest.mark.parametrize(
    ("num_left", "token_s", "leaves"),
    [(100, 0.1, False), (101, 0.1, True), (1_000_000, None, False), (1, 11.0, True)],
)
def test_an_answer_leaves_when_its_longest_end_is_too_late(
    num_left: int, token_s: float | None, leaves: bool
) -> None:
    assert leaves_decode(num_left, token_s, 10.0) is leaves


# -- before the first token -----------------------------------------------------------------------


@pytest.fixture
async def pairs(make_ring: Any) -> Ring:
    """Two workers of each role."""
    ring: Ring = await make_ring(num_prefill=2, num_decode=2, recovery=RecoveryOptions())
    return ring


def named(ring: Ring, worker_id: str) -> FakeWorker:
    return next(worker for worker in ring.workers if worker.worker_id == worker_id)


async def opened(ring: Ring, **fields: Any) -> Conversation:
    session = await ring.opened("begin", sampling=SAMPLING, **fields)
    await session.next("progress")
    return session


async def until_restarted(session: Conversation, restarts: int = 1) -> None:
    while (await session.next("progress")).restarts < restarts:
        pass


async def check(ring: Ring, session: Conversation, *texts: str, restarts: int) -> None:
    """The answer is that of an undisturbed session, and says how often the session moved."""
    answered = await session.answer()
    prompt = [token for text in ("begin", *texts) for token in ring.encode(text)]
    assert answered.token_ids == ring.brain.answer(prompt, NUM_TOKENS)
    assert answered.finished.restarts == restarts


async def test_an_open_session_goes_on_at_another_worker_at_once(pairs: Ring) -> None:
    session = await opened(pairs)
    await session.append("one two")
    before = named(pairs, "prefill-0")
    pairs.drain(before, LONG_S)
    await until_restarted(session)
    await soon(before.prefill.records[-1].ended.wait())
    await session.append("three")
    await session.seal()
    await check(pairs, session, "one two", "three", restarts=1)
    assert pairs.metric("stream2llm_session_restarts_total", cause="refused") == 1


@pytest.mark.parametrize("mode", [pb.HANDOVER_MODE_AT_SEAL, pb.HANDOVER_MODE_STREAMED])
async def test_drains_of_more_workers_than_a_session_may_lose_do_not_fail_it(
    pairs: Ring, mode: Any
) -> None:
    """As in a cluster whose workers are replaced one after the other, again and again."""
    for worker in pairs.workers:
        worker.prefill.offers_blocks_of = 2
    session = await opened(pairs, handover=mode)
    texts = []
    for number in range(8):
        texts.append(f"text {number}")
        await session.append(texts[-1])
        leaving = pairs.workers[number % 2]
        pairs.drain(leaving, LONG_S)
        await until_restarted(session, number + 1)
        await leaving.kill()
        await leaving.start(pid=number + 2)
        pairs.show(*pairs.workers)
    await session.seal()
    await check(pairs, session, *texts, restarts=8)


async def test_without_another_worker_it_stays_until_one_comes(make_ring: Any) -> None:
    ring = await make_ring(num_prefill=2, recovery=RecoveryOptions())
    first, second = named(ring, "prefill-0"), named(ring, "prefill-1")
    decode = ring.worker("decode")
    ring.show(first, decode)
    session = await opened(ring)
    ring.show(decode, draining={"prefill-0": LONG_S})
    await session.append("one two")
    num_tokens = len(ring.encode("begin")) + len(ring.encode("one two"))
    while (progress := await session.next("progress")).prefilled_tokens < num_tokens - 1:
        pass
    assert progress.restarts == 0
    ring.show(second, decode, draining={"prefill-0": LONG_S})
    await until_restarted(session)
    await session.seal()
    await check(ring, session, "one two", restarts=1)
    assert len(first.prefill.records) == 1


async def test_a_sealed_session_that_is_nearly_done_ends_where_it_is(pairs: Ring) -> None:
    before = named(pairs, "prefill-0")
    before.prefill.may_sample.clear()
    session = await opened(pairs)
    await session.append("one two three four five six")
    num_tokens = len(pairs.encode("begin")) + len(pairs.encode("one two three four five six"))
    while (await session.next("progress")).prefilled_tokens < num_tokens - 1:
        pass
    await session.seal()
    await soon(before.prefill.records[-1].sealed.wait())
    pairs.drain(before, LONG_S)
    before.prefill.may_sample.set()
    await check(pairs, session, "one two three four five six", restarts=0)
    assert not named(pairs, "prefill-1").prefill.records


async def test_a_sealed_session_with_all_of_it_left_is_computed_elsewhere(pairs: Ring) -> None:
    before = named(pairs, "prefill-0")
    before.prefill.may_compute.clear()
    session = await pairs.opened("begin", sampling=SAMPLING)
    await session.append("one two three four five six")
    await session.seal()
    await soon(before.prefill.session_came.wait())
    pairs.drain(before, LONG_S)
    await until_restarted(session)
    await check(pairs, session, "one two three four five six", restarts=1)


async def test_where_recovery_is_off_a_session_stays(make_ring: Any) -> None:
    ring = await make_ring(num_prefill=2, recovery=RecoveryOptions(max_restarts=0))
    session = await opened(ring)
    ring.drain(named(ring, "prefill-0"), LONG_S)
    await session.seal()
    await check(ring, session, restarts=0)


async def test_a_worker_that_refuses_the_session_costs_no_restart_either(make_ring: Any) -> None:
    """It got SIGTERM, and the router's view does not say so yet."""
    ring = await make_ring(num_prefill=5, recovery=RecoveryOptions(max_restarts=1))
    for worker in ring.workers[:4]:
        drains = UnavailableError("it drains", reason="DRAINING")
        worker.prefill.failures = {"splice": drains, "seal": drains}
    session = await ring.asked("begin", sampling=SAMPLING)
    await check(ring, session, restarts=4)


# -- the answer -----------------------------------------------------------------------------------


async def decoding(ring: Ring, num_steps: int) -> tuple[Conversation, list[int], FakeWorker]:
    """A session whose decode worker has given so many tokens, and may give no more for now."""
    for worker in ring.workers:
        worker.decode.hold_after_steps = num_steps
    session = await opened(ring)
    await session.seal()
    deltas = await session.deltas(1 + num_steps)
    tokens: list[int] = [token for delta in deltas for token in delta.token_ids]

    async def asked() -> list[FakeWorker]:
        return [worker for worker in ring.workers if worker.decode.requests]

    (worker,) = await eventually(asked, bool)
    for each in ring.workers:
        each.decode.hold_after_steps = None
    return session, tokens, worker


@pytest.mark.parametrize("num_steps", range(2, NUM_TOKENS - 2))
async def test_a_long_answer_goes_on_at_another_worker_long_before_the_end_of_the_time(
    pairs: Ring, num_steps: int
) -> None:
    session, tokens, worker = await decoding(pairs, num_steps)
    at_router = pairs.router._parts.workers._workers[worker.worker_id]
    pairs.drain(worker, LONG_S)
    at_router.token_s = 100 * LONG_S  # as if a token took that long
    for each in pairs.workers:
        each.decode.may_step.set()
    answered = await session.answer()
    expected = pairs.brain.answer(pairs.encode("begin"), NUM_TOKENS)
    assert tokens + answered.token_ids == expected
    assert answered.finished.restarts == 1
    assert pairs.metric("stream2llm_session_restarts_total", cause="refused") == 1


async def test_a_short_answer_ends_where_it_is(pairs: Ring) -> None:
    session, tokens, worker = await decoding(pairs, 2)
    pairs.drain(worker, LONG_S)
    worker.decode.may_step.set()
    answered = await session.answer()
    assert tokens + answered.token_ids == pairs.brain.answer(pairs.encode("begin"), NUM_TOKENS)
    assert answered.finished.restarts == 0


@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_a_long_answer_stays_while_no_other_worker_can_take_it(
    make_ring: Any, role: str
) -> None:
    """Whichever role drains: prefill has to compute it again."""
    ring = await make_ring(
        num_prefill=1, num_decode=2 - (role == "decode"), recovery=RecoveryOptions()
    )
    session, tokens, worker = await decoding(ring, 2)
    at_router = ring.router._parts.workers._workers[worker.worker_id]
    staying = (each for each in ring.workers if each.role != role and each is not worker)
    ring.show(*staying, draining={worker.worker_id: LONG_S})
    at_router.token_s = 100 * LONG_S
    worker.decode.may_step.set()
    answered = await session.answer()
    assert tokens + answered.token_ids == ring.brain.answer(ring.encode("begin"), NUM_TOKENS)
    assert answered.finished.restarts == 0


async def test_the_next_offers_go_to_a_decode_worker_that_does_not_drain(pairs: Ring) -> None:
    prefill = named(pairs, "prefill-0")
    prefill.prefill.offers_blocks_of = 2
    session = await opened(pairs, handover=pb.HANDOVER_MODE_STREAMED)
    await session.append("one two three")
    await session.append("four")

    async def fetching() -> list[FakeWorker]:
        return [worker for worker in pairs.workers if worker.decode.fetched]

    (before,) = await eventually(fetching, bool)
    pairs.drain(before, LONG_S)
    num_fetched = len(before.decode.fetched)
    await session.append("five six seven")
    await session.append("eight")
    await eventually(fetching, lambda found: len(found) == 2)
    await session.seal()
    await check(pairs, session, "one two three", "four", "five six seven", "eight", restarts=0)
    assert len(before.decode.fetched) == num_fetched
    assert not before.decode.requests


async def test_the_end_of_the_time_is_reported_as_always(make_ring: Any) -> None:
    """The only worker cuts off what remains, and no worker takes it."""
    ring = await make_ring(recovery=RecoveryOptions(max_wait_s=0))
    session = await opened(ring)
    ring.show(ring.worker("decode"), draining={"prefill-0": 0.0})
    ring.prefill.failures["splice"] = UnavailableError("its time is over", reason="DRAINING")
    await session.append("one")
    assert reason_of(await session.failure()) == "DRAINING"
