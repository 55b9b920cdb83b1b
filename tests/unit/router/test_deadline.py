"""By when a first token is due: who may say so, what reaches prefill, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from router.admission import chosen_slo_ms
from stream2llm.api.call_metadata import TTFT_SLO_NAMES
from stream2llm.api.errors import UnavailableError
from stream2llm.api.options import AskedSlo, slos_in
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.settings.tenant_options import TenantOptions, TenantsOptions
from tests.polling import eventually
from tests.refusals import refused
from tests.router_ring import Ring, soon

MODEL_MS = 1000
TENANTS = TenantsOptions(
    named={name: TenantOptions(ttft_slo_ms=ms) for name, ms in (("acme", 200), ("batch", 9000))}
)
FIELD = "open.ttft_slo_ms"


async def now_s(ring: Ring) -> float:
    return ring.router._parts.clock.monotonic_s()


def chosen(model_ms: int | None, tenant: str, *asked_ms: int) -> int:
    asked = [AskedSlo(FIELD, each) for each in asked_ms]
    return chosen_slo_ms(asked, model_ms, TENANTS, tenant)


@pytest.mark.parametrize(
    ("tenant", "asked_ms", "slo_ms"),
    [
        ("other", (), 1000),
        ("acme", (), 200),
        ("batch", (), 9000),
        ("other", (400,), 400),
        ("batch", (5000,), 5000),
        ("batch", (5000, 3000), 3000),
        ("acme", (200,), 200),
    ],
)
def test_the_shortest_asked_for_else_the_tenants_else_the_models(
    tenant: str, asked_ms: tuple[int, ...], slo_ms: int
) -> None:
    assert chosen(MODEL_MS, tenant, *asked_ms) == slo_ms


@pytest.mark.parametrize(
    ("tenant", "limit", "whose"), [("acme", 200, "the tenant 'acme'"), ("other", 1000, "the model")]
)
def test_none_may_be_longer_than_the_tenants_or_the_models(
    tenant: str, limit: int, whose: str
) -> None:
    with refused(f"at most {limit}, which {whose} has", field=FIELD, reason="BAD_TTFT_SLO"):
        chosen(MODEL_MS, tenant, limit - 1, limit + 1)


def test_without_limits_any_is_accepted_and_none_is_none() -> None:
    assert chosen(None, "other", 3_600_000) == 3_600_000
    assert chosen(None, "other") == 0


@pytest.mark.parametrize("name", TTFT_SLO_NAMES)
@pytest.mark.parametrize("value", ["", "0", "-5", "1.5", "3600001", "9" * 40, "ten", "\u0661"])
def test_a_bad_value_in_metadata_is_refused_by_its_name(name: str, value: str) -> None:
    with refused("between 1 and 3600000", field=name, reason="BAD_TTFT_SLO"):
        list(slos_in([("other", "x"), (name, value)]))


@pytest.mark.parametrize("name", TTFT_SLO_NAMES)
async def test_each_gateways_name_sets_the_deadline(ring: Ring, name: str) -> None:
    conversation = ring.converse(((name, "800"),))
    await conversation.open("hello ")
    await conversation.append("quick")
    await conversation.finish()
    assert ring.record.open.ttft_slo_ms == 800
    assert 1 <= (ring.record.ttft_left_ms or 0) <= 800


async def test_what_is_left_of_it_travels_with_the_seal(make_ring: Callable[..., Any]) -> None:
    ring = await make_ring(ttft_slo_ms=3_600_000)
    conversation = await ring.opened("hello ", ttft_slo_ms=3_000_000)
    await conversation.append("quick")
    await conversation.finish()
    assert ring.record.open.ttft_slo_ms == 3_000_000
    assert 2_900_000 < (ring.record.ttft_left_ms or 0) <= 3_000_000
    assert ring.metric("stream2llm_ttft_deadlines_total", result="met") == 1
    assert ring.metric("stream2llm_ttft_deadlines_total", result="missed") == 0


async def test_a_complete_prompt_has_one_too(ring: Ring) -> None:
    request = pb.GenerateRequest(text="hello", ttft_slo_ms=500_000)
    assert [_ async for _ in ring.stub.Generate(request)]
    assert ring.record.open.ttft_slo_ms == 500_000
    assert (ring.record.ttft_left_ms or 0) > 400_000


async def test_without_a_deadline_none_is_sent_or_counted(ring: Ring) -> None:
    await ring.answer_to("hello ")
    assert (ring.record.open.ttft_slo_ms, ring.record.ttft_left_ms) == (0, 0)
    for result in ("met", "missed"):
        assert ring.metric("stream2llm_ttft_deadlines_total", result=result) == 0


async def test_a_late_token_and_a_lost_one_miss_the_deadline(ring: Ring) -> None:
    """A millisecond passes while prefill is held back; the other session fails after its seal."""
    ring.prefill.may_sample.clear()
    late = await ring.asked("hello ", ttft_slo_ms=1)
    await soon(ring.prefill.session_came.wait())
    await soon(ring.record.sealed.wait())
    assert ring.record.ttft_left_ms == 1
    sealed_s = await now_s(ring)
    await eventually(lambda: now_s(ring), lambda at_s: at_s - sealed_s > 0.001)
    ring.prefill.may_sample.set()
    await late.answer()
    assert ring.metric("stream2llm_ttft_deadlines_total", result="missed") == 1
    ring.prefill.failures["first_token"] = UnavailableError("gone")
    await ring.refusal_of("hello ", ttft_slo_ms=60_000)
    assert ring.metric("stream2llm_ttft_deadlines_total", result="missed") == 2


async def test_a_bad_deadline_is_refused_with_its_field(make_ring: Callable[..., Any]) -> None:
    ring = await make_ring(ttft_slo_ms=100)
    for slo_ms in (0, 101, 3_600_001):
        conversation = await ring.opened("hello ", ttft_slo_ms=slo_ms)
        error = await conversation.failure()
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert FIELD in (error.details() or "")
    conversation = ring.converse((("x-slo-ttft-ms", "soon"),))
    error = await conversation.failure()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "x-slo-ttft-ms" in (error.details() or "")
    assert ring.metric("stream2llm_errors_total", reason="BAD_TTFT_SLO") == 4
