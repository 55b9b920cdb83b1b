"""Makes the metrics of one component: full names, labels that all of them have, one registry. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@dataclass(frozen=True, slots=True)
class MetricMaker:
    """Each name follows `stream2llm_`."""

    registry: CollectorRegistry
    # The first ones of every metric.
    labels: tuple[str, ...] = ()

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Returns the counter, to whose name Prometheus adds `_total`."""
        return Counter(f"stream2llm_{name}", text, (*self.labels, *labels), registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Returns the gauge."""
        return Gauge(f"stream2llm_{name}", text, (*self.labels, *labels), registry=self.registry)

    def histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        """Returns the histogram with these upper bounds of its buckets."""
        name, labels = f"stream2llm_{name}", (*self.labels, *labels)
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
