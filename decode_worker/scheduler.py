"""vLLM's schedulers with KV prefetch, which end with their parent process.

Runs inside vLLM's EngineCore process.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from decode_worker.fetching import KvPrefetchMixin
from stream2llm.engine.cache_events import CacheEvents
from stream2llm.engine.orphan_guard import exit_with_parent
from stream2llm.engine.timed_steps import TimedSteps
from stream2llm.serving.observability import logs


class DecodeScheduler(KvPrefetchMixin, TimedSteps, CacheEvents, Scheduler):
    """The scheduler for `async_scheduling=False`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        logs.configure_child(self.options.logs)
        exit_with_parent()


class AsyncDecodeScheduler(KvPrefetchMixin, TimedSteps, CacheEvents, AsyncScheduler):
    """The scheduler for `async_scheduling=True`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        logs.configure_child(self.options.logs)
        exit_with_parent()
