"""Quotas of tenants, with the time in the test's hands."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from router.metrics import RouterMetrics
from router.quotas import THE_ONE, RouterPart, TenantQuotas
from router.sessions import OpenSessions
from stream2llm.api.errors import OverloadedError
from stream2llm.serving.settings.router_spec import RouterLimits
from stream2llm.serving.settings.tenant_options import Quota, TenantOptions, TenantsOptions
from stream2llm.serving.system.clock import ManualClock


def quotas(part: RouterPart = THE_ONE, **limits: int) -> TenantQuotas:
    return TenantQuotas(TenantsOptions(named={"acme": TenantOptions(**limits)}), part)


def refusal_of(act: object) -> OverloadedError:
    with pytest.raises(OverloadedError) as caught:
        act()  # type: ignore[operator]
    return caught.value


def test_one_tenant_has_so_many_sessions_and_others_as_many_as_they_like() -> None:
    book = quotas(max_open_sessions=2)
    for _ in range(2):
        book.open("acme", 0.0)
        book.open("zeta", 0.0)
    error = refusal_of(lambda: book.open("acme", 0.0))
    assert error.reason == "QUOTA_OPEN_SESSIONS"
    assert "quota max_open_sessions is 2: it has 2 sessions open" in error.message
    book.open("zeta", 0.0)
    book.close("acme", 5.0, 5.0)
    book.open("acme", 5.0)


def test_a_refusal_says_when_a_session_is_likely_to_end() -> None:
    """Sessions of forty seconds: of four that are open one ends in ten."""
    book = quotas(max_open_sessions=4)
    book.open("acme", 0.0)  # a tenant without any is forgotten
    for _ in range(50):
        book.open("acme", 0.0)
        book.close("acme", 40.0, 40.0)
    for _ in range(3):
        book.open("acme", 0.0)
    wait_s = refusal_of(lambda: book.open("acme", 0.0)).retry_after_s
    assert wait_s == pytest.approx(10.0, rel=0.01)


def test_a_full_router_says_when_a_session_is_likely_to_end() -> None:
    clock = ManualClock()
    metrics = RouterMetrics(CollectorRegistry(), "tiny")
    sessions = OpenSessions(RouterLimits(max_open_sessions=4), metrics, clock)
    for _ in range(50):
        place = sessions.admit()
        clock.advance(40.0)
        place.leave("ok")
    for _ in range(4):
        sessions.admit()
    error = refusal_of(sessions.admit)
    assert error.reason == "TOO_MANY_SESSIONS"
    assert error.retry_after_s == pytest.approx(10.0, rel=0.01)


@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_complete_prompt_is_not_silent_before_it_is_read(is_sealed: bool) -> None:
    metrics = RouterMetrics(CollectorRegistry(), "tiny")
    sessions = OpenSessions(RouterLimits(max_open_sessions=2), metrics, ManualClock())
    places = [sessions.admit("heavy", is_sealed=is_sealed) for _ in range(2)]
    if is_sealed:
        assert refusal_of(lambda: sessions.admit("light")).reason == "TOO_MANY_SESSIONS"
    else:
        sessions.admit("light")
    assert any(place.eviction for place in places) is not is_sealed


def test_tokens_that_are_held_are_counted_until_they_are_let_go() -> None:
    book = quotas(max_held_tokens=100)
    book.open("acme", 0.0)
    book.hold("acme", 60)
    error = refusal_of(lambda: book.hold("acme", 41))
    assert error.reason == "QUOTA_HELD_TOKENS"
    assert "hold 60 tokens, 41 more were sent" in error.message
    book.hold("acme", -30)
    book.hold("acme", 41)


def test_tokens_a_minute_refuse_new_sessions_until_the_debt_is_paid() -> None:
    book = quotas(max_tokens_per_minute=600)
    book.open("acme", 0.0)
    book.spend("acme", 900, 0.0)  # what is open may go into debt
    error = refusal_of(lambda: book.open("acme", 10.0))
    # 300 in debt, 100 of which are paid: 200 more at 10 a second.
    assert (error.reason, error.retry_after_s) == ("QUOTA_TOKENS_PER_MINUTE", 20.0)
    book.open("acme", 30.0)


def test_open_sessions_go_into_debt_by_a_minute_at_most() -> None:
    book = quotas(max_tokens_per_minute=600)
    book.open("acme", 0.0)
    book.spend("acme", 1200, 0.0)
    error = refusal_of(lambda: book.spend("acme", 100, 0.0))
    assert (error.reason, error.retry_after_s) == ("QUOTA_TOKENS_PER_MINUTE", 10.0)
    assert "and 100 more in one event; try again in 10 s" in error.message
    book.spend("acme", 100, 10.0)


def test_one_event_makes_no_larger_debt_than_many() -> None:
    book = quotas(max_tokens_per_minute=600)
    book.open("acme", 0.0)
    error = refusal_of(lambda: book.spend("acme", 1201, 0.0))
    assert (error.reason, error.retry_after_s) == ("QUOTA_TOKENS_PER_MINUTE", None)
    assert "1201 tokens came in one event" in error.message
    book.open("acme", 0.0)  # what was refused is no debt
    book.spend("acme", 600, 0.0)
    assert refusal_of(lambda: book.spend("acme", 601, 0.0)).retry_after_s == pytest.approx(0.1)
    book.spend("acme", 600, 0.0)


@pytest.mark.parametrize("num_routers", [1, 2, 3, 7])
def test_the_routers_parts_add_up_to_the_quota(num_routers: int) -> None:
    for limit in (1, 2, 5, 1000):
        parts = [RouterPart(index, num_routers).of(limit) for index in range(num_routers)]
        assert sum(parts) == limit
        assert max(parts) - min(parts) <= 1


def test_a_refusal_at_one_of_several_routers_names_its_part() -> None:
    book = quotas(RouterPart(0, 2), max_open_sessions=3)
    book.open("acme", 0.0)
    assert "is 3, of which this router has 1" in refusal_of(lambda: book.open("acme", 0.0)).message


def test_refusals_are_counted_by_tenant_and_quota() -> None:
    counted = []
    options = TenantsOptions(default=TenantOptions(max_open_sessions=1))
    book = TenantQuotas(options, on_refused=lambda *refused: counted.append(refused))
    book.open("acme", 0.0)
    refusal_of(lambda: book.open("acme", 0.0))
    assert counted == [("acme", Quota.OPEN_SESSIONS)]


def test_tenants_that_come_and_go_leave_nothing_behind() -> None:
    options = TenantsOptions(default=TenantOptions(max_tokens_per_minute=60))
    book = TenantQuotas(options)
    for number in range(100):
        book.open(str(number), float(number))
        book.spend(str(number), 1, float(number))
        book.close(str(number), float(number), 1.0)
    assert len(book) <= 2
