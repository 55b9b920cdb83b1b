"""Admits calls to one listener; counts and logs what it refuses, without the credentials."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from stream2llm.api.errors import Stream2LLMError
from stream2llm.security.access import Access, Presented
from stream2llm.security.api_keys import KeyFile
from stream2llm.security.line_budget import LineBudget
from stream2llm.security.principal import ANYONE, Principal, Scope

_log = logging.getLogger(__name__)

# What a listener may say; a closed set, as labels must be.
REASONS = (
    *("NO_CREDENTIALS", "BAD_CREDENTIALS", "EXPIRED_CREDENTIALS", "NO_TENANT", "NOT_PERMITTED"),
    *("ISSUER_UNAVAILABLE", "NO_CLUSTER_TOKEN"),
)
Listener = Literal["grpc", "metrics", "controller", "gateway"]
LISTENERS: tuple[Listener, ...] = get_args(Listener)


class AccessMetrics(Collector):
    """What was refused, by all listeners of a process."""

    def __init__(self, keys: KeyFile | None = None) -> None:
        self._keys = keys
        self._refused = Counter(
            "stream2llm_calls_not_admitted",
            "Calls refused for their credentials, by listener and reason.",
            ("listener", "reason"),
            registry=None,
        )

    def begin(self, listener: Listener) -> None:
        """Shows zeros: a counter that appears with its first call hides that call."""
        for reason in REASONS:
            self._refused.labels(listener, reason)

    def count(self, listener: Listener, reason: str) -> None:
        """Adds one call."""
        self._refused.labels(listener, reason).inc()

    def collect(self) -> Iterator[Metric]:
        """The refused calls, and how often a changed file of keys was useless."""
        yield from self._refused.collect()
        if self._keys is not None:
            yield CounterMetricFamily(
                "stream2llm_keys_reload_failures_total",
                "Times that a changed file of API keys could not be used; keys before stayed in"
                " force.",
                value=self._keys.num_failed_reads,
            )


class Guard:
    """One listener's. Without `access` every caller may do everything."""

    def __init__(
        self,
        listener: Listener,
        access: Access | None,
        metrics: AccessMetrics,
        monotonic_s: Callable[[], float],
    ) -> None:
        self.access = access
        self._listener = listener
        self._metrics = metrics
        self._monotonic_s = monotonic_s
        self._budget = LineBudget()
        # Calls with made-up tokens may wait here, and must not hold up the threads that others use.
        self._issuer_threads = ThreadPoolExecutor(2, thread_name_prefix=f"issuer-{listener}")
        metrics.begin(listener)

    @property
    def tenant_header(self) -> str:
        """The header of a trusted proxy, in lower case; empty if none is trusted."""
        return self.access.tenant_header if self.access else ""

    def admit(self, presented: Presented, scope: Scope) -> Principal:
        """Returns the caller; see `Access.admit`. May block, see `Access.may_wait`."""
        return ANYONE if self.access is None else self.access.admit(presented, scope)

    async def admit_soon(self, presented: Presented, scope: Scope) -> Principal:
        """The same in an event loop, which goes on meanwhile."""
        if self.access is not None and self.access.may_wait(presented):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._issuer_threads, self.admit, presented, scope)
        return self.admit(presented, scope)

    def refused(self, error: Stream2LLMError, what: str, peer: str) -> None:
        """Counts and logs that the listener refused `what`."""
        self._metrics.count(self._listener, error.reason)
        left_out = self._budget.take(error.reason, self._monotonic_s())
        if left_out is not None:
            more = f" left_out_before={left_out}" if left_out else ""
            _log.warning(
                "not_admitted listener=%s call=%s peer=%s reason=%s message=%r%s",
                *(self._listener, what, peer, error.reason, error.message, more),
            )
