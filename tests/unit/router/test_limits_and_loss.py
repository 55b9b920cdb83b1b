"""Limits, lost workers, draining: ends of a session for which its client is not to blame."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from typing import Any

import grpc
import pytest

from router.splice import Splice
from router.worker_calls import PrefillCall
from stream2llm.api.errors import UnavailableError
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import worker_pb2
from stream2llm.serving.sessions.prefix import as_tokens
from stream2llm.serving.settings.router_spec import RecoveryOptions
from tests.router_ring import Ring, reason_of, soon


def retry_of(error: Any) -> float | None:
    ours = from_rpc_error(error)
    return ours.retry_after_s


# -- limits -----------------------------------------------------------------------


@pytest.mark.parametrize("opened", [False, True])
async def test_a_silent_session_ends(make_ring: Any, opened: bool) -> None:
    ring = await make_ring(input_idle_timeout_s=0.05)
    session = ring.converse()
    if opened:
        await session.open("hello")
    error = await session.failure()
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason_of(error) == "INPUT_IDLE"
    assert "no event came for 0.05 s" in error.details()


async def test_a_sealed_session_is_not_silent(make_ring: Any) -> None:
    ring = await make_ring(input_idle_timeout_s=0.05)
    ring.prefill.may_sample.clear()
    session = await ring.asked("hello", sampling=pb.SamplingParameters(max_tokens=2))
    # Twice the idle time passes in another session, which does time out.
    for _ in range(2):
        silent = await ring.opened("x")
        await silent.failure()
    ring.prefill.may_sample.set()
    assert (await session.answer()).finished.usage.completion_tokens == 2


async def test_a_session_may_not_last_for_ever(make_ring: Any) -> None:
    ring = await make_ring(max_session_duration_s=0.2)
    ring.decode.hold_after_steps = 1
    error = await ring.refusal_of("hello")
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason_of(error) == "SESSION_TOO_LONG"
    if ring.decode.called.is_set():  # on a busy machine the time may be over before that
        await soon(ring.decode.cancelled.wait())


async def test_too_many_sessions_are_refused_for_now(make_ring: Any) -> None:
    ring = await make_ring(max_open_sessions=1)
    first = await ring.opened("hello")
    await first.next("accepted")
    second = ring.converse()
    error = await second.failure()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(error) == "TOO_MANY_SESSIONS"
    assert retry_of(error) == 1.0
    first.call.cancel()


async def test_a_session_may_send_so_many_tokens_in_its_life(make_ring: Any) -> None:
    ring = await make_ring(max_session_tokens=50)
    session = await ring.opened("zz")
    for _ in range(3):
        await session.update("z" * 20)
    error = await session.failure()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(error) == "SESSION_TOKENS_EXCEEDED"
    assert not retry_of(error)  # trying again does not help
    assert "at most 50" in error.details()


async def test_too_many_documents_in_an_event(make_ring: Any) -> None:
    ring = await make_ring(max_documents_per_event=2)
    session = await ring.opened("hello")
    await session.append("a", "b", "c")
    error = await session.failure()
    assert reason_of(error) == "TOO_MANY_DOCUMENTS"


def ids(num_tokens: int) -> Any:
    return pb.Document(token_ids=pb.TokenIds(ids=[70] * num_tokens))


@pytest.mark.parametrize(
    ("sizes", "longest", "max_tokens", "message"),
    [
        ({"prefill_blocks": 2}, 32, 3, "smallest prefill worker holds at most 32"),
        ({"decode_blocks": 2}, 31, 3, "one for the answer .*decode worker holds at most 32"),
        # Prefill samples the only token.
        ({"prefill_blocks": 3, "decode_blocks": 2}, 48, 1, "prefill worker holds at most 48"),
        ({"max_model_len": 32}, 31, 3, r"the model takes at most 32 \(max_model_len\)"),
    ],
)
async def test_what_no_worker_can_hold_is_refused_at_once(
    make_ring: Any, sizes: dict[str, int], longest: int, max_tokens: int, message: str
) -> None:
    ring = await make_ring(**sizes)
    sampling = pb.SamplingParameters(max_tokens=max_tokens, ignore_eos=True)
    fits = await ring.opened(sampling=sampling)
    await fits.append(ids(longest))
    assert (await fits.finish()).finished.usage.prompt_tokens == longest
    session = await ring.opened(sampling=sampling)
    await session.append(ids(longest + 1))  # and no seal
    error = await session.failure()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "CONTEXT_TOO_LONG"
    assert re.search(f"has {longest + 1} tokens; .*{message}", error.details())


async def test_the_seals_suffix_counts_too(make_ring: Any) -> None:
    ring = await make_ring(prefill_blocks=2)
    session = await ring.opened()
    await session.append(ids(32))
    await session.seal(suffix=pb.Content(token_ids=pb.TokenIds(ids=[70])))
    error = await session.failure()
    assert "has 33 tokens; the KV memory of the smallest prefill worker" in error.details()


async def test_the_smallest_worker_of_the_view_bounds_a_new_session(make_ring: Any) -> None:
    ring = await make_ring(num_prefill=2)
    small = ring.workers[1]
    small.address = dataclasses.replace(small.address, num_kv_blocks=2, pids=(2,))
    ring.show(*ring.workers)
    info = await ring.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (info.max_prompt_tokens, info.max_model_len) == (32, 1000)
    ring.show(ring.workers[0], ring.workers[2])
    info = await ring.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (info.max_prompt_tokens, info.max_model_len) == (999, 1000)


async def test_a_shortage_of_memory_is_told(ring: Ring) -> None:
    ring.prefill.delay = pb.DELAY_REASON_KV_LEASED
    session = await ring.opened("hello")
    while (await session.next("progress")).delay != pb.DELAY_REASON_KV_LEASED:
        pass
    ring.prefill.delay = pb.DELAY_REASON_UNSPECIFIED
    await session.append("more")
    while (await session.next("progress")).delay != pb.DELAY_REASON_UNSPECIFIED:
        pass
    session.call.cancel()


async def test_beyond_the_window_the_client_is_not_read(make_ring: Any) -> None:
    ring = await make_ring(credit_window_tokens=10, input_idle_timeout_s=0.2)
    ring.prefill.may_compute.clear()
    session = await ring.opened("z" * 30)
    assert (await session.next("accepted")).credit_tokens == 10
    assert (await session.next("progress")).credit_tokens == 0
    await session.append("y" * 5)
    await session.seal()
    # Nothing is read, and waiting for prefill is not the client's idleness.
    other = ring.converse()
    await other.failure()
    assert len(ring.record.splices) == 1
    assert not ring.record.sealed.is_set()
    ring.prefill.may_compute.set()
    assert (await session.answer()).finished.usage.prompt_tokens == 35


# -- workers ----------------------------------------------------------------------


async def test_without_another_prefill_worker_a_lost_one_fails_its_sessions(ring: Ring) -> None:
    session = await ring.opened("hello")
    await session.next("progress")
    await ring.worker("prefill").kill()
    error = await session.failure()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(error) == "WORKER_LOST"
    # When its successor is expected.
    assert 20 < (retry_of(error) or 0) <= 30
    assert "prefill-0 was lost" in error.details()
    assert "no prefill worker could be used within 0 s" in error.details()


async def test_without_another_one_a_prefill_worker_lost_in_the_hand_over_fails_the_session(
    ring: Ring,
) -> None:
    ring.decode.hold_after_steps = 0
    session = await ring.asked("hello")
    await session.next("delta")
    await soon(ring.decode.called.wait())
    await ring.worker("prefill").kill()
    error = await session.failure()
    assert reason_of(error) == "WORKER_LOST"
    await soon(ring.decode.cancelled.wait())


async def test_a_prefill_worker_lost_after_the_hand_over_is_nobodys_loss(ring: Ring) -> None:
    ring.decode.hold_after_steps = 1
    session = await ring.asked("hello", sampling=pb.SamplingParameters(max_tokens=4))
    await session.deltas(2)
    await ring.worker("prefill").kill()
    ring.decode.may_step.set()
    ring.decode.hold_after_steps = None
    assert (await session.answer()).finished.usage.completion_tokens == 4


async def test_without_another_decode_worker_a_lost_one_fails_its_sessions(ring: Ring) -> None:
    ring.decode.hold_after_steps = 1
    session = await ring.asked("hello")
    await session.deltas(2)
    await ring.worker("decode").kill()
    error = await session.failure()
    assert reason_of(error) == "WORKER_LOST"
    assert "decode-0" in error.details()


async def test_a_lost_worker_gets_nothing_until_its_successor_is_there(make_ring: Any) -> None:
    ring = await make_ring()
    session = await ring.opened("hello")
    await session.next("progress")
    worker = ring.worker("prefill")
    await worker.kill()
    await session.failure()
    refused = await ring.opened("hello")
    error = await refused.failure()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(error) == "NO_PREFILL_WORKER"
    await worker.start(pid=2)
    ring.show(*ring.workers)
    assert (
        await ring.answer_to("hello", sampling=pb.SamplingParameters(max_tokens=2))
    ).finished.usage.completion_tokens == 2


async def test_a_new_session_waits_for_the_successor_of_the_only_worker(make_ring: Any) -> None:
    ring = await make_ring(recovery=RecoveryOptions(max_wait_s=60))
    worker = ring.worker("prefill")
    await worker.kill()
    session = ring.converse()
    await session.open("hello", sampling=pb.SamplingParameters(max_tokens=2))
    await session.seal()
    await worker.start(pid=2)
    ring.show(*ring.workers)
    assert (await session.answer()).finished.usage.completion_tokens == 2


async def test_a_suspect_that_answers_again_is_used_again(ring: Ring) -> None:
    worker = ring.worker("prefill")
    session = await ring.opened("hello")
    await session.next("progress")
    port = int(worker.address.grpc_address.rsplit(":", 1)[1])
    await worker.kill()
    await session.failure()
    suspect = next(w for w in ring.router._parts.workers if w.worker_id == "prefill-0")
    assert suspect.is_suspect
    await worker.start(port=port)
    async with asyncio.timeout(10):
        while suspect.is_suspect:  # the probe's own answer is on its way
            request = worker_pb2.GetWorkerStatusRequest()
            await suspect.link.status.GetWorkerStatus(request, wait_for_ready=True)


async def test_a_worker_whose_engine_died_gets_nothing_while_it_says_so(ring: Ring) -> None:
    """Its actor lives, so gRPC finds nothing wrong; with no session it would be chosen first."""
    worker = ring.worker("prefill")
    ring.prefill.failures["open"] = UnavailableError("its engine died", reason="WORKER_LOST")
    worker.is_ready = False
    session = await ring.opened("hello")
    assert reason_of(await session.failure()) == "WORKER_LOST"
    refused = await ring.opened("hello")
    assert reason_of(await refused.failure()) == "NO_PREFILL_WORKER"
    info = await ring.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert [each.ready for each in info.workers if each.role == "prefill"] == [False]


async def test_without_a_decode_worker_the_hand_over_waits_for_its_lease(ring: Ring) -> None:
    session = await ring.opened("hello")
    await session.next("progress")
    ring.show(ring.worker("prefill"))
    await session.seal()
    error = await session.failure()
    assert reason_of(error) == "NO_DECODE_WORKER"


async def test_a_worker_that_left_the_view_keeps_its_sessions(make_ring: Any) -> None:
    ring = await make_ring(num_prefill=2)
    session = await ring.opened("hello", sampling=pb.SamplingParameters(max_tokens=2))
    await session.next("progress")
    ring.show(*(w for w in ring.workers if w.worker_id != "prefill-0"))
    await session.append("world")
    assert (await session.finish()).finished.usage.completion_tokens == 2


# -- the end ----------------------------------------------------------------------


async def test_draining_refuses_new_sessions_and_ends_the_open_ones(make_ring: Any) -> None:
    ring = await make_ring(drain_timeout_s=5)
    session = await ring.opened("hello", sampling=pb.SamplingParameters(max_tokens=2))
    await session.next("accepted")
    async with asyncio.TaskGroup() as group:
        draining = group.create_task(ring.router.drain())
        await asyncio.sleep(0)  # lets it begin
        refused = ring.converse()
        error = await refused.failure()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(error) == "DRAINING"
        assert not draining.done()
        assert (await session.finish()).finished.usage.completion_tokens == 2
        await soon(draining)


async def test_a_drain_keeps_its_limit_and_says_why_the_rest_ends(make_ring: Any) -> None:
    ring = await make_ring(drain_timeout_s=3600)
    session, sealed = ring.converse(), ring.converse()
    await session.open("hello")
    await session.next("accepted")
    ring.prefill.may_sample.clear()
    await sealed.open("hello", sampling=pb.SamplingParameters(max_tokens=2))
    await sealed.seal()
    await soon(ring.prefill.session_came.wait())
    await soon(ring.router.drain(0.01))
    for each in (session, sealed):
        error = await each.failure()
        ours = from_rpc_error(error)
        assert (error.code(), ours.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert "0.01 s" in ours.message
        assert ours.retry_after_s
    assert ring.metric("stream2llm_errors_total", reason="DRAINING") == 2
    assert (await ring.router.status()).sessions_by_phase == {}


async def test_stopping_ends_what_is_open(make_ring: Any) -> None:
    ring = await make_ring()
    session = await ring.opened("hello")
    await soon(ring.prefill.session_came.wait())
    await ring.router.stop()
    error = await session.failure()
    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    await soon(ring.record.ended.wait())


async def test_an_rpc_that_was_cancelled_here_is_no_sign_of_a_lost_worker(ring: Ring) -> None:
    """A session that ends cancels its RPC; who still writes to it then is not heard."""
    pool = ring.router._parts.workers
    worker = pool.pick("prefill")
    assert worker is not None
    worker_call = PrefillCall(pool, worker)
    await worker_call.open("cancelled", SamplingParameters(max_tokens=1))
    worker_call.close()
    tokens = as_tokens([1])
    with pytest.raises(asyncio.CancelledError):
        await worker_call.splice(1, Splice(0, tokens, 1, is_empty=False))
    assert pool.is_usable(worker)
