"""Sessions replayed against a router without engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from stream2llm.api.credentials import ClientSecurity, credentials_of
from stream2llm.api.errors import NotPermittedError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.client import AsyncClient
from stream2llm.security.principal import Scope
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.http.metrics_http import MetricsServer
from stream2llm.serving.settings.security_options import AuthOptions
from stream2llm.serving.system.clock import SystemClock
from stream2llm.workload.records import RunRecord
from stream2llm.workload.replay.display import View
from stream2llm.workload.replay.driver import Driver, Snapshot
from stream2llm.workload.replay.plan import PlannedSession, Planner
from stream2llm.workload.replay.run import Target, replay
from stream2llm.workload.replay.scrape import Scraper, expanded
from stream2llm.workload.replay.session import Asking
from stream2llm.workload.report import summarize
from stream2llm.workload.report.lateness import LOOP_LAG_P99
from stream2llm.workload.traces.format import Event
from stream2llm.workload.traces.text import TextMaker
from tests.credentials import Keys
from tests.fake_router import (
    Conversation,
    FakeRouter,
    Script,
    error_info,
    finished,
    forever,
    polite,
)
from tests.runs import PREFILL_PAGE as PAGE
from tests.traces import a_session

MAKER = TextMaker()
NOW = (Event(0, "append", ("a",)), Event(0, "update", ("b", "a")), Event(0, "seal"))


def a_plan(*arrivals_s: float, **changes: Any) -> list[PlannedSession]:
    planner = Planner(MAKER)
    values = {"events": NOW, **changes}
    sessions = [a_session(f"q{n}", arrival_s=at_s, **values) for n, at_s in enumerate(arrivals_s)]
    return [planner.planned(session, {}) for session in sessions]


def a_target(address: str, *, timeout_s: float = 60.0, **changes: Any) -> Target:
    asking = Asking(SamplingParameters(max_tokens=3), timeout_s, id_prefix="run-")
    values: dict[str, Any] = {"system": "ours", "trace": "a test", "metrics_urls": ()}
    return Target(addresses=[address], asking=asking, **(values | changes))


async def replayed(script: Script, plan: Sequence[PlannedSession], **options: Any) -> RunRecord:
    async with FakeRouter(script) as router:
        return await replay(plan, a_target(router.address, **options))


async def test_a_session_is_sent_as_planned_and_recorded() -> None:
    async with FakeRouter() as router:
        run = await replay(a_plan(0.0), a_target(router.address))
    kinds = [request.WhichOneof("event") for request in router.received]
    assert kinds == ["open", "append", "update", "seal"]
    opened, append, update, seal = router.received
    assert opened.open.session_id == "run-q0"
    assert opened.open.plain.prefix.text == "Answer."
    assert append.append.documents[0].text
    assert [document.id for document in update.update.documents] == ["b", "a"]
    assert seal.seal.suffix.text
    (record,) = run.sessions
    assert (record.session_id, record.error) == ("q0", "")
    assert len(record.token_times_s) == 3
    assert record.num_prompt_tokens == record.computed_tokens == 12
    moments = [0, record.opened_s, record.sealed_s, *record.token_times_s, record.ended_s]
    assert moments == sorted(moments)
    assert 0 < record.generator_lateness_s <= record.lateness_s
    assert run.duration_s >= record.ended_s


@pytest.mark.parametrize(
    ("recorded", "longest", "sent"), [(None, None, 3), (7, None, 7), (7, 5, 5), (2, 5, 2)]
)
async def test_an_answer_is_as_long_as_it_was_recorded(
    recorded: int | None, longest: int | None, sent: int
) -> None:
    sampling = SamplingParameters(max_tokens=3, ignore_eos=True)
    asking = Asking(sampling, timeout_s=60, longest_answer=longest)
    async with FakeRouter() as router:
        plan = a_plan(0.0, output_tokens=recorded)
        await replay(plan, replace(a_target(router.address), asking=asking))
    opened = router.received[0].open
    assert (opened.sampling.max_tokens, opened.sampling.ignore_eos) == (sent, True)


async def test_a_session_opens_when_due_whatever_the_one_before_does() -> None:
    second_is_open = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        if conversation is not router.conversations[0]:
            second_is_open.set()
        await second_is_open.wait()
        await polite(conversation)

    async with FakeRouter(script) as router:
        run = await replay(a_plan(0.0, 0.05), a_target(router.address))
    assert [record.error for record in run.sessions] == ["", ""]
    assert run.sessions[0].ended_s > run.sessions[1].opened_s >= 0.05


async def test_waiting_for_credit_makes_events_late_and_not_the_generator() -> None:
    second_is_open = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        if conversation is not router.conversations[0]:
            second_is_open.set()
            await polite(conversation)
            return
        await conversation.accept(credit_tokens=0)
        await second_is_open.wait()
        await conversation.progress()
        while (request := await conversation.next()) is not None:
            if request.WhichOneof("event") == "seal":
                await conversation.answer("one")
                return

    async with FakeRouter(script) as router:
        run = await replay(a_plan(0.0, 0.3), a_target(router.address))
    blocked = run.sessions[0]
    assert blocked.error == ""
    assert blocked.lateness_s >= 0.3 > blocked.generator_lateness_s
    assert blocked.sealed_s >= 0.3 > blocked.seal_due_s


async def test_failures_are_counted_by_code() -> None:
    async def script(conversation: Conversation) -> None:
        if len(router.conversations) % 2:
            await polite(conversation)
            return
        await conversation.accept()
        await conversation.progress(received_tokens=5, computed_tokens=4)
        lost = error_info("WORKER_LOST")
        await conversation.fail(grpc.StatusCode.UNAVAILABLE, "gone", lost)

    async with FakeRouter(script) as router:
        late_seal = (Event(0, "append", ("a",)), Event(0.2, "seal"))
        plan = a_plan(0.0, 0.1, 0.2, 0.3, events=late_seal)
        run = await replay(plan, a_target(router.address))
    summary = summarize(run)
    assert (summary.completed, summary.errors) == (2, {"UNAVAILABLE: WORKER_LOST": 2})
    failed = run.sessions[1]
    assert (failed.num_prompt_tokens, failed.computed_tokens) == (5, 4)
    assert failed.ttft_s is None


async def test_nobody_there_is_an_error_a_session_and_no_hang() -> None:
    async with FakeRouter() as router:
        address = router.address
    run = await replay(a_plan(0.0, 0.0), a_target(address))
    assert [record.error for record in run.sessions] == ["UNAVAILABLE"] * 2


async def test_a_silent_server_ends_at_the_deadline() -> None:
    async def silent(_: Conversation) -> None:
        await forever()

    run = await replayed(silent, a_plan(0.0), timeout_s=0.2)
    assert [record.error for record in run.sessions] == ["DEADLINE_EXCEEDED"]


async def test_a_bug_costs_one_session() -> None:
    async def nonsense(conversation: Conversation) -> None:
        await conversation.accept()
        await conversation.send()  # an event without a kind
        await forever()

    run = await replayed(nonsense, a_plan(0.0))
    assert [record.error for record in run.sessions] == ["INTERNAL"]


async def test_restarts_and_answers_are_kept() -> None:
    async def restarted(conversation: Conversation) -> None:
        await conversation.accept()
        while (request := await conversation.next()) is not None:
            if request.WhichOneof("event") == "seal":
                await conversation.progress(restarts=1)
                await conversation.answer_begins("one")
                if conversation is router.conversations[1]:
                    await conversation.fail(grpc.StatusCode.INTERNAL, "a bug")
                last = finished(1)
                last.restarts = 2
                await conversation.send(finished=last)
                return

    asking = Asking(SamplingParameters(max_tokens=3), timeout_s=60.0)
    async with FakeRouter(restarted) as router, AsyncClient(router.address) as client:
        driver = Driver(a_plan(0.0, 0.0), [client], asking, SystemClock())
        await driver.run(asyncio.Event())
    records = {record.error: record.restarts for record in driver.records()}
    assert records == {"": 2, "INTERNAL": 1}
    assert list(driver.answers().values()) == [[0]]


class Kept:
    """A view that keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Snapshot] = []
        self.closed = False

    def show(self, snapshot: Snapshot) -> None:
        self.shown.append(snapshot)

    def close(self) -> None:
        self.closed = True


async def test_stopping_cancels_what_is_open_and_keeps_what_is_finished() -> None:
    stop = asyncio.Event()

    class StopsAtOneAnswer(Kept):
        def show(self, snapshot: Snapshot) -> None:
            if snapshot.num_answered == 1:
                stop.set()

    async def script(conversation: Conversation) -> None:
        if conversation is router.conversations[0]:
            await polite(conversation)
        else:
            await conversation.accept()
            await forever()

    async with FakeRouter(script) as router:
        plan, target = a_plan(0.0, 0.0, 3600.0), a_target(router.address)
        run = await replay(plan, target, stop=stop, view=StopsAtOneAnswer())
        ends = sorted([await router.ends.get(), await router.ends.get()])
    assert ends == ["cancelled", "returned"]
    assert sorted(record.error for record in run.sessions) == ["", "CANCELLED"]
    assert run.counters["sessions_not_opened"] == 1


async def test_progress_is_shown_meanwhile() -> None:
    view = Kept()
    kept: View = view
    async with FakeRouter() as router:
        await replay(a_plan(0.0, 0.2), a_target(router.address), view=kept)
    assert view.closed
    assert view.shown[0].num_planned == 2
    assert all(each.num_open >= 0 for each in view.shown)


# -- metrics --------------------------------------------------------------------------------


@asynccontextmanager
async def pages(*texts: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A server of these pages, one after the other and then the last; "" is an error 500."""
    left = list(texts)

    async def metrics(_: web.Request) -> web.Response:
        text = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(text=text, status=200 if text else 500)

    async def discovery(request: web.Request) -> web.Response:
        groups = [
            {"targets": [request.host], "labels": {"role": role}} for role in ("prefill", "decode")
        ]
        return web.Response(text=json.dumps(groups))

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/sd", discovery)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}", left
    finally:
        await runner.cleanup()


async def test_a_run_has_a_timeline_and_what_was_counted_meanwhile() -> None:
    counter = 'action="recompute",policy="lcas",role="prefill"}'
    after = PAGE.replace(f"{counter} 2", f"{counter} 9")
    async with pages(PAGE, after) as (address, _), FakeRouter() as router:
        target = a_target(router.address, metrics_urls=[f"http://{address}/sd"])
        run = await replay(a_plan(0.0), target)
    assert run.samples
    assert run.samples[0].kv_usage == 0.25
    assert run.counters["preemptions_recompute"] == 7
    assert run.counters["preemptions_swap"] == 0
    assert LOOP_LAG_P99 not in run.counters or run.counters[LOOP_LAG_P99] >= 0
    assert run.settings["policy"] == "lcas"
    assert summarize(run).preemptions == 7


async def test_a_scrape_that_fails_leaves_a_gap_and_asks_for_the_addresses_again() -> None:
    asked = 0

    async def find() -> Sequence[str]:
        nonlocal asked
        asked += 1
        return await expanded([address])

    lines: list[str] = []
    async with pages(PAGE, "", PAGE) as (address, _):
        scraper = Scraper(find, lambda: 1.0, warn=lines.append)
        for _ in range(3):
            await scraper.scrape()
    assert lines == []  # it has metrics
    assert asked == 2
    assert len(scraper.samples) == 2
    assert scraper.counters()["scrapes_failed"] == 1


async def test_metrics_that_a_key_may_not_read_are_one_warning(tmp_path: Path) -> None:
    keys, lines = Keys(tmp_path), list[str]()
    security = ClientSecurity(None, credentials_of(keys.create("a", Scope.SESSION), None))
    guard = Guards(AuthOptions(keys_file=keys.path), SystemClock()).of("metrics")
    with MetricsServer("127.0.0.1", 0, CollectorRegistry(), None, guard) as server:
        scraper = Scraper(
            lambda: expanded([server.address], security), float, security, lines.append
        )
        for _ in range(2):
            await scraper.scrape()
    (line,) = lines
    assert "lacks the scope read" in line
    assert "--no-metrics" in line
    assert scraper.counters()["scrapes_failed"] == 2


async def test_a_router_that_names_no_workers_to_a_key_is_one_warning() -> None:
    lines: list[str] = []
    async with FakeRouter() as router:

        async def refuse(*_: object) -> None:
            raise NotPermittedError("key-1 lacks the scope read")

        scraper = Scraper(refuse, float, warn=lines.append)  # type: ignore[arg-type]
        await scraper.scrape()
        await replay(
            a_plan(0.0), a_target(router.address, metrics_urls=["127.0.0.1:1"]), warn=lines.append
        )
    assert ["lacks the scope read" in line for line in lines] == [True, False]
    assert "Connection refused" in lines[1]


async def test_without_metrics_a_run_is_recorded_all_the_same() -> None:
    async with FakeRouter() as router:  # names a worker that has no metrics address
        run = await replay(a_plan(0.0), a_target(router.address, metrics_urls=None))
    assert run.sessions[0].error == ""
    assert run.samples == ()
