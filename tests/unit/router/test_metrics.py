"""Buckets tell apart what fast GPUs do."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from router.metrics import RouterMetrics

pytestmark = pytest.mark.unit


def test_inter_token_latencies_of_few_milliseconds_are_told_apart() -> None:
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry, "tiny")
    name = "stream2llm_inter_token_latency_seconds_bucket"
    for seconds, bound in ((0.0009, "0.001"), (0.002, "0.0025"), (0.004, "0.005")):
        before = registry.get_sample_value(name, {"model": "tiny", "le": bound}) or 0.0
        metrics.decode_step(seconds, is_first=False)
        assert registry.get_sample_value(name, {"model": "tiny", "le": bound}) == before + 1
