"""Metrics of a decode or mixed worker by tenant: answers, tokens they hold, tokens decoded."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stream2llm.serving.sessions.answer_use import AnswerUses

_TENANTS = "by tenant: those of the configuration, and all others together."


class AnswerMetrics(Collector):
    """Reads the figures at each scrape."""

    def __init__(self, uses: AnswerUses) -> None:
        self._uses = uses

    def collect(self) -> Iterator[Metric]:
        """Answers by state, the tokens that they hold, and those that steps have brought."""
        answers = GaugeMetricFamily(
            "stream2llm_tenant_answers",
            f"Answers that wait for their first step or run, {_TENANTS}",
            labels=("tenant", "state"),
        )
        held = GaugeMetricFamily(
            "stream2llm_tenant_answer_tokens",
            f"Tokens of context and answer of running answers, {_TENANTS}",
            labels=("tenant",),
        )
        decoded = CounterMetricFamily(
            "stream2llm_tenant_decoded_tokens",
            f"Tokens of answers that steps brought behind the first, {_TENANTS}",
            labels=("tenant",),
        )
        for label, use in self._uses.by_label.items():
            answers.add_metric((label, "waiting"), use.num_waiting)
            answers.add_metric((label, "running"), use.num_running)
            held.add_metric((label,), use.held_tokens)
            decoded.add_metric((label,), use.decoded_tokens)
        yield from (answers, held, decoded)
