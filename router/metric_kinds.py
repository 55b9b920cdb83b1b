"""Counters and histograms of a router: their full names, and buckets that several share. Pure."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

# vLLM's buckets, so that one panel can show both.
TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)


def counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    """Returns the counter `stream2llm_<name>_total` with the model as its first label."""
    return Counter(f"stream2llm_{name}_total", text, ("model", *labels), registry=registry)


def histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...], *labels: str
) -> Histogram:
    """Returns the histogram `stream2llm_<name>` with the model as its first label."""
    names = ("model", *labels)
    return Histogram(f"stream2llm_{name}", text, names, buckets=buckets, registry=registry)
