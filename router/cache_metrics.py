"""Prometheus metrics of what a router knows of its workers' caches. Pure."""

from __future__ import annotations

from enum import StrEnum

from stream2llm.serving.observability.metric_maker import ByLabel, MetricMaker
from stream2llm.serving.settings.worker_spec import Role


class Told(StrEnum):
    """Why a worker gives a full report of its cache."""

    # The router has just learned of it.
    FIRST = "first"
    # The stream had ended, or the worker was silent.
    RECONNECTED = "reconnected"
    # A message was missing.
    AFTER_GAP = "after_gap"
    # The router, or the way to it, was too slow for the changes.
    TOO_SLOW = "too_slow"


class CacheMetrics:
    """Those of one router."""

    def __init__(self, make: MetricMaker, model: str) -> None:
        self._blocks = ByLabel(
            make.gauge(
                "cached_blocks_known",
                "KV blocks that workers have reported to be in their prefix caches, by role.",
                "role",
            ),
            model,
        )
        self._reports = ByLabel(
            make.counter(
                "cache_reports",
                "Full reports that workers gave of their prefix caches, by reason: first,"
                " reconnected, after_gap, too_slow.",
                "reason",
            ),
            model,
        )
        self._lost = make.counter(
            "cache_messages_lost", "Messages about workers' prefix caches that did not arrive."
        ).labels(model)
        self._reports.show(*Told)

    def knows(self, role: Role, num_more: int) -> None:
        """So many more blocks are known of workers of that role."""
        self._blocks[role].inc(num_more)

    def told(self, why: Told) -> None:
        """A worker has begun a full report."""
        self._reports[why].inc()

    def lost(self, num_messages: int) -> None:
        """So many messages did not arrive."""
        self._lost.inc(num_messages)
