"""Sessions that are answered where they are prefilled: a real router, fake mixed workers."""

from __future__ import annotations

from typing import Any

import pytest

from router.placement import WorkerView, pick
from stream2llm.api.errors import UnavailableError
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.settings.router_spec import RecoveryOptions
from stream2llm.serving.settings.worker_spec import Role
from tests.fake_workers import FakeWorker
from tests.polling import eventually
from tests.router_ring import Answered, Ring, soon

pytestmark = pytest.mark.unit

NUM_TOKENS = 7
SAMPLING = pb.SamplingParameters(temperature=0, max_tokens=NUM_TOKENS, logprobs=1, ignore_eos=True)


@pytest.fixture
async def two(make_ring: Any) -> Ring:
    """Two mixed workers, and no others."""
    ring: Ring = await make_ring(
        num_prefill=0, num_decode=0, num_mixed=2, recovery=RecoveryOptions()
    )
    return ring


async def holder(ring: Ring) -> FakeWorker:
    """The worker that has the newest session."""

    async def having() -> list[FakeWorker]:
        return [
            w
            for w in ring.workers
            if w.prefill.records and not w.prefill.records[-1].ended.is_set()
        ]

    (worker,) = await eventually(having, bool)
    return worker


def check(ring: Ring, answered: Answered, restarts: int = 0) -> None:
    prompt = ring.encode("one two three four")
    expected = ring.brain.answer(prompt, NUM_TOKENS)
    assert answered.token_ids == expected
    logprobs = [each for delta in answered.deltas for each in delta.logprobs]
    assert [each.sampled.token_id for each in logprobs] == expected
    assert answered.finished.reason == pb.FINISH_REASON_LENGTH
    assert answered.finished.restarts == restarts


async def begun(ring: Ring) -> Any:
    """A session that is sealed."""
    session = ring.converse()
    await session.open("one two ", sampling=SAMPLING)
    await session.append("three four")
    await session.seal()
    return session


async def test_an_answer_goes_on_at_the_worker_that_prefilled(two: Ring) -> None:
    session = await begun(two)
    check(two, await session.answer())
    (record,) = [record for w in two.workers for record in w.prefill.records]
    assert (record.hand_over, record.answer_max_tokens) == (False, NUM_TOKENS)
    assert not any(w.decode.requests or w.decode.released for w in two.workers)


async def test_one_token_is_no_answer_that_goes_on(two: Ring) -> None:
    session = two.converse()
    await session.open("one", sampling=pb.SamplingParameters(max_tokens=1))
    await session.seal()
    assert len((await session.answer()).token_ids) == 1
    (record,) = [record for w in two.workers for record in w.prefill.records]
    assert (record.hand_over, record.answer_max_tokens) == (False, 0)


async def test_a_stop_string_ends_it_at_the_worker(make_ring: Any) -> None:
    ring = await make_ring(
        num_prefill=0, num_decode=0, num_mixed=1, script=[10, 11, 12, 13, 14, 15]
    )
    text = ring.decode_text([10, 11, 12, 13])
    sampling = pb.SamplingParameters(max_tokens=6, stop_strings=[text[-1]])
    session = ring.converse()
    await session.open("one", sampling=sampling)
    await session.seal()
    assert (await session.answer()).finished.reason == pb.FINISH_REASON_STOP_STRING
    await soon(ring.workers[0].prefill.records[-1].ended.wait())


async def test_a_lost_worker_s_answer_goes_on_at_the_other_one(two: Ring) -> None:
    for worker in two.workers:
        worker.prefill.hold_after_steps = 2
    session = await begun(two)
    lost = await holder(two)
    (other,) = [worker for worker in two.workers if worker is not lost]
    other.prefill.hold_after_steps = None
    before = [token for delta in await session.deltas(3) for token in delta.token_ids]
    await lost.kill()
    answered = await session.answer()
    answered.token_ids[:0] = before
    assert answered.token_ids == two.brain.answer(two.encode("one two three four"), NUM_TOKENS)
    assert answered.finished.restarts == 1
    assert other.prefill.records[-1].answer_tokens == 3


async def test_an_answer_that_is_too_long_for_a_drain_leaves(two: Ring) -> None:
    for worker in two.workers:
        worker.prefill.hold_after_steps = 3
    session = await begun(two)
    drained = await holder(two)
    (other,) = [worker for worker in two.workers if worker is not drained]
    other.prefill.hold_after_steps = None
    before = [token for delta in await session.deltas(4) for token in delta.token_ids]

    async def is_held() -> bool:
        return not drained.prefill.may_step.is_set()

    await eventually(is_held, bool)
    two.drain(drained, 0.0)
    drained.prefill.may_step.set()
    answered = await session.answer()
    answered.token_ids[:0] = before
    assert answered.token_ids == two.brain.answer(two.encode("one two three four"), NUM_TOKENS)
    assert other.prefill.records[-1].answer_tokens >= 4
    assert two.metric("stream2llm_session_restarts_total", cause="refused") == 1


async def test_an_engine_that_died_is_recovered_from_with_the_answer_so_far(two: Ring) -> None:
    for worker in two.workers:
        worker.prefill.may_step.clear()
    session = await begun(two)
    first = await holder(two)
    (other,) = [worker for worker in two.workers if worker is not first]
    other.prefill.may_step.set()
    first.prefill.failures["step"] = UnavailableError("it died", reason="WORKER_LOST")
    first.prefill.may_step.set()
    check(two, await session.answer(), restarts=1)
    assert other.prefill.records[-1].answer_tokens == 1
    assert two.metric("stream2llm_session_restarts_total", cause="mixed_lost") == 1


async def test_a_cancelled_answer_ends_at_the_worker(two: Ring) -> None:
    for worker in two.workers:
        worker.prefill.hold_after_steps = 1
    session = await begun(two)
    worker = await holder(two)
    await session.next("delta")
    session.call.cancel()
    await soon(worker.prefill.records[-1].ended.wait())
    worker.prefill.may_step.set()


async def test_a_long_prompt_goes_past_a_mixed_worker_with_answers_under_way(
    make_ring: Any,
) -> None:
    """The mixed worker has one session, which answers, and prefill one that waits for context."""
    ring = await make_ring(num_mixed=1)
    mixed = ring.worker("mixed")
    mixed.prefill.hold_after_steps = 1
    first = await begun(ring)
    await first.deltas(2)
    waiting = ring.converse()
    await waiting.open("one two ", sampling=SAMPLING)
    prefill = ring.worker("prefill")
    await until_sessions(mixed, prefill, [1, 1])
    third = ring.converse()
    await third.open(" ".join(["one"] * 200), sampling=SAMPLING)
    await until_sessions(mixed, prefill, [1, 2])
    for session in (first, waiting, third):
        session.call.cancel()
    mixed.prefill.may_step.set()


async def until_sessions(mixed: Any, prefill: Any, expected: list[int]) -> None:
    """Until so many sessions have come to each; `Accepted` comes before a worker has heard."""

    async def counts() -> list[int]:
        return [len(worker.prefill.records) for worker in (mixed, prefill)]

    assert await eventually(counts, lambda found: sum(found) == sum(expected)) == expected


async def test_both_kinds_are_used_by_load(make_ring: Any) -> None:
    ring = await make_ring(num_mixed=1)
    sessions = []
    for _ in range(2):
        session = ring.converse()
        await session.open("one two ", sampling=SAMPLING)
        await session.next("accepted")
        sessions.append(session)
    for session in sessions:
        await session.append("three four")
        await session.seal()
    for session in sessions:
        check(ring, await session.answer())
    mixed, prefill = ring.worker("mixed"), ring.worker("prefill")
    assert [len(w.prefill.records) for w in (mixed, prefill)] == [1, 1]
    assert prefill.prefill.records[0].hand_over
    assert len(ring.decode.requests) == 1


def view(
    worker_id: str, num_sessions: int = 0, *, usable: bool = True, num_answering: int = 0
) -> WorkerView:
    role: Role = worker_id.split("-")[0]  # type: ignore[assignment]
    return WorkerView(worker_id, role, usable, num_sessions, num_answering)


def test_a_session_begins_at_the_least_loaded_of_both_kinds() -> None:
    decode = view("decode-0")
    assert pick([view("prefill-0", 2), view("mixed-0", 1), decode], "prefill") == "mixed-0"
    assert pick([view("prefill-0", 1), view("mixed-0", 2), decode], "prefill") == "prefill-0"


def test_a_long_prompt_counts_the_answers_that_it_would_hold_up() -> None:
    workers = [view("prefill-0", 4), view("mixed-0", 3, num_answering=2), view("decode-0")]
    chosen = [pick(workers, "prefill", num_tokens) for num_tokens in (0, 1000, 1100, 100_000)]
    assert chosen == ["mixed-0", "mixed-0", "prefill-0", "prefill-0"]
    busier = [view("prefill-0", 6), *workers[1:]]
    assert pick(busier, "prefill", 100_000) == "mixed-0", "an answer counts once more, and no more"


def test_among_equals_no_kv_is_transferred() -> None:
    assert pick([view("decode-0"), view("prefill-0"), view("mixed-1")], "prefill") == "mixed-1"


def test_no_session_depends_on_decode_workers_that_are_away_where_one_is_mixed() -> None:
    prefill, mixed = view("prefill-0"), view("mixed-0", 5)
    assert pick([prefill, mixed, view("decode-0", usable=False)], "prefill") == "mixed-0"
    assert pick([prefill], "prefill") == "prefill-0", "decode may be back when it is needed"


def test_a_mixed_worker_takes_no_hand_over() -> None:
    assert pick([view("mixed-0")], "decode") is None
