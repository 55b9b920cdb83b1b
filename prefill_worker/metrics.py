"""A prefill worker's metrics, recorded from the scheduler's reports.

Counters grow by the difference between two reports, so they include cancelled
sessions. Labels come from closed sets, never from ids.
"""

from __future__ import annotations

from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter

from prefill_worker.policy import POLICIES
from prefill_worker.report import DECISIONS, SchedulerCounters, SchedulerReport, SwapState
from stream2llm.serving.observability.metric_maker import MetricMaker
from stream2llm.serving.settings.worker_spec import Role

# A decision takes tens of microseconds; 0.1 s would be as long as a step.
_DECISION_BUCKETS_S = (
    *(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3),
    *(2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1),
)
_TOKEN_KINDS = {
    "computed": "computed_tokens",
    "recomputed": "recomputed_tokens",
    "reused_within_session": "reused_within_session_tokens",
    "reused_across_sessions": "reused_across_sessions_tokens",
    "invalidated": "invalidated_tokens",
    "restored": "restored_tokens",
}
_PREEMPTIONS = {"recompute": "recompute_preemptions", "swap": "swap_preemptions"}
_SESSION_STATES = {
    "with_work": "num_sessions_with_work",
    "idle": "num_sessions_idle",
    "short_of_blocks": "num_sessions_short_of_blocks",
}


class SwapMetrics:
    """Copies to and from the host, and the calibrated costs."""

    def __init__(self, make: MetricMaker) -> None:
        self._decisions = make.counter(
            "preemption_decisions",
            "Sessions whose KV was evicted, by action and reason: mode (no choice), cheaper, cached"
            " (other sessions hold the blocks), no_blocks (no full block), pool_full, trial (copied"
            " to learn what it costs).",
            "action",
            "reason",
        )
        self._blocks = _per_direction(
            make, "swapped_blocks", "KV blocks copied between device and host."
        )
        self._bytes = _per_direction(
            make, "swapped_bytes", "Bytes of KV copied between device and host, over all ranks."
        )
        self._seconds = _per_direction(
            make, "swap_seconds", "Seconds that copies took on the slowest rank."
        )
        self._failures = make.counter(
            "swap_failures", "Copies that failed; their tokens are computed again."
        )
        self._pool = make.gauge(
            "offload_pool_blocks",
            "KV blocks that the CPU KV offload pool has room for, used and free.",
            "state",
        )
        self._factor = make.gauge(
            "cost_factor",
            "Learned correction of the cost profile: actual seconds for each predicted one.",
            "curve",
        )
        self._profile = make.gauge(
            "cost_profile_info",
            "Always 1; the labels say which cost profile the worker started from, by device, model and"
            " tensor parallel size, and its source: measured, microbenchmark, modelled.",
            "profile",
            "source",
        )
        self._shown_profile = ("", "")
        self.record(SchedulerCounters(), SwapState())

    def record(self, gained: SchedulerCounters, state: SwapState) -> None:
        """Adds what was counted since the last report, and sets the present state."""
        for labels, counter in DECISIONS.items():
            self._decisions.labels(*labels).inc(getattr(gained, counter))
        for direction, num_blocks, seconds in (
            ("out", gained.swapped_out_blocks, gained.swap_out_s),
            ("in", gained.swapped_in_blocks, gained.swap_in_s),
        ):
            self._blocks.labels(direction).inc(num_blocks)
            self._bytes.labels(direction).inc(num_blocks * state.bytes_per_block)
            self._seconds.labels(direction).inc(seconds)
        self._failures.inc(gained.swap_failures)
        self._pool.labels("used").set(state.num_slots_used)
        self._pool.labels("free").set(state.num_slots - state.num_slots_used)
        self._factor.labels("recompute").set(state.recompute_factor)
        self._factor.labels("swap_out").set(state.swap_out_factor)
        self._factor.labels("swap_in").set(state.swap_in_factor)
        self._show_profile((state.profile, state.profile_source))

    def _show_profile(self, labels: tuple[str, str]) -> None:
        if labels != self._shown_profile:
            self._profile.clear()
            self._profile.labels(*labels).set(1)
            self._shown_profile = labels


def _per_direction(make: MetricMaker, name: str, text: str) -> Counter:
    return make.counter(name, f"{text} out: to the host; in: back.", "direction")


class PrefillMetrics:
    """All metrics of one prefill scheduler."""

    def __init__(
        self,
        registry: CollectorRegistry,
        import_paths: tuple[str, ...] = (),
        role: Role = "prefill",
    ) -> None:
        self._role = role
        self._policies = (*POLICIES, *import_paths)
        self._recorded = SchedulerCounters()
        make = MetricMaker(registry)
        self._swap = SwapMetrics(make)
        self._tokens = make.counter(
            "prefill_tokens",
            "Prompt tokens: computed by the engine; of those, recomputed after a preemption; restored"
            " from the host after one; reused from the prefix cache, within their session or across"
            " sessions; invalidated by an update.",
            "kind",
        )
        self._preemptions = make.counter(
            "preemptions",
            "Sessions whose KV was evicted for others, by the action that brings it back.",
            "role",
            "policy",
            "action",
        )
        self._guarded = make.counter(
            "scheduler_guarded_sessions",
            "Sessions that the starvation bound (prefill.starvation_guard_steps) put before others.",
        )
        self._decision = make.histogram(
            "scheduler_decision_seconds",
            "Seconds to plan one engine step.",
            _DECISION_BUCKETS_S,
            "role",
            "policy",
        )
        self._sessions = make.gauge(
            "prefill_sessions",
            "Sessions: with_work have tokens to compute; idle ones are open and wait for context;"
            " short_of_blocks got no KV block for their new tokens in the last step.",
            "state",
        )
        self._policy = make.gauge(
            "scheduler_policy_info",
            "1 for the policy in force, 0 for the others.",
            "role",
            "policy",
        )
        self._begin_at_zero()

    def record(self, report: SchedulerReport) -> None:
        """Records one report; call it with every report, in order."""
        gained = _gained(self._recorded, report.counters)
        self._recorded = report.counters
        for kind, name in _TOKEN_KINDS.items():
            self._tokens.labels(kind).inc(getattr(gained, name))
        for action, name in _PREEMPTIONS.items():
            count = getattr(gained, name)
            self._preemptions.labels(self._role, report.policy, action).inc(count)
        self._guarded.inc(gained.guarded_sessions)
        self._swap.record(gained, report.swap)
        decision = self._decision.labels(self._role, report.policy)
        for seconds in report.plan_s:
            decision.observe(seconds)
        for state, name in _SESSION_STATES.items():
            self._sessions.labels(state).set(getattr(report, name))
        for policy in self._policies:
            self._policy.labels(self._role, policy).set(policy == report.policy)

    def _begin_at_zero(self) -> None:
        """Creates every label at the start, so that it reads 0 rather than absent."""
        for kind in _TOKEN_KINDS:
            self._tokens.labels(kind)
        for state in _SESSION_STATES:
            self._sessions.labels(state)
        for policy in self._policies:
            self._decision.labels(self._role, policy)
            self._policy.labels(self._role, policy)
            for action in _PREEMPTIONS:
                self._preemptions.labels(self._role, policy, action)


def _gained(before: SchedulerCounters, now: SchedulerCounters) -> SchedulerCounters:
    names = [field.name for field in fields(SchedulerCounters)]
    return SchedulerCounters(*(getattr(now, name) - getattr(before, name) for name in names))
