"""Who is to blame when two workers cannot connect: each is asked what is wrong with itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("zmq")

from stream2llm.engine import worker as worker_module
from tests.unit.engine.test_worker_drain import Worker
from tests.unit.test_side_channel import a_free_port, listening

pytestmark = pytest.mark.unit


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
