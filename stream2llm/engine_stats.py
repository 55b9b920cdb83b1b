"""The figures vLLM reports after each step, kept for us and for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class EngineStats:
    """The newest KV usage of an engine, and what its NIXL reads took.

    `on_transfer(seconds, bytes)` is called for each finished read of KV.
    """

    def __init__(self, on_transfer: Callable[[float, int], None] | None = None) -> None:
        self.kv_usage = 0.0
        self._on_transfer = on_transfer

    def num_blocks_held(self, num_kv_blocks: int) -> int:
        """Blocks somebody holds, of `num_kv_blocks`."""
        return round(self.kv_usage * num_kv_blocks)

    def as_vllm_logger(self) -> StatLoggerBase:
        """Something vLLM can report to."""
        return _Logger(self)

    def record(self, scheduler_stats: Any) -> None:
        """Takes one report of vLLM's."""
        self.kv_usage = scheduler_stats.kv_cache_usage
        if self._on_transfer:
            for seconds, num_bytes in _transfers(scheduler_stats.kv_connector_stats or {}):
                self._on_transfer(float(seconds), int(num_bytes))


def _transfers(stats: dict[str, Any]) -> Iterator[tuple[float, int]]:
    """Seconds and bytes of each read; with several connectors, `stats` has a dict for each."""
    children = [child for child in stats.values() if isinstance(child, dict)]
    for each in children or [stats]:
        seconds, num_bytes = each.get("transfer_duration", ()), each.get("bytes_transferred", ())
        yield from zip(seconds, num_bytes, strict=True)


class _Logger(StatLoggerBase):
    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._stats.record(scheduler_stats)

    def log_engine_initialized(self) -> None:
        pass
