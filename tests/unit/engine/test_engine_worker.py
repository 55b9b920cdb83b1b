"""A worker drains, and says what is wrong with itself.

It waits for what decode still reads of its KV, within the time; when two workers cannot connect,
each is asked who is to blame.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("zmq")

from prometheus_client import CollectorRegistry

from stream2llm.engine import worker as worker_module
from stream2llm.engine.vllm_engine import Engine
from stream2llm.engine.worker import EngineWorker
from stream2llm.serving.settings.worker_spec import WorkerSpec
from tests.unit.test_side_channel import a_free_port, listening

# -- drains -------------------------------------------------------------------------------


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


# -- what is wrong with it ----------------------------------------------------------------


def a_worker(port: int, *, is_dead: bool = False) -> Worker:
    worker = Worker()
    worker.spec = replace(worker.spec, side_channel_port=port)
    engine: Any = worker.engine
    engine.is_dead = is_dead
    return worker


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1")


async def test_a_worker_whose_side_channel_answers_has_no_fault() -> None:
    with listening() as (port, _, _):
        assert await a_worker(port).examine() == ""


async def test_one_whose_side_channel_is_silent_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_SIDE_CHANNEL_LIMIT_S", 0.05)
    port = a_free_port()
    told = await a_worker(port).examine()
    assert told == f"its NIXL side channel at 127.0.0.1:{port} gave no answer for 0.05 s"


async def test_one_whose_engine_is_dead_says_so_before_it_is_asked() -> None:
    assert await a_worker(a_free_port(), is_dead=True).examine() == "its engine is dead"


async def test_one_without_a_side_channel_is_not_asked() -> None:
    assert await a_worker(0).examine() == ""
