"""Reports of a scheduler become Prometheus samples."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from cost_profiles.decision import Reason
from prefill_worker.metrics import PrefillMetrics
from prefill_worker.policy import POLICIES
from prefill_worker.report import DECISIONS, SchedulerCounters, SchedulerReport, SwapState
from prefill_worker.types import SwapChoice


class Scrape:
    """Metrics in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.metrics = PrefillMetrics(self._registry)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(f"stream2llm_{name}", labels)

    def tokens(self, kind: str) -> float | None:
        return self("prefill_tokens_total", kind=kind)

    def preemptions(self, policy: str, action: str) -> float | None:
        return self("preemptions_total", role="prefill", policy=policy, action=action)


def a_report(policy: str = "fcfs", **fields: object) -> SchedulerReport:
    counters = SchedulerCounters(
        **{name: fields.pop(name) for name in list(fields) if hasattr(SchedulerCounters(), name)}  # type: ignore[arg-type]
    )
    return SchedulerReport(1, policy, counters, **fields)  # type: ignore[arg-type]


@pytest.fixture
def scrape() -> Scrape:
    return Scrape()


def test_everything_begins_at_zero(scrape: Scrape) -> None:
    kinds = "computed recomputed reused_within_session reused_across_sessions invalidated"
    assert [scrape.tokens(kind) for kind in kinds.split()] == [0] * 5
    assert scrape("scheduler_guarded_sessions_total") == 0
    assert scrape("prefill_sessions", state="short_of_blocks") == 0
    for policy in POLICIES:
        assert scrape.preemptions(policy, "swap") == scrape.preemptions(policy, "recompute") == 0
        assert scrape("scheduler_policy_info", role="prefill", policy=policy) == 0


def test_cumulative_counters_become_increments(scrape: Scrape) -> None:
    for computed, invalidated in ((100, 0), (100, 0), (160, 30)):
        scrape.metrics.record(
            a_report(computed_tokens=computed, invalidated_tokens=invalidated, guarded_sessions=2)
        )
    assert (scrape.tokens("computed"), scrape.tokens("invalidated")) == (160, 30)
    assert scrape("scheduler_guarded_sessions_total") == 2


def test_each_kind_of_reuse_is_counted_by_itself(scrape: Scrape) -> None:
    scrape.metrics.record(
        a_report(
            recomputed_tokens=1, reused_within_session_tokens=2, reused_across_sessions_tokens=3
        )
    )
    kinds = ("recomputed", "reused_within_session", "reused_across_sessions")
    assert [scrape.tokens(kind) for kind in kinds] == [1, 2, 3]


def test_preemptions_and_decisions_belong_to_the_policy_in_force(scrape: Scrape) -> None:
    first, second = "default", "mcps"
    scrape.metrics.record(a_report(first, recompute_preemptions=5, plan_s=(2e-5, 0.2)))
    scrape.metrics.record(a_report(second, recompute_preemptions=7, swap_preemptions=1))
    assert scrape.preemptions(first, "recompute") == 5
    assert scrape.preemptions(second, "recompute") == 2
    assert scrape.preemptions(second, "swap") == 1
    labels = {"role": "prefill", "policy": first}
    assert scrape("scheduler_decision_seconds_count", **labels) == 2
    assert scrape("scheduler_decision_seconds_bucket", le="2.5e-05", **labels) == 1
    assert scrape("scheduler_decision_seconds_bucket", le="0.1", **labels) == 1
    assert scrape("scheduler_policy_info", **labels) == 0
    assert scrape("scheduler_policy_info", role="prefill", policy=second) == 1


def test_the_gauges_show_the_newest_report(scrape: Scrape) -> None:
    scrape.metrics.record(a_report(num_sessions_with_work=4, num_sessions_short_of_blocks=2))
    scrape.metrics.record(a_report(num_sessions_with_work=1, num_sessions_idle=3))
    states = ("with_work", "idle", "short_of_blocks")
    assert [scrape("prefill_sessions", state=state) for state in states] == [1, 3, 0]


def test_swapping_is_counted_by_direction_and_decision(scrape: Scrape) -> None:
    assert scrape("swapped_bytes_total", direction="in") == 0
    assert scrape("preemption_decisions_total", action="swap", reason="trial") == 0
    state = SwapState(num_slots=10, num_slots_used=4, bytes_per_block=100, swap_in_factor=2.5)
    for blocks_out, blocks_in in ((3, 0), (7, 2)):
        scrape.metrics.record(
            a_report(
                swapped_out_blocks=blocks_out,
                swapped_in_blocks=blocks_in,
                swap_out_s=0.5,
                swap_failures=1,
                restored_tokens=32 * blocks_in,
                recomputed_as_pool_full=blocks_in,
                swap=state,
            )
        )
    assert scrape("swapped_blocks_total", direction="out") == 7
    assert scrape("swapped_bytes_total", direction="in") == 200
    assert scrape("swap_seconds_total", direction="out") == 0.5
    assert scrape("swap_failures_total") == 1
    assert scrape.tokens("restored") == 64
    assert scrape("preemption_decisions_total", action="recompute", reason="pool_full") == 2
    assert scrape("offload_pool_blocks", state="used") == 4
    assert scrape("offload_pool_blocks", state="free") == 6
    assert scrape("cost_factor", curve="swap_in") == 2.5


def test_every_decision_has_a_counter() -> None:
    counters = SchedulerCounters()
    for action, reason in DECISIONS:
        stop = 3 if action == "swap" else 0
        counters.count_preemption(SwapChoice(Reason(reason), 0, stop))
    assert all(getattr(counters, name) == 1 for name in DECISIONS.values())
    assert counters.swap_preemptions + counters.recompute_preemptions == len(DECISIONS)


def test_the_cost_profile_is_shown_once_it_is_known(scrape: Scrape) -> None:
    tiny = SwapState(profile="cpu tiny tp1", profile_source="measured")
    for state in (tiny, tiny, SwapState(profile="L4 tiny tp1", profile_source="modelled")):
        scrape.metrics.record(a_report(swap=state))
    info = "cost_profile_info"
    assert scrape(info, profile="L4 tiny tp1", source="modelled") == 1
    assert scrape(info, profile="cpu tiny tp1", source="measured") is None
    assert scrape(info, profile="", source="") is None
