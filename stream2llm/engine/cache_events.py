"""A part of both roles' schedulers: says with each step which blocks entered and left the cache.

vLLM's KV events are taken in the process, where its own publisher would listen on a port. They
travel as a part of the step's statistics, which reach the worker's process in order and without
loss; `EngineStats` takes it out again before vLLM's own loggers see it.

Runs inside vLLM's EngineCore process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm.config import KVEventsConfig, VllmConfig
from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    NullEventPublisher,
)
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import resolve_none_hash_seed
from vllm.v1.metrics.stats import SchedulerStats

from stream2llm.engine.cache_log import CACHE_KEY, BlockCounts
from stream2llm.serving.sessions.block_hashes import ALGORITHM

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Base
else:
    _Base = object


def kv_events() -> KVEventsConfig:
    """Returns vLLM's settings: events, and nothing that listens."""
    return KVEventsConfig(enable_kv_cache_events=True, publisher="null")


def hash_root(config: VllmConfig) -> bytes:
    """Returns what EngineCore chains first blocks to; empty where no hashes are reported."""
    cache = config.cache_config
    is_known = cache.prefix_caching_hash_algo == ALGORITHM
    if not is_known or not cache.enable_prefix_caching:
        return b""
    hash_fn = get_hash_fn_by_name(ALGORITHM)
    root: bytes = hash_fn(resolve_none_hash_seed(hash_fn))
    return root


class CacheEvents(_Base):
    """Stands before vLLM's scheduler among the base classes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        is_told = self.log_stats and self.enable_kv_cache_events
        self.cache_events = _Events() if is_told and hash_root(self.vllm_config) else None
        if self.cache_events is not None:
            self.kv_event_publisher = self.cache_events

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """Adds what has changed since the last step."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self.cache_events is not None:
            change = self.cache_events.counts.take()
            if change is not None:
                others = stats.kv_connector_stats or {}
                stats.kv_connector_stats = {**others, CACHE_KEY: change.to_wire()}
        return stats


class _Events(NullEventPublisher):
    """Counts instead of publishing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = BlockCounts()

    def publish(self, events: KVEventBatch) -> None:
        for event in events.events:
            if isinstance(event, BlockStored):
                self.counts.add(_low_64(event.block_hashes))
            elif isinstance(event, BlockRemoved):
                self.counts.remove(_low_64(event.block_hashes))
            elif isinstance(event, AllBlocksCleared):
                self.counts.clear()


def _low_64(hashes: Sequence[bytes | int]) -> list[int]:
    """vLLM shortens hashes itself, unless VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES is 0."""
    return [each if isinstance(each, int) else int.from_bytes(each[-8:], "big") for each in hashes]
