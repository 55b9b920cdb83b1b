"""Reads that ended after their lease, from a rank to the metric."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

pytest.importorskip("vllm")

from decode_worker.connector import FirstTokenNixlConnector, ReadStats
from decode_worker.fetch_metrics import FetchMetrics
from decode_worker.lease_watch import Expiry
from stream2llm.engine.stats import EngineStats


def a_rank(*expiries: Expiry) -> ReadStats:
    """What a rank reports of a step, as the scheduler's process gets it."""
    stats = ReadStats()
    for expiry in expiries:
        stats.record_expired_read(expiry)
    reported: ReadStats = pickle.loads(pickle.dumps(stats.clone_and_reset()))
    assert stats.is_empty()
    return reported


def test_reads_that_ended_after_their_lease_are_counted_by_why() -> None:
    registry = CollectorRegistry()
    stats = EngineStats(on_connector=FetchMetrics(registry).reads_ended)
    first = a_rank(Expiry.LATE_HEARTBEAT)
    assert not first.is_empty()
    both = first.aggregate(a_rank(Expiry.LATE_HEARTBEAT, Expiry.NO_HEARTBEAT))
    for told in (both.to_dict(), a_rank().to_dict(), None):
        stats.record(SimpleNamespace(kv_cache_usage=0.0, kv_connector_stats=told))
    counted = {
        reason: registry.get_sample_value(
            "stream2llm_kv_reads_expired_total", {"role": "decode", "reason": reason}
        )
        for reason in Expiry
    }
    assert counted == {Expiry.NO_HEARTBEAT: 1, Expiry.LATE_HEARTBEAT: 2}


def test_vllm_builds_the_figures_again_with_ours_in_them() -> None:
    told = a_rank(Expiry.NO_HEARTBEAT).to_dict()
    assert FirstTokenNixlConnector.build_kv_connector_stats(told).to_dict() == told
    assert FirstTokenNixlConnector.build_kv_connector_stats().is_empty()
