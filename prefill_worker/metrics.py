"""What a prefill worker counts. The scheduler returns figures; this records them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

_KINDS = ("computed", "reused", "invalidated", "recomputed")


class PrefillMetrics:
    """Token counters fed from sessions' cumulative progress figures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tokens = Counter(
            "stream2llm_prefill_tokens",
            "Prompt tokens by what became of them: computed by the engine, reused from the"
            " prefix cache, invalidated by an update, recomputed after a preemption (these"
            " are among the computed ones too).",
            ("kind",),
            registry=registry,
        )
        for kind in _KINDS:
            self._tokens.labels(kind)

    def record_progress(self, before: dict[str, int], now: dict[str, int]) -> None:
        """Adds what a session gained between two of its progress figures."""
        for kind in _KINDS:
            key = f"{kind}_tokens"
            self._tokens.labels(kind).inc(now[key] - before.get(key, 0))
