"""The router's Prometheus metrics. Labels come from closed sets, never from ids."""

from __future__ import annotations

from enum import StrEnum

from prometheus_client import CollectorRegistry

from router.cache_metrics import CacheMetrics
from router.recovery import Cause
from router.tenant_metrics import TTFT_S, TenantMetrics
from stream2llm.api.handover import HandoverMode
from stream2llm.api.options import DocumentOrdering
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.serving.observability.metric_maker import ByLabel, MetricMaker
from stream2llm.serving.settings.tenant_options import ALL_ALIKE, TenantsOptions

# From 1 ms on: fast GPUs answer in a few.
_INTER_TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_LATENCY_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_WAIT_S = (*(0.0001, 0.001, 0.01, 0.05, 0.1), *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0))
_RATIO = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class Phase(StrEnum):
    """What an open session waits for."""

    QUEUED = "queued"
    WAITING_INPUT = "waiting_input"
    PREFILLING = "prefilling"
    TRANSFERRING = "transferring"
    DECODING = "decoding"


class InputMode(StrEnum):
    """How the context was sent; one update makes a session an update session."""

    ONESHOT = "oneshot"
    APPEND = "append"
    UPDATE = "update"


class InputOp(StrEnum):
    """The event that brought tokens."""

    OPEN = "open"
    APPEND = "append"
    UPDATE = "update"
    SEAL = "seal"


class RouterMetrics:
    """All metrics of one router, for one model."""

    def __init__(
        self, registry: CollectorRegistry, model: str, tenants: TenantsOptions = ALL_ALIKE
    ) -> None:
        make = MetricMaker(registry, ("model",))
        self._sessions = ByLabel(
            make.counter(
                "sessions",
                "Sessions that ended, by outcome: ok, cancelled, or a gRPC status in lower case.",
                "outcome",
            ),
            model,
        )
        self._errors = ByLabel(
            make.counter(
                "errors",
                "RPCs that ended with an error, refused before admission included, by reason.",
                "reason",
            ),
            model,
        )
        self._active = ByLabel(
            make.gauge("sessions_active", "Sessions open now, by what they wait for.", "phase"),
            model,
        )
        self._ttft = ByLabel(
            make.histogram(
                "time_to_first_token_seconds",
                "Seconds from seal to first token, by input mode: oneshot, append, update.",
                TTFT_S,
                "input_mode",
            ),
            model,
        )
        self._session_ttft = ByLabel(
            make.histogram(
                "session_ttft_seconds",
                "Seconds from open to first token, by input mode: oneshot, append, update.",
                TTFT_S,
                "input_mode",
            ),
            model,
        )
        self._deadlines = ByLabel(
            make.counter(
                "ttft_deadlines",
                "Sealed sessions with a deadline, by whether the first token came in time: met, missed.",
                "result",
            ),
            model,
        )
        self._admissions = ByLabel(
            make.counter(
                "admission_forecasts",
                "Sessions that opened with a deadline, by the forecast: holds, warned, refused, unknown.",
                "verdict",
            ),
            model,
        )
        self._inter_token = make.histogram(
            "inter_token_latency_seconds",
            "Seconds between two outputs of one session; the first of decode is after the hand-over.",
            _INTER_TOKEN_S,
        ).labels(model)
        self._handover = make.histogram(
            "handover_latency_seconds",
            "Seconds from first to second token: the hand-over as the client sees it.",
            _INTER_TOKEN_S,
        ).labels(model)
        self._exposed = ByLabel(
            make.histogram(
                "handover_exposed_seconds",
                "Seconds from first to second token, by hand-over mode: at_seal, streamed.",
                _INTER_TOKEN_S,
                "handover",
            ),
            model,
        )
        self._fetches = ByLabel(
            make.counter(
                "handover_fetches",
                "KV prefetches, by result: fetched, refused, aborted, failed.",
                "result",
            ),
            model,
        )
        self._e2e = make.histogram(
            "e2e_latency_seconds",
            "Seconds from open to end of sessions that succeeded.",
            _LATENCY_S,
        ).labels(model)
        self._overlap = make.histogram(
            "input_overlap_ratio",
            "Share of the prompt's tokens, 0 to 1, prefilled before the seal arrived.",
            _RATIO,
        ).labels(model)
        self._chunks = ByLabel(
            make.counter(
                "input_chunks", "Events received, by event: open, append, update, seal.", "op"
            ),
            model,
        )
        self._event_wait = make.histogram(
            "event_wait_seconds",
            "Seconds from the arrival of a client's event until the router handles it; without those"
            " sent beyond the session's credit.",
            _WAIT_S,
        ).labels(model)
        self._tokens = ByLabel(
            make.counter(
                "input_tokens", "Tokens received, by event: open, append, update, seal.", "op"
            ),
            model,
        )
        self._invalidated = ByLabel(
            make.counter(
                "input_tokens_invalidated",
                "Prefilled tokens that updates invalidated, by document ordering: as_given, stable.",
                "ordering",
            ),
            model,
        )
        self._computed = make.counter(
            "input_tokens_prefilled", "Tokens that prefill computed, recomputation included."
        ).labels(model)
        self._reused = make.counter(
            "input_tokens_reused", "Tokens found in the prefix cache instead of computed."
        ).labels(model)
        output = make.counter("output_tokens", "Tokens of answers sent to clients.")
        self._output = output.labels(model)
        self._restarts = ByLabel(
            make.counter(
                "session_restarts",
                "Sessions placed at another worker, by cause: prefill_lost, decode_lost, mixed_lost, kv_lost,"
                " refused; router_lost: taken over from another router.",
                "cause",
            ),
            model,
        )
        self._recomputed = make.counter(
            "recovery_recomputed_tokens",
            "Tokens that prefill computed again because the worker that had them was lost.",
        ).labels(model)
        self._recovery = ByLabel(
            make.histogram(
                "recovery_seconds",
                "Seconds from the loss of a worker to the next token of a sealed session, by cause.",
                TTFT_S,
                "cause",
            ),
            model,
        )
        self.tenants = TenantMetrics(make, model, tenants)
        self.caches = CacheMetrics(make, model)
        self._admissions.show("holds", "warned", "refused", "unknown")
        self._deadlines.show("met", "missed")
        self._active.show(*Phase)
        self._errors.show("WORKER_LOST", "KV_LOST")  # an alert fires at the first one
        self._restarts.show(*Cause)
        self._recovery.show(*Cause)

    def phase_changed(self, old: Phase | None, new: Phase | None) -> None:
        """A session changed its phase; None before its begin and after its end."""
        if old is not None:
            self._active[old].dec()
        if new is not None:
            self._active[new].inc()

    def session_ended(self, outcome: str, duration_s: float) -> None:
        """`outcome` is "ok", "cancelled" or the name of a status in lower case."""
        self._sessions[outcome].inc()
        if outcome == "ok":
            self._e2e.observe(duration_s)

    def rpc_failed(self, reason: str) -> None:
        """`reason` is one of `router.refusals.Reason`."""
        self._errors[reason].inc()

    def event_waited(self, seconds: float) -> None:
        """A client's event had arrived so long before it was taken up."""
        self._event_wait.observe(seconds)

    def received(self, op: InputOp, num_tokens: int) -> None:
        """Counts one event."""
        self._chunks[op].inc()
        self._tokens[op].inc(num_tokens)

    def prefilled(
        self, before: PrefillProgress, now: PrefillProgress, ordering: DocumentOrdering
    ) -> None:
        """Counts a prefill worker's figures, which are totals since the session's start."""
        for metric, old, new in (
            (self._computed, before.computed_tokens, now.computed_tokens),
            (self._reused, before.reused_tokens, now.reused_tokens),
            (self._invalidated[ordering], before.invalidated_tokens, now.invalidated_tokens),
        ):
            metric.inc(max(new - old, 0))

    def first_token(
        self, mode: InputMode, from_open_s: float, from_seal_s: float, overlap_ratio: float
    ) -> None:
        """Prefill sampled the first token."""
        self._session_ttft[mode].observe(from_open_s)
        self._ttft[mode].observe(from_seal_s)
        self._overlap.observe(overlap_ratio)

    def deadline(self, *, is_met: bool) -> None:
        """A sealed session with a deadline has its first token, or ends without one."""
        self._deadlines["met" if is_met else "missed"].inc()

    def forecast(self, verdict: str) -> None:
        """A session with a deadline opens: "holds", "warned", "refused", or "unknown" without a rate."""
        self._admissions[verdict].inc()

    def decode_step(self, since_last_s: float, *, is_first: bool) -> None:
        """Decode returned tokens; the first time includes the hand-over."""
        self._inter_token.observe(since_last_s)
        if is_first:
            self._handover.observe(since_last_s)

    def exposed(self, seconds: float, *, is_streamed: bool) -> None:
        """Observes one session's hand-over time as its client sees it."""
        mode: HandoverMode = "streamed" if is_streamed else "at_seal"
        self._exposed[mode].observe(seconds)

    def fetch_ended(self, end: str) -> None:
        """Counts a prefetch; `end` is a name of the proto's FetchEnd."""
        self._fetches[end.removeprefix("FETCH_END_").lower()].inc()

    def output(self, num_tokens: int) -> None:
        """Counts tokens sent to a client."""
        self._output.inc(num_tokens)

    def restarted(self, cause: Cause) -> None:
        """A session has lost a worker, and goes on at another one."""
        self._restarts[cause].inc()

    def recomputed(self, num_tokens: int) -> None:
        """Prefill has computed tokens that a lost worker had."""
        self._recomputed.inc(num_tokens)

    def recovered(self, cause: Cause, seconds: float) -> None:
        """A sealed session that lost a worker has its next token."""
        self._recovery[cause].observe(seconds)
