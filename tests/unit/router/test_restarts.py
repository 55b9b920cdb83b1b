"""Sessions that lose their workers in the middle, and go on: a real router, real gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from stream2llm.api.errors import InternalError, Stream2LLMError, UnavailableError
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.settings.router_spec import RecoveryOptions
from tests.fake_workers import FakeWorker
from tests.polling import eventually
from tests.router_ring import Answered, Conversation, Ring, named, soon
from tests.tiny_model import EOS

NUM_TOKENS = 7
SAMPLING = pb.SamplingParameters(
    temperature=0, max_tokens=NUM_TOKENS, logprobs=1, ignore_eos=True, frequency_penalty=0.5
)
MODES = [pb.HANDOVER_MODE_AT_SEAL, pb.HANDOVER_MODE_STREAMED]


@pytest.fixture
async def pairs(make_ring: Any) -> Ring:
    """Two workers of each role."""
    ring: Ring = await make_ring(num_prefill=2, num_decode=2, recovery=RecoveryOptions())
    for worker in ring.workers:
        worker.prefill.offers_blocks_of = 2
    return ring


async def prefill_of(ring: Ring) -> FakeWorker:
    """The worker that has the newest session, which may still be on its way to it."""

    async def having() -> list[FakeWorker]:
        return [w for w in ring.workers if w.prefill.records and not _has_ended(w)]

    (worker,) = await eventually(having, bool)
    return worker


def _has_ended(worker: FakeWorker) -> bool:
    return worker.prefill.records[-1].ended.is_set()


async def decode_of(ring: Ring) -> FakeWorker:
    """The worker that has been asked to decode."""

    async def asked() -> list[FakeWorker]:
        return [w for w in ring.workers if w.decode.requests]

    (worker,) = await eventually(asked, bool)
    return worker


async def successor_of(ring: Ring, worker: FakeWorker, pid: int = 2) -> None:
    await worker.start(pid=pid)
    ring.show(*ring.workers)


def check(ring: Ring, answered: Answered, prompt: list[int], restarts: int = 1) -> None:
    """The answer is that of an undisturbed session, and says that it was disturbed."""
    expected = ring.brain.answer(prompt, NUM_TOKENS)
    assert answered.token_ids == expected
    assert answered.text == ring.decode_text(expected)
    logprobs = [each for delta in answered.deltas for each in delta.logprobs]
    assert [each.sampled.token_id for each in logprobs] == expected
    finished = answered.finished
    assert finished.restarts == restarts
    assert finished.reason == pb.FINISH_REASON_LENGTH
    assert finished.usage.completion_tokens == NUM_TOKENS
    assert finished.usage.prompt_tokens == len(prompt)


# -- before the first token -----------------------------------------------------------------

STEPS: list[Callable[[Conversation], Any]] = [
    lambda session: session.append(("a", "one two"), ("b", "three")),
    lambda session: session.update(named("a"), ("c", "four five")),
    lambda session: session.append("six seven eight"),
    lambda session: session.seal(suffix=pb.Content(text="?")),
]


async def prompt_of(ring: Ring) -> list[int]:
    """The prompt that the steps make."""
    texts = ["begin", "one two", "four five", "six seven eight", "?"]
    return [token for text in texts for token in ring.encode(text)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_before", range(len(STEPS) + 1))
async def test_a_lost_prefill_worker_costs_a_recomputation_at_every_event(
    pairs: Ring, num_before: int, mode: Any
) -> None:
    for worker in pairs.workers:
        worker.prefill.may_sample.clear()
    session = await pairs.opened("begin", sampling=SAMPLING, handover=mode)
    await session.next("progress")
    for step in STEPS[:num_before]:
        await step(session)
    victim = await prefill_of(pairs)
    if num_before == len(STEPS):
        await soon(victim.prefill.records[-1].sealed.wait())
    await victim.kill()
    while (progress := await session.next("progress")).restarts == 0:
        pass
    assert progress.prefilled_tokens == 0
    for step in STEPS[num_before:]:
        await step(session)
    for worker in pairs.workers:
        worker.prefill.may_sample.set()
    answered = await session.answer()
    check(pairs, answered, await prompt_of(pairs))
    survivor = next(w for w in pairs.workers if w.role == "prefill" and w is not victim)
    assert survivor.prefill.records[-1].sequence == await prompt_of(pairs)
    assert pairs.metric("stream2llm_session_restarts_total", cause="prefill_lost") == 1
    info = await pairs.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert dict(info.restarts_by_cause) == {"prefill_lost": 1}


async def test_the_successor_of_the_only_prefill_worker_is_waited_for(make_ring: Any) -> None:
    ring = await make_ring(recovery=RecoveryOptions())
    session = await ring.opened("begin", sampling=SAMPLING)
    await session.next("progress")
    await ring.worker("prefill").kill()
    while (await session.next("progress")).restarts == 0:
        pass
    await session.append("one two")  # meanwhile
    await successor_of(ring, ring.worker("prefill"))
    answered = await session.finish()
    check(ring, answered, ring.encode("begin") + ring.encode("one two"))


async def test_a_client_that_waits_for_its_admission_loses_nothing(make_ring: Any) -> None:
    """It is lost as soon as it has the session, and the client is admitted all the same."""
    ring = await make_ring(recovery=RecoveryOptions())
    ring.prefill.failures["open"] = UnavailableError("its engine died", reason="WORKER_LOST")
    ring.worker("prefill").is_ready = False
    session = await ring.opened("begin", sampling=SAMPLING)
    await session.next("accepted")
    await session.seal()
    while (await session.next("progress")).restarts == 0:
        pass
    await ring.worker("prefill").kill()
    del ring.prefill.failures["open"]
    await successor_of(ring, ring.worker("prefill"))
    check(ring, await session.answer(), ring.encode("begin"))


async def test_a_draining_worker_is_left_for_its_successor_only(make_ring: Any) -> None:
    ring = await make_ring(recovery=RecoveryOptions())
    ring.prefill.failures["splice"] = UnavailableError("it drains", reason="DRAINING")
    session = await ring.opened("begin", sampling=SAMPLING)
    while (await session.next("progress")).restarts == 0:
        pass
    del ring.prefill.failures["splice"]
    assert len(ring.prefill.records) == 1
    await ring.worker("prefill").kill()
    await successor_of(ring, ring.worker("prefill"))
    await session.seal()
    check(ring, await session.answer(), ring.encode("begin"))
    assert ring.metric("stream2llm_session_restarts_total", cause="refused") == 1


async def test_figures_add_up_over_workers(pairs: Ring) -> None:
    session = await pairs.opened("begin", sampling=SAMPLING)
    await session.append("one two three")
    num_tokens = len(pairs.encode("begin")) + len(pairs.encode("one two three"))
    while (await session.next("progress")).prefilled_tokens < num_tokens - 1:
        pass
    await (await prefill_of(pairs)).kill()
    await session.seal()
    assert (await session.answer()).finished.usage.computed_tokens == 2 * num_tokens - 1
    assert pairs.metric("stream2llm_recovery_recomputed_tokens_total") == num_tokens - 1
    assert pairs.metric("stream2llm_recovery_seconds_count", cause="prefill_lost") in (0, 1)
    info = await pairs.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert info.recovery.recomputed_tokens == num_tokens - 1


# -- after the first token -------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_before", range(1, NUM_TOKENS))
async def test_a_lost_decode_worker_shows_at_no_token_of_the_answer(
    pairs: Ring, num_before: int, mode: Any
) -> None:
    for worker in pairs.workers:
        worker.decode.hold_after_steps = num_before - 1
    session = await pairs.asked("begin", sampling=SAMPLING, handover=mode)
    deltas = await session.deltas(num_before)
    victim = await decode_of(pairs)
    await victim.kill()
    for worker in pairs.workers:
        worker.decode.hold_after_steps = None
        worker.decode.may_step.set()
    answered = await session.answer()
    answered.deltas[:0] = deltas
    answered.text = "".join(delta.text for delta in answered.deltas)
    answered.token_ids = [token for delta in answered.deltas for token in delta.token_ids]
    check(pairs, answered, pairs.encode("begin"))
    record = max((w.prefill.records[-1] for w in pairs.workers if w.prefill.records), key=_length)
    assert record.answer_tokens == num_before
    assert record.sequence[-num_before:] == answered.token_ids[:num_before]
    # The last token needs no decode worker.
    requests = [r for w in pairs.workers if w is not victim for r in w.decode.requests]
    assert [each.answer_tokens for each in requests] == (
        [num_before + 1] if num_before < NUM_TOKENS - 1 else []
    )
    assert pairs.metric("stream2llm_session_restarts_total", cause="decode_lost") == 1
    assert pairs.metric("stream2llm_recovery_seconds_count", cause="decode_lost") == 1
    cost = (await pairs.stub.GetServerInfo(pb.GetServerInfoRequest())).recovery
    assert cost.num_recovered == 1
    measured_s = pairs.metric("stream2llm_recovery_seconds_sum", cause="decode_lost")
    times_s = [each.ToTimedelta().total_seconds() for each in (cost.total, cost.longest)]
    assert times_s == pytest.approx([measured_s, measured_s], abs=1e-5)


def _length(record: Any) -> int:
    return len(record.sequence)


async def test_a_prefill_worker_lost_before_decode_has_the_kv_costs_no_token(pairs: Ring) -> None:
    for worker in pairs.workers:
        worker.decode.hold_after_steps = 0
    session = await pairs.asked("begin", sampling=SAMPLING)
    first = await session.next("delta")
    decode = (await decode_of(pairs)).decode
    await (await prefill_of(pairs)).kill()
    await soon(decode.cancelled.wait())
    for worker in pairs.workers:
        worker.decode.hold_after_steps = None
        worker.decode.may_step.set()
    answered = await session.answer()
    answered.deltas.insert(0, first)
    answered.text, answered.token_ids = (
        first.text + answered.text,
        [*first.token_ids, *answered.token_ids],
    )
    check(pairs, answered, pairs.encode("begin"))


async def test_kv_that_could_not_be_fetched_is_computed_again(ring_that_recovers: Ring) -> None:
    ring = ring_that_recovers
    lost = UnavailableError("the KV could not be fetched", reason="KV_LOST")
    ring.decode.late_rejection = lost
    ring.decode.may_accept.clear()
    session = await ring.asked("begin", sampling=SAMPLING)
    await soon(ring.decode.called.wait())
    ring.decode.called.clear()
    ring.decode.may_accept.set()
    await soon(ring.decode.called.wait())
    ring.decode.late_rejection = None
    answered = await session.answer()
    check(ring, answered, ring.encode("begin"), answered.finished.restarts)
    assert 1 <= answered.finished.restarts <= 3


@pytest.mark.parametrize("num_prefill", [1, 2])
async def test_kv_that_never_arrives_at_one_decode_worker_is_given_to_another(
    make_ring: Any, num_prefill: int
) -> None:
    ring = await make_ring(
        num_prefill=num_prefill, num_decode=2, recovery=RecoveryOptions(max_restarts=1)
    )
    lost = UnavailableError("the KV could not be fetched", reason="KV_LOST")
    decode_workers = [worker for worker in ring.workers if worker.role == "decode"]
    decode_workers[0].decode.late_rejection = lost
    check(ring, await ring.answer_to("begin", sampling=SAMPLING), ring.encode("begin"), 1)
    assert [len(worker.decode.requests) for worker in decode_workers] == [1, 1]


@pytest.fixture
async def ring_that_recovers(make_ring: Any) -> Ring:
    """One worker of each role, whose successors are waited for."""
    ring: Ring = await make_ring(recovery=RecoveryOptions())
    return ring


async def test_an_answer_waits_for_the_only_decode_worker_before_it_is_computed_again(
    ring_that_recovers: Ring,
) -> None:
    """Its KV would take memory of prefill for nothing."""
    ring = ring_that_recovers
    ring.decode.hold_after_steps = 2
    session = await ring.asked("begin", sampling=SAMPLING)
    deltas = await session.deltas(3)
    await ring.worker("decode").kill()
    while (await session.next("progress")).restarts == 0:
        pass
    assert len(ring.prefill.records) == 1
    ring.decode.hold_after_steps = None
    ring.decode.may_step.set()
    await successor_of(ring, ring.worker("decode"))
    answered = await session.answer()
    tokens = [*(token for delta in deltas for token in delta.token_ids), *answered.token_ids]
    assert tokens == ring.brain.answer(ring.encode("begin"), NUM_TOKENS)


# -- the end of an answer ---------------------------------------------------------------------


@pytest.mark.parametrize("num_before", range(1, 4))
async def test_a_stop_string_that_begins_before_the_loss_is_found_behind_it(
    make_ring: Any, num_before: int
) -> None:
    ring = await make_ring(num_decode=2, recovery=RecoveryOptions())
    ring.brain.script = [token for text in ("on", "e ", "tw", "o ") for token in ring.encode(text)]
    stop = ring.decode_text(ring.brain.script)[2:6]
    sampling = pb.SamplingParameters(max_tokens=20, stop_strings=[stop])
    undisturbed = await _disturbed(ring, sampling, None)
    answered = await _disturbed(ring, sampling, num_before)
    assert (answered.text, answered.finished.stop_string) == (undisturbed.text, stop)
    assert answered.token_ids == undisturbed.token_ids
    assert answered.finished.reason == pb.FINISH_REASON_STOP_STRING


async def test_the_end_of_sequence_may_be_the_token_that_prefill_samples(make_ring: Any) -> None:
    ring = await make_ring(num_decode=2, recovery=RecoveryOptions())
    ring.brain.script = [70, 71, EOS]
    answered = await _disturbed(ring, pb.SamplingParameters(max_tokens=20), 2)
    assert answered.token_ids == [70, 71, EOS]
    assert answered.finished.reason == pb.FINISH_REASON_STOP_TOKEN
    assert answered.finished.stop_token_id == EOS


async def _disturbed(ring: Ring, sampling: Any, num_before: int | None) -> Answered:
    """The answer of a session whose decode worker is lost behind so many tokens."""
    for worker in ring.workers:
        worker.decode.requests.clear()
        worker.decode.hold_after_steps = None if num_before is None else num_before - 1
    session = await ring.asked("begin", sampling=sampling)
    if num_before is not None:
        await soon(_holds(ring))
        await (await decode_of(ring)).kill()
        for worker in ring.workers:
            worker.decode.hold_after_steps = None
            worker.decode.may_step.set()
    return await session.answer()


async def _holds(ring: Ring) -> None:
    """Waits until a decode worker has given all that it may."""

    async def has_given() -> bool:
        return any(not worker.decode.may_step.is_set() for worker in ring.workers)

    await eventually(has_given, bool)


# -- what is not recovered ----------------------------------------------------------------------


async def test_a_session_that_kills_every_engine_gets_no_third(make_ring: Any) -> None:
    ring = await make_ring(num_prefill=3, recovery=RecoveryOptions())
    for worker in ring.workers:
        worker.prefill.failures["seal"] = UnavailableError("it died", reason="WORKER_LOST")
        worker.is_ready = False
    session = await ring.asked("begin", sampling=SAMPLING)
    error = await failure(session)
    assert error.reason == "WORKER_LOST"
    assert "restarted once, and no more: 2 engines died" in error.message
    used = [worker for worker in ring.workers if worker.prefill.records]
    assert len(used) == 2


async def test_the_last_of_the_restarts_is_the_limit(make_ring: Any) -> None:
    ring = await make_ring(recovery=RecoveryOptions(max_restarts=2))
    ring.decode.late_rejection = UnavailableError("no KV", reason="KV_LOST")
    session = await ring.asked("begin", sampling=SAMPLING)
    error = await failure(session)
    assert error.reason == "KV_LOST"
    assert "restarted 2 times, and no more: the limit is 2" in error.message
    assert len(ring.prefill.records) == 3


async def test_an_error_of_the_session_itself_is_not_tried_elsewhere(pairs: Ring) -> None:
    for worker in pairs.workers:
        worker.prefill.failures["seal"] = InternalError("a bug")
    session = await pairs.asked("begin", sampling=SAMPLING)
    await failure(session)
    assert sum(len(worker.prefill.records) for worker in pairs.workers) == 1


async def test_an_answer_too_long_for_prefill_is_not_tried(make_ring: Any) -> None:
    ring = await make_ring(prefill_blocks=1, num_decode=2, recovery=RecoveryOptions())
    for worker in ring.workers:
        worker.decode.hold_after_steps = 5
    session = await ring.opened(sampling=pb.SamplingParameters(max_tokens=30, ignore_eos=True))
    await session.append(pb.Document(token_ids=pb.TokenIds(ids=[70] * 14)))
    await session.seal()
    await session.deltas(6)
    await (await decode_of(ring)).kill()
    error = await failure(session)
    assert error.reason == "WORKER_LOST"
    assert "have 20 tokens, too many to go on" in error.message


async def test_a_session_cancelled_while_it_waits_for_a_worker_ends(
    ring_that_recovers: Ring,
) -> None:
    ring = ring_that_recovers
    session = await ring.opened("begin", sampling=SAMPLING)
    await session.next("progress")
    await ring.worker("prefill").kill()
    while (await session.next("progress")).restarts == 0:
        pass
    session.call.cancel()
    await ring.nothing_is_open()


async def failure(session: Conversation) -> Stream2LLMError:
    return from_rpc_error(await session.failure())


# -- the log ------------------------------------------------------------------------------------


async def test_each_restart_and_each_end_has_one_line(
    pairs: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    session = await pairs.opened("begin", session_id="mine", sampling=SAMPLING)
    await session.next("progress")
    victim = await prefill_of(pairs)
    await victim.kill()
    await session.finish()
    await pairs.nothing_is_open()
    lines = [each.getMessage() for each in caplog.records if "session_id=mine" in each.getMessage()]
    restarted, ended = (line for line in lines if line.startswith("session_"))
    survivor = next(w for w in pairs.workers if w.role == "prefill" and w is not victim)
    assert restarted.startswith(
        f"session_restarted session_id=mine cause=prefill_lost lost={victim.worker_id}"
        f" worker={survivor.worker_id} "
    )
    workers = f"{victim.worker_id},{survivor.worker_id},decode-"
    assert ended.startswith(
        f"session_ended session_id=mine outcome=ok tenant=default workers={workers}"
    )
    assert f" answer_tokens={NUM_TOKENS} " in ended
    assert " restarts=1 " in ended


async def test_the_log_says_how_far_a_cancelled_session_came(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    session = await ring.opened("begin", session_id="gone")
    await session.next("progress")
    session.call.cancel()
    await ring.nothing_is_open()
    (line,) = (m for m in caplog.messages if m.startswith("session_ended session_id=gone"))
    num_tokens = len(ring.encode("begin"))
    assert (
        f"outcome=cancelled tenant=default workers=prefill-0 input_mode=append tokens={num_tokens}"
        in line
    )
    await asyncio.sleep(0)
