"""Metrics by their last label."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from stream2llm.serving.observability.metric_maker import ByLabel, MetricMaker


def test_each_value_is_a_metric_of_its_own_and_shown_ones_begin_at_zero() -> None:
    registry = CollectorRegistry()
    made = MetricMaker(registry, ("model",)).counter("ends", "How sessions ended.", "outcome")
    ends = ByLabel(made, "tiny")
    ends.show("ok", "lost")
    ends["ok"].inc()
    ends["ok"].inc(2)

    def value(outcome: str) -> float | None:
        labels = {"model": "tiny", "outcome": outcome}
        return registry.get_sample_value("stream2llm_ends_total", labels)

    assert [value("ok"), value("lost"), value("unseen")] == [3, 0, None]
    ends["unseen"].inc()
    assert value("unseen") == 1
