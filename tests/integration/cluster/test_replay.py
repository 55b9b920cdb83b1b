"""A trace with more context than the cluster has memory for, replayed in open loop and reported."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from stream2llm.api.sampling import SamplingParameters
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from stream2llm.workload.replay.plan import PlannedSession, Planner
from stream2llm.workload.replay.run import Target, replay
from stream2llm.workload.replay.session import Asking
from stream2llm.workload.report import load_run, save_run, summarize, write_report
from stream2llm.workload.traces.format import Scale, Shape
from stream2llm.workload.traces.generate import generate
from stream2llm.workload.traces.text import TextMaker
from tests.polling import eventually

pytestmark = [pytest.mark.slow, pytest.mark.cluster("sensitive-tight")]

NUM_SESSIONS = 120
ANSWER_TOKENS = 4


def a_plan(shape: Shape, *, gap_s: float, time: float) -> list[PlannedSession]:
    """Sessions of about a hundred tokens."""
    arrivals = [number * gap_s for number in range(NUM_SESSIONS)]
    sessions = generate(shape, arrivals, 5, Scale(tokens=0.015, time=time))
    return list(Planner(TextMaker()).plan(sessions, {}))


def a_target(cluster: Cluster, name: str) -> Target:
    sampling = SamplingParameters(max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True)
    return Target(
        addresses=[cluster.router_addresses[0]],
        system=f"stream2llm {name}",
        trace=name,
        asking=Asking(sampling, timeout_s=240),
        metrics_urls=[f"http://{cluster.http_address}/sd"],
    )


async def test_a_replay_of_many_sessions_is_whole(
    cluster: Cluster, client: AsyncClient, tmp_path: Path
) -> None:
    shapes: tuple[Shape, ...] = ("crawler", "anns")
    # Not what another test on this cluster left.
    await asyncio.to_thread(cluster.set_policy, "fcfs")
    runs = [
        await replay(a_plan(shape, gap_s=0.03, time=0.1), a_target(cluster, shape))
        for shape in shapes
    ]
    for run in runs:
        summary = summarize(run)
        assert (summary.completed, summary.errors) == (NUM_SESSIONS, {})
        assert summary.output_tokens == NUM_SESSIONS * ANSWER_TOKENS
        assert (summary.tokens_by_kind["computed"] or 0) > 0
        assert summary.preemptions is not None
        assert summary.peak_sessions > 10
        assert run.samples
        assert max(sample.kv_usage for sample in run.samples) > 0
        assert run.settings["policy"] == "fcfs"
        for record in run.sessions:
            assert record.sealed_s is not None
            moments = [record.opened_s, record.sealed_s, *record.token_times_s, record.ended_s]
            assert moments == sorted(moments)
    invalidated = [summarize(run).tokens_by_kind["invalidated"] or 0 for run in runs]
    # Updates do that, appends never.
    assert invalidated[0] == 0 < invalidated[1]

    save_run(runs[0], tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == runs[0]
    page, *_ = write_report(runs, tmp_path / "report")
    assert "data:image/svg+xml" in page.read_text()
    figures = json.loads((page.parent / "summary-1.json").read_text())
    assert figures["completed"] == NUM_SESSIONS
    assert figures["p99_ttft_ms"] >= figures["median_ttft_ms"] > 0


async def test_a_replay_that_is_stopped_leaves_nothing_behind(
    cluster: Cluster, client: AsyncClient
) -> None:
    """The fixture `client` then finds every KV block free."""
    stop = asyncio.Event()

    async def stop_in_the_middle() -> None:
        await eventually(num_sessions, lambda number: number >= 20)
        stop.set()

    async def num_sessions() -> int:
        info = await client.server_info()
        return sum(worker.num_sessions for worker in info.workers if worker.role == "prefill")

    plan = a_plan("crawler", gap_s=0.0, time=100.0)  # sealed after minutes
    async with asyncio.TaskGroup() as group:
        group.create_task(stop_in_the_middle())
        run = await replay(plan, a_target(cluster, "stopped"), stop=stop)
    assert {record.error for record in run.sessions} == {"CANCELLED"}
    await eventually(num_sessions, lambda number: number == 0)
