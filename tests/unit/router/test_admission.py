"""Admission by forecast: what is queued, how fast it goes, and what a session learns at its opening."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from router.admission import MOST_RETRY_S, admit, forecast, verdict_of
from router.work_queue import WorkQueue
from stream2llm.api.errors import OverloadedError
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.tenant import ONE_TENANT, TenantShare
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.security.principal import DEFAULT_TENANT
from stream2llm.serving.settings.router_spec import AdmissionMode
from tests.credentials import Keys, sent
from tests.polling import eventually
from tests.router_ring import Ring

# That of callers without credentials.
THE_TENANT = TenantShare(DEFAULT_TENANT)


def a_busy_queue() -> WorkQueue:
    """Two thousand tokens computed in two seconds; 3,000 left, of which 1,000 are overdue at 103 s."""
    queue = WorkQueue()
    queue.note(1, num_left=4000, num_computed=0, now_s=100.0, tenant=ONE_TENANT)
    queue.note(1, num_left=2000, num_computed=2000, now_s=102.0, tenant=ONE_TENANT)
    queue.note(2, num_left=1000, num_computed=0, now_s=102.0, due_s=102.5, tenant=ONE_TENANT)
    return queue


def test_the_rate_is_what_was_computed_while_there_was_work() -> None:
    queue = a_busy_queue()
    assert queue.tokens_per_s(102.0) == pytest.approx(1000, rel=0.1)
    queue.leave(1, 102.0)
    queue.leave(2, 102.0)
    rate = queue.tokens_per_s(102.0)
    queue.note(3, num_left=0, num_computed=0, now_s=112.0, tenant=ONE_TENANT)
    assert queue.tokens_per_s(112.0) == pytest.approx(rate)  # an idle worker is no slow one
    assert queue.tokens_per_s(900.0) is None


def test_a_new_rate_replaces_the_old_one() -> None:
    queue = a_busy_queue()
    for second in range(200):
        computed = 2000 + 200 * second
        queue.note(1, num_left=2000, num_computed=computed, now_s=102.0 + second, tenant=ONE_TENANT)
    assert queue.tokens_per_s(302.0) == pytest.approx(200, rel=0.1)


def test_a_long_wait_for_memory_is_forgotten_when_work_goes_on() -> None:
    """Ten minutes without a token, then a minute at 5,000 tokens a second."""
    queue = a_busy_queue()
    for second in range(60):
        queue.note(
            1,
            num_left=2000,
            num_computed=2000 + 5000 * second,
            now_s=702.0 + second,
            tenant=ONE_TENANT,
        )
    assert queue.tokens_per_s(762.0) == pytest.approx(5000, rel=0.2)


def test_too_few_tokens_are_no_rate() -> None:
    queue = WorkQueue()
    queue.note(1, num_left=500, num_computed=0, now_s=1.0, tenant=ONE_TENANT)
    queue.note(1, num_left=0, num_computed=500, now_s=2.0, tenant=ONE_TENANT)
    assert queue.tokens_per_s(2.0) is None
    assert forecast(100, 0, queue.tokens_per_s(2.0), 1) is None


def test_sessions_whose_deadline_has_passed_do_not_go_before_a_new_one() -> None:
    queue = a_busy_queue()
    assert queue.num_before(ONE_TENANT, 100, 102.4) == 3000
    assert queue.num_before(ONE_TENANT, 100, 103.0) == 2000
    queue.leave(1, 103.0)
    queue.leave(1, 103.0)
    assert queue.num_before(ONE_TENANT, 100, 103.0) == 0


@pytest.mark.parametrize(
    ("weight", "priority", "num_before"),
    [(1, 0, 400), (2, 0, 800), (0.5, 0, 200), (1000, 0, 65_000), (1, 1, 65_000), (1, -1, 0)],
)
def test_another_tenants_work_goes_before_by_priority_and_weight(
    weight: float, priority: int, num_before: int
) -> None:
    """Work that is late among its tenant's own goes before other tenants' all the same."""
    mine, other = TenantShare("mine"), TenantShare("other", weight, priority)
    queue = WorkQueue()
    queue.note(1, num_left=60_000, num_computed=0, now_s=1.0, tenant=other)
    queue.note(2, num_left=5_000, num_computed=0, now_s=1.0, due_s=0.5, tenant=other)
    assert queue.num_before(mine, 400, 1.0) == num_before
    queue.note(3, num_left=100, num_computed=0, now_s=1.0, tenant=mine)
    more = min(100 * weight, 65_000 - num_before) if not priority else 0
    assert queue.num_before(mine, 400, 1.0) == 100 + num_before + more


@pytest.mark.parametrize(("slo_ms", "holds"), [(3000, True), (2999, False)])
def test_a_deadline_holds_while_the_work_fits_into_it(slo_ms: int, holds: bool) -> None:
    found = forecast(2000, 1000, 1000.0, slo_ms)
    assert (found.ttft_ms, found.holds) == (3000, holds)


def test_without_a_deadline_or_a_rate_there_is_no_forecast() -> None:
    assert forecast(2000, 1000, 1000.0, 0) is None
    assert forecast(2000, 1000, None, 500) is None
    assert verdict_of(None, "refuse") == "unknown"
    assert admit(None, "refuse", 500) is None


@pytest.mark.parametrize(("mode", "warning"), [("always", None), ("warn", 3000)])
def test_what_will_not_hold_is_admitted_where_the_operator_says_so(
    mode: AdmissionMode, warning: int | None
) -> None:
    found = forecast(2000, 1000, 1000.0, 500)
    assert admit(found, mode, 500) == warning
    assert verdict_of(found, mode) == "warned"


def test_what_waits_for_no_other_session_is_warned_and_not_refused() -> None:
    found = forecast(0, 3000, 1000.0, 500)
    assert (admit(found, "refuse", 500), verdict_of(found, "refuse")) == (3000, "warned")


def test_a_warning_fits_into_its_field() -> None:
    assert admit(forecast(0, 2**33, 1.0, 500), "warn", 500) == 2**32 - 1


@pytest.mark.parametrize(
    ("num_before", "num_own", "retry_s"),
    [(3000, 100, 2.6), (2000, 5000, 2.0), (10**6, 0, MOST_RETRY_S)],
)
def test_a_refused_client_is_told_when_the_queue_will_be_short_enough(
    num_before: int, num_own: int, retry_s: float
) -> None:
    with pytest.raises(OverloadedError, match=r"deadline is 500 ms \(router.admission\)") as caught:
        admit(forecast(num_before, num_own, 1000.0, 500), "refuse", 500)
    assert caught.value.reason == "DEADLINE_OUT_OF_REACH"
    assert caught.value.retry_after_s == retry_s


def queue_of(ring: Ring) -> WorkQueue:
    workers = ring.router._parts.workers
    return next(each.queue for each in workers if each.address.role == "prefill")


async def num_before(ring: Ring) -> int:
    now_s = ring.router._parts.clock.monotonic_s()
    return queue_of(ring).num_before(THE_TENANT, 0, now_s)


def fill(ring: Ring, tenant: TenantShare = THE_TENANT) -> None:
    """Three seconds of work, by what was learned in the last two."""
    queue, now_s = queue_of(ring), ring.router._parts.clock.monotonic_s()
    queue.note(-1, num_left=4000, num_computed=0, now_s=now_s - 2, tenant=tenant)
    queue.note(-1, num_left=3000, num_computed=2000, now_s=now_s, tenant=tenant)


async def opened(ring: Ring, slo_ms: int | None) -> Any:
    fields = {} if slo_ms is None else {"ttft_slo_ms": slo_ms}
    return await ring.opened("hello ", **fields)


async def test_a_session_is_warned_at_its_opening(make_ring: Callable[..., Any]) -> None:
    ring = await make_ring(admission="warn")
    fill(ring)
    warned, in_time, without = [await opened(ring, slo_ms) for slo_ms in (200, 60_000, None)]
    assert 2500 < (await warned.next("accepted")).ttft_forecast_ms < 3500
    for each in (in_time, without):
        assert not (await each.next("accepted")).HasField("ttft_forecast_ms")
    for each in (warned, in_time, without):
        await each.finish()
    counts = {
        verdict: ring.metric("stream2llm_admission_forecasts_total", verdict=verdict)
        for verdict in ("holds", "warned", "refused", "unknown")
    }
    assert counts == {"holds": 1, "warned": 1, "refused": 0, "unknown": 0}


async def test_before_a_rate_is_learned_all_are_admitted(make_ring: Callable[..., Any]) -> None:
    ring = await make_ring(admission="refuse")
    conversation = await opened(ring, 1)
    await conversation.finish()
    assert ring.metric("stream2llm_admission_forecasts_total", verdict="unknown") == 1


async def test_a_session_is_refused_with_the_time_to_try_again(
    make_ring: Callable[..., Any],
) -> None:
    ring = await make_ring(admission="refuse")
    fill(ring)
    error = await (await opened(ring, 200)).failure()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    ours = from_rpc_error(error)
    assert ours.reason == "DEADLINE_OUT_OF_REACH"
    assert 2.3 < (ours.retry_after_s or 0) < 3.3
    assert not ring.prefill.records
    assert ring.metric("stream2llm_errors_total", reason="DEADLINE_OUT_OF_REACH") == 1
    later = await opened(ring, 60_000)
    await later.finish()


async def test_one_tenants_queue_does_not_refuse_another_ones_sessions(
    make_ring: Callable[..., Any], tmp_path: Path
) -> None:
    keys = Keys(tmp_path)
    heavy, light = keys.create("heavy"), keys.create("light")
    ring = await make_ring(admission="refuse", security=keys.security())
    fill(ring, TenantShare("heavy"))
    refused, served = ring.converse(sent(heavy)), ring.converse(sent(light))
    for each in (refused, served):
        await each.open("hello ", ttft_slo_ms=200)
    assert from_rpc_error(await refused.failure()).reason == "DEADLINE_OUT_OF_REACH"
    await served.finish()


async def test_a_low_rate_refuses_nothing_at_an_idle_worker(make_ring: Callable[..., Any]) -> None:
    ring = await make_ring(admission="refuse")
    queue, now_s = queue_of(ring), ring.router._parts.clock.monotonic_s()
    tenant = THE_TENANT
    queue.note(-1, num_left=4000, num_computed=0, now_s=now_s - 30, tenant=tenant)
    queue.note(-1, num_left=0, num_computed=4000, now_s=now_s, tenant=tenant)
    conversation = await opened(ring, 1)
    assert (await conversation.next("accepted")).ttft_forecast_ms > 1
    await conversation.finish()


async def test_prompts_that_are_computed_at_once_teach_the_rate(ring: Ring) -> None:
    """Prefill reports their tokens with the first token only."""
    for _ in range(3):
        request = pb.GenerateRequest(text="word " * 250, sampling={"max_tokens": 1})
        assert [_ async for _ in ring.stub.Generate(request)]
    assert queue_of(ring).tokens_per_s(ring.router._parts.clock.monotonic_s())


async def test_by_default_nothing_is_refused(ring: Ring) -> None:
    fill(ring)
    conversation = await opened(ring, 1)
    assert not (await conversation.next("accepted")).HasField("ttft_forecast_ms")
    await conversation.finish()


async def test_a_sessions_work_is_counted_while_it_is_left(ring: Ring) -> None:
    """The whole context while prefill is held back; nothing after the first token."""
    ring.prefill.may_compute.clear()
    conversation = await opened(ring, 60_000)
    await conversation.append("the quick brown fox")
    num_tokens = len(ring.encode("hello ")) + len(ring.encode("the quick brown fox"))
    await eventually(lambda: num_before(ring), lambda found: found == num_tokens - 1)
    ring.prefill.may_compute.set()
    await conversation.finish()
    await ring.nothing_is_open()
    assert await num_before(ring) == 0
    gone = await opened(ring, 60_000)
    await gone.next("accepted")
    gone.call.cancel()
    await ring.nothing_is_open()
    assert await num_before(ring) == 0
