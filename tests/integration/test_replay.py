"""A replay as a user starts it, and thousands of sessions at a time; the router has no engines."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.workload.replay.plan import Planner
from stream2llm.workload.replay.run import Target, replay
from stream2llm.workload.replay.session import Asking
from stream2llm.workload.report import lateness_warning, load_run, summarize, summary_to_json
from stream2llm.workload.traces.format import Document, Event
from stream2llm.workload.traces.text import TextMaker
from stream2llm.workload.traces.write import write_trace
from tests.fake_router import Conversation, FakeRouter, forever, polite
from tests.traces import a_header, a_session

NUM_SESSIONS = 2000
EVENTS = (Event(0, "append", ("a",)), Event(0.01, "update", ("b", "a")), Event(0.02, "seal"))


def a_trace(path: Path, num_sessions: int, gap_s: float = 0.0) -> Path:
    sessions = [a_session(f"q{n}", arrival_s=n * gap_s, events=EVENTS) for n in range(num_sessions)]
    write_trace(path, a_header(), sessions)
    return path


@pytest.mark.slow
async def test_two_thousand_sessions_are_open_at_a_time_and_all_complete() -> None:
    """None is answered before the last one is sealed."""
    num_sealed, all_sealed = 0, asyncio.Event()

    async def script(conversation: Conversation) -> None:
        nonlocal num_sealed
        await conversation.accept()
        while (request := await conversation.next()) is not None:
            if request.WhichOneof("event") == "seal":
                break
        num_sealed += 1
        if num_sealed == NUM_SESSIONS:
            all_sealed.set()
        await all_sealed.wait()
        await conversation.answer("one", " two")

    planner = Planner(TextMaker())
    document = (Document("a", "A document.", 3), Document("b", "Another.", 2))
    plan = [
        planner.planned(a_session(f"q{n}", documents=document, events=EVENTS), {})
        for n in range(NUM_SESSIONS)
    ]
    async with FakeRouter(script) as router:
        asking = Asking(SamplingParameters(max_tokens=2), timeout_s=120)
        target = Target([router.address], "ours", "many", asking, metrics_urls=())
        run = await replay(plan, target)
    summary = summarize(run)
    assert (summary.completed, summary.errors) == (NUM_SESSIONS, {})
    assert summary.peak_sessions == NUM_SESSIONS
    figures = summary_to_json(summary)
    # 2,000 events at one moment cannot all be begun at that moment; the report knows.
    assert figures["p99_generator_lateness_ms"] > 0
    assert figures["max_lateness_ms"] >= figures["max_generator_lateness_ms"]
    assert bool(lateness_warning(summary)) == (
        max(figures["p99_generator_lateness_ms"], figures["counters"]["loop_lag_p99_s"] * 1e3)
        > max(10.0, 0.05 * figures["median_ttft_ms"])
    )


# -- the command --------------------------------------------------------------------------


@asynccontextmanager
async def bench_replay(*args: Any) -> AsyncIterator[Process]:
    """`stream2llm bench replay`; ended when the block is left."""
    command = [sys.executable, "-m", "stream2llm.cli.main", "bench", "replay", *map(str, args)]
    environment = {**os.environ, "STREAM2LLM_ADDRESS": "", "PYTHONWARNINGS": "default"}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=PIPE, env=environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def output_of(process: Process) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, when it has ended."""
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_command_writes_run_and_report(tmp_path: Path) -> None:
    trace, folder = a_trace(tmp_path / "t.jsonl", 6, gap_s=0.05), tmp_path / "out"
    async with FakeRouter() as router:
        options = ["--trace", trace, "-a", router.address, "--label", "fake", "-o", folder]
        async with bench_replay(
            *options, "--max-sessions", 4, "--load-scale", 2, "--ordering", "stable"
        ) as process:
            code, out, err = await output_of(process)
    assert code == 0, err
    assert "Warning" not in err
    assert "| TTFT from seal | fake |" in out
    assert out.strip().endswith(str(folder / "report.html"))
    assert {"run.json", "summary.json", "report.md", "report.html"} <= set(os.listdir(folder))
    run = load_run(folder / "run.json")
    assert [record.due_s for record in run.sessions] == pytest.approx([0, 0.025, 0.05, 0.075])
    assert run.settings["load_scale"] == 2
    assert run.settings["ordering"] == "stable"
    orderings = {each.received[0].open.ordering for each in router.conversations}
    assert orderings == {pb.DOCUMENT_ORDERING_STABLE}
    assert run.settings["model"] == "fake"
    assert run.settings["trace_provenance"] == "written by a test"


async def test_ctrl_c_reports_what_is_finished(tmp_path: Path) -> None:
    trace, folder = a_trace(tmp_path / "t.jsonl", 2, gap_s=0.5), tmp_path / "out"
    second_is_open = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        if conversation is router.conversations[0]:
            await polite(conversation)
            return
        await conversation.accept()
        second_is_open.set()
        await forever()

    async with FakeRouter(script) as router:
        async with bench_replay("--trace", trace, "-a", router.address, "-o", folder) as process:
            await second_is_open.wait()
            process.send_signal(signal.SIGINT)
            code, _, err = await output_of(process)
        ends = sorted([await router.ends.get(), await router.ends.get()])
    assert code == 130, err
    assert "open sessions are cancelled" in err
    assert ends == ["cancelled", "returned"]
    errors = [record.error for record in load_run(folder / "run.json").sessions]
    assert errors == ["", "CANCELLED"]


@pytest.mark.slow
async def test_a_cluster_that_dies_gives_errors_and_no_hang(tmp_path: Path) -> None:
    trace, folder = a_trace(tmp_path / "t.jsonl", 3, gap_s=0.5), tmp_path / "out"
    first_is_open = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.accept()
        first_is_open.set()
        await forever()

    router = FakeRouter(script)
    await router.__aenter__()
    async with bench_replay("--trace", trace, "-a", router.address, "-o", folder) as process:
        is_open = asyncio.ensure_future(first_is_open.wait())
        has_ended = asyncio.ensure_future(process.wait())
        await asyncio.wait({is_open, has_ended}, return_when=asyncio.FIRST_COMPLETED)
        assert is_open.done(), "it ended before it began"
        await router.__aexit__()
        code, _, err = await output_of(process)
    assert code == 3, err
    assert "3 sessions failed: UNAVAILABLE" in err
    assert len(load_run(folder / "run.json").sessions) == 3


async def test_nobody_there_is_said_once(tmp_path: Path) -> None:
    async with FakeRouter() as router:
        address = router.address
    trace = a_trace(tmp_path / "t.jsonl", 2)
    async with bench_replay("--trace", trace, "-a", address, "-o", tmp_path / "out") as process:
        code, _, err = await output_of(process)
    assert code == 4
    assert "[NO_ANSWER]" in err
    assert "Traceback" not in err


async def test_a_trace_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    async with bench_replay("-t", tmp_path / "bad.jsonl", "-o", tmp_path / "out") as process:
        code, _, err = await output_of(process)
    assert code == 3
    assert "bad.jsonl, line 1" in err
