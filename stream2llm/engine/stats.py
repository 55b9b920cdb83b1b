"""Keeps the figures that vLLM reports after each step, for us and for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from stream2llm.engine.cache_log import CACHE_KEY, CacheChange, CacheLog


class EngineStats:
    """The newest KV usage of an engine, and the durations of its NIXL reads.

    `on_transfer(seconds, bytes)` is called for each finished read of KV, `on_connector` with all
    figures of a KV connector.
    """

    def __init__(
        self,
        on_transfer: Callable[[float, int], None] = lambda *_: None,
        on_connector: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self.kv_usage = 0.0
        # What the engine's prefix cache has.
        self.cache = CacheLog()
        self._on_transfer = on_transfer
        self._on_connector = on_connector

    def num_blocks_held(self, num_kv_blocks: int) -> int:
        """Returns how many of `num_kv_blocks` blocks are in use."""
        return round(self.kv_usage * num_kv_blocks)

    def as_vllm_logger(self) -> StatLoggerBase:
        """Returns a logger for vLLM that reports here."""
        return StatsRelay(lambda scheduler_stats, _: self.record(scheduler_stats))

    def record(self, scheduler_stats: Any) -> None:
        """Takes one report of vLLM's; None when it has no figures of the scheduler."""
        if scheduler_stats is None:
            return
        self.kv_usage = scheduler_stats.kv_cache_usage
        self._take_cache_change(scheduler_stats)
        for stats in _connectors(scheduler_stats.kv_connector_stats or {}):
            for seconds, num_bytes in _transfers(stats):
                self._on_transfer(float(seconds), int(num_bytes))
            self._on_connector(stats)

    def _take_cache_change(self, scheduler_stats: Any) -> None:
        """Takes our part out of the connector's figures: vLLM's own loggers come next."""
        stats = scheduler_stats.kv_connector_stats
        if stats and CACHE_KEY in stats:
            others = {key: value for key, value in stats.items() if key != CACHE_KEY}
            scheduler_stats.kv_connector_stats = others or None
            self.cache.apply(CacheChange.from_wire(stats[CACHE_KEY]))


def _connectors(stats: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the figures of each connector; of several, they are nested in `stats`."""
    return [child for child in stats.values() if isinstance(child, dict)] or [stats]


def _transfers(stats: dict[str, Any]) -> Iterator[tuple[float, int]]:
    """Yields seconds and bytes of each read."""
    seconds, num_bytes = stats.get("transfer_duration", ()), stats.get("bytes_transferred", ())
    yield from zip(seconds, num_bytes, strict=True)


class StatsRelay(StatLoggerBase):
    """Passes on vLLM's reports: the scheduler's part and the step's, either may be None."""

    def __init__(self, take: Callable[[Any, Any], None]) -> None:
        self._take = take

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        self._take(scheduler_stats, iteration_stats)

    def log_engine_initialized(self) -> None:
        pass
