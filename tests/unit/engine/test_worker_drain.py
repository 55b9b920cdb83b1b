"""A worker that drains waits for what decode still reads of its KV, within the time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from stream2llm.engine.vllm_engine import Engine
from stream2llm.engine.worker import EngineWorker
from stream2llm.serving.settings.worker_spec import WorkerSpec

pytestmark = pytest.mark.unit


class Worker(EngineWorker):
    """One whose engine is only looked at."""

    def __init__(self) -> None:
        spec = WorkerSpec("prefill-0", "prefill", "", "127.0.0.1", 0)
        super().__init__(spec, CollectorRegistry())
        self.num_held = 0
        # Set each time that it is looked at.
        self.looked_at = asyncio.Event()
        engine: Any = SimpleNamespace(
            info=SimpleNamespace(num_kv_blocks=10, block_size=16),
            stats=SimpleNamespace(num_blocks_held=self._look),
            sign_of_life=SimpleNamespace(silent_s=0.0, limit_s=10.0),
            pids=(),
        )
        self.engine = engine

    def _look(self, _: int) -> int:
        self.looked_at.set()
        return self.num_held

    async def start_engine(self) -> Engine:
        raise NotImplementedError

    def add_services(self, server: Any) -> None:
        raise NotImplementedError


async def test_a_drain_waits_for_blocks_that_a_reader_still_needs() -> None:
    worker = Worker()
    worker.num_held = 3
    draining = asyncio.create_task(worker.drain(3600.0))
    for _ in range(2):
        worker.looked_at.clear()
        await asyncio.wait_for(worker.looked_at.wait(), 10)
    assert not draining.done()
    worker.num_held = 0
    await asyncio.wait_for(draining, 10)
    assert worker.is_draining


async def test_an_empty_worker_is_drained_at_once_and_a_held_one_when_the_time_is_over() -> None:
    await asyncio.wait_for(Worker().drain(3600.0), 10)
    worker = Worker()
    worker.num_held = 3
    await asyncio.wait_for(worker.drain(0.0), 10)
