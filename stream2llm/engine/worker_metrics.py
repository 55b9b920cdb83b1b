"""Prometheus metrics of both kinds of workers.

They are in the same registry as vLLM's own `vllm:*` metrics, so one scrape of a worker
returns both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stream2llm.serving.observability.metric_maker import MetricMaker
from stream2llm.serving.settings.worker_spec import Role, WorkerStatus

# A hand-over takes from under a millisecond (shared memory) to seconds.
_TRANSFER_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


# From a cached grammar to the default of `structured_output.compile_timeout_s`.
_COMPILE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class WorkerGauges(Collector):
    """Sessions and KV blocks, read when scraped."""

    def __init__(self, role: Role, read_status: Callable[[], WorkerStatus]) -> None:
        self._role = role
        self._read_status = read_status

    def collect(self) -> Iterator[Metric]:
        """Yields the gauges' present values."""
        status = self._read_status()
        yield self._gauge(
            "stream2llm_worker_sessions", "Sessions that this worker holds.", status.num_sessions
        )
        yield self._gauge(
            "stream2llm_kv_blocks",
            "KV blocks that this worker's engine has in all.",
            status.num_kv_blocks,
        )
        yield self._gauge(
            "stream2llm_kv_blocks_held",
            "KV blocks that a session or a lease holds.",
            status.num_kv_blocks_held,
        )
        yield self._gauge(
            "stream2llm_engine_silent_seconds",
            "Seconds for which the engine has not answered the present question for a sign of"
            " life; beyond the limit it is killed and the worker replaced.",
            status.silent_s,
        )
        yield self._gauge(
            "stream2llm_engine_silence_limit_seconds",
            "Seconds for which the engine may give no sign of life, by its steps so far.",
            status.silence_limit_s,
        )

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["role"])
        family.add_metric([self._role], value)
        return family


class GrammarMetrics:
    """Structured outputs that an engine compiles."""

    def __init__(self, role: Role, registry: CollectorRegistry) -> None:
        self._role = role
        make = MetricMaker(registry, ("role",))
        self._seconds = make.histogram(
            "grammar_compile_seconds",
            "Seconds to compile a structured output when its session opens, by grammar backend; next"
            " to nothing for one that is cached. Not of those that are refused.",
            _COMPILE_BUCKETS_S,
            "backend",
        )

    def compiled(self, backend: str, seconds: float) -> None:
        """Records one that is compiled."""
        self._seconds.labels(self._role, backend).observe(seconds)


class TransferMetrics:
    """KV read over NIXL by a decode worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = MetricMaker(registry, ("role", "backend"))
        self._seconds = make.histogram(
            "kv_transfer_seconds",
            "Seconds of one KV read over NIXL after the seal.",
            _TRANSFER_BUCKETS_S,
        ).labels("decode", "nixl")
        self._bytes = make.counter(
            "kv_transfer_bytes", "Bytes of KV read over NIXL after the seal."
        ).labels("decode", "nixl")
        self._results = make.counter(
            "kv_transfers",
            "Hand-overs after the seal, by result: read; failed; released without a read.",
            "result",
        )
        for result in ("read", "failed", "released"):
            self._results.labels("decode", "nixl", result)

    def record_read(self, seconds: float, num_bytes: int) -> None:
        """Records one finished NIXL read."""
        self._seconds.observe(seconds)
        self._bytes.inc(num_bytes)
        self._results.labels("decode", "nixl", "read").inc()

    def record_failed(self) -> None:
        """Records a hand-over whose KV could not be read."""
        self._results.labels("decode", "nixl", "failed").inc()

    def record_released(self) -> None:
        """Records a hand-over that was released without a read."""
        self._results.labels("decode", "nixl", "released").inc()
