"""Prometheus metrics of hand-overs as a decode worker sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from decode_worker.fetch_ledger import Settled
from decode_worker.fetch_orders import FetchEnd, FetchResult
from decode_worker.lease_watch import Expiry, expired_reads
from stream2llm.serving.observability.metric_maker import MetricMaker

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WHEN = ("prefetched", "after_seal", "wasted")


class FetchMetrics:
    """Counts blocks and bytes by when they were read, and fetches by result."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = MetricMaker(registry, ("role",))
        self._blocks = make.counter(
            "handover_blocks",
            "KV blocks of prompts: prefetched before the seal; read after it; fetched but never used.",
            "when",
        )
        self._bytes = make.counter(
            "handover_bytes", "Bytes of the same blocks, over all ranks.", "when"
        )
        self._fetches = make.counter("fetches", "KV prefetches, by result.", "result")
        self._seconds = make.histogram(
            "fetch_seconds",
            "Seconds of one KV prefetch, from the start of its read to its end.",
            _BUCKETS_S,
        ).labels("decode")
        self._mismatches = make.counter(
            "kv_digest_mismatches",
            "Reads of KV whose digest was not that of what prefill had computed, by when.",
            "when",
        )
        self._expired = make.counter(
            "kv_reads_expired",
            "Reads of KV that ended after their lease and were not used, each rank's counted, by why the"
            " lease was not extended: no_heartbeat (none was sent); late_heartbeat (sent after its end).",
            "reason",
        )
        for expiry in Expiry:
            self._expired.labels("decode", expiry)
        for when in ("prefetched", "after_seal"):
            self._mismatches.labels("decode", when)
        for when in _WHEN:  # 0 rather than absent
            self._blocks.labels("decode", when)
            self._bytes.labels("decode", when)
        for end in FetchEnd:
            self._fetches.labels("decode", end.value)

    def fetch_ended(self, result: FetchResult) -> None:
        """Counts one fetch."""
        self._fetches.labels("decode", result.end.value).inc()
        if result.end is FetchEnd.FETCHED and result.num_blocks:
            self._seconds.observe(result.seconds)

    def mismatched(self, when: Literal["prefetched", "after_seal"]) -> None:
        """Counts one read that brought other KV than prefill had computed."""
        self._mismatches.labels("decode", when).inc()

    def reads_ended(self, stats: Mapping[str, Any]) -> None:
        """Counts the reads of a step that ended after their lease; `stats` are the connector's."""
        for expiry, count in expired_reads(stats):
            self._expired.labels("decode", expiry).inc(count)

    def settled(self, settled: Settled, bytes_per_block: int) -> None:
        """Counts the blocks of one session."""
        counts = (settled.prefetched, settled.after_seal, settled.wasted)
        for when, num_blocks in zip(_WHEN, counts, strict=True):
            self._blocks.labels("decode", when).inc(num_blocks)
            self._bytes.labels("decode", when).inc(num_blocks * bytes_per_block)
