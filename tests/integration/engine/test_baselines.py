"""A tiny cell through a stock engine and ours, as the baselines benchmark plays it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from experiments.baselines.answering import EngineSystem, PairSystem
from experiments.baselines.cells import (
    DISAGGREGATED,
    DISAGGREGATED_WARMED,
    NON_STREAMING,
    STREAMED,
    WARMED,
    ours,
)
from experiments.baselines.drive import run_trace
from experiments.baselines.engines.link import EngineLink
from experiments.baselines.engines.messages import HostSpec, Kind, KvRole
from experiments.baselines.systems import SystemDiedError
from experiments.token_sessions import generated
from stream2llm.models.store import ensure_random_llama
from stream2llm.workload.records import RunRecord
from stream2llm.workload.report import summarize
from stream2llm.workload.traces.format import Scale, Shape

pytestmark = pytest.mark.slow
NUM_SESSIONS = 6
STOCK = (NON_STREAMING, WARMED, STREAMED)


def a_spec(kind: Kind) -> HostSpec:
    return HostSpec(
        kind=kind,
        model_path=str(ensure_random_llama("shallow")),
        cores=(max(os.sched_getaffinity(0)),),
        num_kv_blocks=401,
        block_size=32,
        token_budget=256,
        max_num_seqs=64,
        max_model_len=8192,
    )


@pytest.fixture(params=["stock", "ours"])
async def link(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineLink]:
    started = await EngineLink.start(a_spec(request.param), tmp_path / "log")
    processes = psutil.Process(started.pid).children(recursive=True)
    yield started
    await started.stop()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


async def played(system: EngineSystem, shape: Shape, key: str) -> RunRecord:
    scale = Scale(tokens=1 / 40, time=1 / 20)
    trace = generated(shape, NUM_SESSIONS, 1, key=key, rate=10.0, scale=scale)
    return await run_trace(system, trace, "tiny", answer_limit_s=60, settings={})


async def test_every_way_to_ask_answers_every_question(
    link: EngineLink, request: pytest.FixtureRequest
) -> None:
    names = STOCK if request.node.callspec.id == "stock" else (ours("default"), ours("fcfs"))
    for name in names:
        for shape in ("crawler", "anns"):
            if (name, shape) == (STREAMED, "anns"):
                continue
            record = await played(EngineSystem(name, [link]), shape, f"{name}/{shape}")
            assert [session.error for session in record.sessions] == [""] * NUM_SESSIONS, name
            assert [len(s.token_times_s) for s in record.sessions] == [1] * NUM_SESSIONS, name
            assert record.counters["cpu_s"] > 0
            summary = summarize(record)
            assert summary.preemptions == 0
            if names is not STOCK:
                computed_tokens = summary.tokens_by_kind["computed"]
                assert computed_tokens
                assert computed_tokens >= summary.input_tokens - NUM_SESSIONS


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[EngineLink, EngineLink]]:
    roles: tuple[KvRole, KvRole] = ("kv_producer", "kv_consumer")
    async with AsyncExitStack() as stack:
        links = []
        for role in roles:
            spec = replace(a_spec("stock"), kv_role=role)
            links.append(await EngineLink.start(spec, tmp_path / role))
            stack.push_async_callback(links[-1].stop)
        yield links[0], links[1]


async def test_a_pair_of_stock_engines_answers_every_question(
    pair: tuple[EngineLink, EngineLink],
) -> None:
    """A read that fails would fail its request: decode does not compute prompts instead."""
    for name in (DISAGGREGATED, DISAGGREGATED_WARMED):
        record = await played(PairSystem(name, *pair, max_tokens=4), "crawler", name)
        assert [session.error for session in record.sessions] == [""] * NUM_SESSIONS, name
        assert [len(s.token_times_s) for s in record.sessions] == [4] * NUM_SESSIONS, name


@pytest.mark.parametrize("link", ["ours"], indirect=True)
async def test_an_engine_that_dies_fails_the_run_with_its_log(link: EngineLink) -> None:
    for child in psutil.Process(link.pid).children(recursive=True):
        child.kill()
    with pytest.raises(SystemDiedError, match="ends with"):
        await played(EngineSystem(ours("fcfs"), [link]), "crawler", "dead")
