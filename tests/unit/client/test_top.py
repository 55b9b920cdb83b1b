"""`stream2llm top`: from pages of our own registries to a frame, and the loop around it."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from rich.console import Console
from typer.testing import Result

from decode_worker.fetch_ledger import Settled
from decode_worker.fetch_metrics import FetchMetrics
from prefill_worker.metrics import PrefillMetrics
from prefill_worker.report import SchedulerCounters, SchedulerReport, SwapState
from router.metrics import InputMode, Phase, RouterMetrics
from stream2llm.api.errors import UnavailableError
from stream2llm.cli.top import names as metric
from stream2llm.cli.top.render import draw
from stream2llm.cli.top.scrape import Replica, Scrape, described
from stream2llm.cli.top.view import Latency, Usage, View, view_of
from stream2llm.engine.worker_metrics import WorkerGauges
from stream2llm.serving.http.exposition import Page, gained, parse, quantile
from stream2llm.serving.http.metrics_http import MetricsServer
from stream2llm.serving.settings.tenant_options import (
    ALL_ALIKE,
    OTHERS,
    TenantOptions,
    TenantsOptions,
)
from stream2llm.serving.settings.worker_spec import WorkerStatus
from tests.command_lines import check_failed, cli
from tests.fakes.controller import a_controller, controller_http

NAMES = ("router-0", "prefill-0", "decode-0")


class Processes:
    """The metrics of a router, a prefill and a decode worker; each test makes them count."""

    def __init__(self, tenants: TenantsOptions = ALL_ALIKE) -> None:
        self.registries = {name: CollectorRegistry() for name in NAMES}
        self.router = RouterMetrics(self.registries["router-0"], "a-model", tenants)
        self.prefill = PrefillMetrics(self.registries["prefill-0"])
        self.fetches = FetchMetrics(self.registries["decode-0"])
        self.prefill.record(a_report())  # as each worker does when it starts
        for role, name in (("prefill", "prefill-0"), ("decode", "decode-0")):
            status = WorkerStatus(
                num_sessions=3, num_kv_blocks=1000, num_kv_blocks_held=250, block_size=16, pids=()
            )
            self.registries[name].register(WorkerGauges(role, lambda each=status: each))  # type: ignore[misc, arg-type]

    def scrape(self, at_s: float, **changes: Any) -> Scrape:
        pages = {
            name: parse(generate_latest(each).decode(), metric.WANTED)
            for name, each in self.registries.items()
        }
        return replace(
            Scrape(at_s, "0.1.0", "srpf", tuple(map(a_replica, NAMES)), pages), **changes
        )


def a_report(**counters: Any) -> SchedulerReport:
    swap = SwapState(num_slots=64, num_slots_used=16)
    return SchedulerReport(
        1, "srpf", SchedulerCounters(**counters), num_sessions_with_work=2, swap=swap
    )


def a_replica(name: str, **changes: Any) -> Replica:
    role = name.partition("-")[0]
    return replace(Replica(name, role, "ready", 1, "10.0.0.7:9400"), **changes)


def text_of(view: View, width: int = 80, height: int | None = 24) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(draw(view, "127.0.0.1:8360", height))
    return console.export_text()


def a_busy_interval() -> View:
    processes = Processes()
    processes.router.phase_changed(None, Phase.DECODING)
    processes.router.first_token(InputMode.APPEND, 9.0, 9.0, 0.5)
    before = processes.scrape(100.0)
    for _ in range(10):
        processes.router.first_token(InputMode.APPEND, 1.0, 0.015, 0.5)
    processes.router.output(40)
    processes.router.rpc_failed("TOO_MANY_SESSIONS")
    processes.prefill.record(
        a_report(
            computed_tokens=600, reused_across_sessions_tokens=200, swap_preemptions=4,
            swapped_as_cheaper=4,
        )
    )  # fmt: skip
    processes.fetches.settled(Settled(prefetched=9, after_seal=1, wasted=3), 100)
    return view_of(before, processes.scrape(102.0))


def test_rates_and_latencies_are_of_the_interval_and_gauges_of_now() -> None:
    view = a_busy_interval()
    router, prefill, decode = view.workers
    assert (router.running, router.tokens_per_s) == (1, 20)
    assert (prefill.kv_held, prefill.kv_blocks, prefill.node) == (250, 1000, "10.0.0.7")
    assert (prefill.running, prefill.waiting, prefill.tokens_per_s) == (2, 0, 300)
    assert decode.state == "ready"
    assert view.ttft.count == 10
    assert view.ttft.quantiles_s[0] == pytest.approx(0.015)  # all in the bucket 10 to 20 ms
    assert view.ttft_ever.count == 11
    assert view.hits.prefix_cache == 0.25
    assert view.hits.prefetched == 0.9
    assert view.hits.wasted == 0.25
    assert view.preemptions == {"recompute": 0, "swap": 2}
    assert {reason for reason, rate in view.refusals.items() if rate} == {"TOO_MANY_SESSIONS"}
    assert view.refusals["TOO_MANY_SESSIONS"] == 0.5
    assert view.offload_pool == Usage(16, 64)
    assert view.sessions == {phase.value: float(phase is Phase.DECODING) for phase in Phase}


def test_a_worker_that_follows_another_policy_than_the_chosen_is_named() -> None:
    processes = Processes()  # whose worker follows srpf
    chosen = processes.scrape(1.0, policy="mine:late")
    assert view_of(chosen, chosen).policy == "mine:late (chosen); prefill-0: srpf"
    silent = processes.scrape(1.0, policy="mine:late", pages={"prefill-0": "refused"})
    assert view_of(silent, silent).policy == "mine:late"


def test_a_frame_of_80_columns() -> None:
    shown = text_of(a_busy_interval()).rstrip("\n").split("\n")
    assert [line.rstrip() for line in shown] == [
        "127.0.0.1:8360  0.1.0  policy srpf  3 of 3 ready",
        "",
        "replica    state  node      inc      KV used  run  wait  tokens/s",
        "router-0   ready  10.0.0.7    1                 1              20",
        "prefill-0  ready  10.0.0.7    1  25% of 1000    2     0       300",
        "decode-0   ready  10.0.0.7    1  25% of 1000",
        "",
        "sessions   queued 0, waiting input 0, prefilling 0, transferring 0, decoding 1",
        "TTFT       P50 15 ms P95 19.5 ms P99 19.9 ms, 10 sessions in the last 2 s",
        "           P50 15.5 ms P95 8.62 s P99 9.73 s, 11 sessions since the start",
        "memory     KV blocks prefill 25% of 1000, decode 25% of 1000, offload 25% of 64",
        "hits       prefix cache 25% of prompt tokens; KV prefetched 90%, wasted 25%",
        "preempted  swap 2/s",
        "refused    TOO_MANY_SESSIONS 0.5/s",
    ]


def test_tenants_of_the_configuration_are_shown_and_the_busiest_where_there_is_no_room() -> None:
    named = {f"t{number}": TenantOptions() for number in range(6)}
    processes = Processes(TenantsOptions(named=named))
    before = processes.scrape(100.0)
    for tenant, seconds in (("t4", 0.015), ("t4", 0.015), ("nobody's", 0.3)):
        processes.router.tenants.first_token(tenant, seconds)
    processes.router.tenants.changed("t4", 2)
    processes.router.tenants.computed("t4", 3000)
    processes.router.tenants.computed("t1", 30)
    processes.router.tenants.quota_refused("t1", "max_open_sessions")
    view = view_of(before, processes.scrape(102.0))
    assert [row.name for row in view.tenants[:2]] == ["t4", "t1"]
    assert len(view.tenants) == 7
    assert [row.ttft.count for row in view.tenants if row.name in ("t4", OTHERS)] == [2, 1]
    short = [line.rstrip() for line in text_of(view).splitlines()]
    assert [line for line in short if line.startswith(("t", "TTFT"))] == [
        "tenant (2 of 7)  sessions  TTFT P50      P95  prefill/s  decode/s  refused/s",
        "t4                      2     15 ms  19.5 ms      1,500         0          0",
        "t1                      0                            15         0        0.5",
        "TTFT       no first token in the last 2 s",
    ]
    assert f"{OTHERS}         0    " in text_of(view, height=None)
    assert "tenant" not in text_of(a_busy_interval())


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 14), (200, 50)])
@pytest.mark.parametrize("num_workers", [3, 40])
def test_a_frame_fits_its_terminal_and_leaves_out_none_that_is_ill(
    width: int, height: int, num_workers: int
) -> None:
    replicas = [a_replica(f"decode-{n}", metrics_address="10.0.0.1:1") for n in range(num_workers)]
    replicas[-1] = a_replica("prefill-0", phase="given_up", reason="no GPU " * 30)
    scrape = Scrape(1.0, "0.1.0", "srpf", tuple(replicas))
    lines = text_of(view_of(scrape, scrape), width, height).rstrip("\n").split("\n")
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert any(line.startswith("prefill-0  given up") for line in lines)
    assert any(line.startswith("prefill-0: no GPU") for line in lines)


def test_a_worker_that_began_anew_gives_no_negative_rate() -> None:
    old, new = Processes(), Processes()
    old.prefill.record(a_report(computed_tokens=1000))
    new.prefill.record(a_report(computed_tokens=50))
    # Under the same incarnation, as a router that its actor made anew: by the fall alone.
    assert view_of(old.scrape(0.0), new.scrape(2.0)).workers[1].tokens_per_s == 25
    # Beyond what the old one had counted: by the incarnation.
    new.prefill.record(a_report(computed_tokens=5000))
    second = tuple(a_replica(name, incarnation=2) for name in NAMES)
    grew = view_of(old.scrape(0.0), new.scrape(2.0, replicas=second)).workers[1]
    assert grew.tokens_per_s == 2500


def test_what_was_counted_before_the_first_look_is_no_rate() -> None:
    processes = Processes()
    processes.prefill.record(a_report(computed_tokens=1000))
    blind = processes.scrape(0.0, pages={"prefill-0": "timed out"})
    assert view_of(blind, processes.scrape(2.0)).workers[1].tokens_per_s == 0
    assert view_of(Scrape(0.0), processes.scrape(2.0)).workers[1].tokens_per_s == 0


def test_mixed_workers_alone_have_their_figures() -> None:
    """Tokens of prompts from our scheduler, and of answers from vLLM."""
    registry = CollectorRegistry()
    prefill = PrefillMetrics(registry, role="mixed")
    generated = Counter("vllm:generation_tokens", "as vLLM's", registry=registry)
    status = WorkerStatus(
        num_sessions=3, num_kv_blocks=1000, num_kv_blocks_held=250, block_size=16, pids=()
    )
    registry.register(WorkerGauges("mixed", lambda: status))

    def scrape(at_s: float) -> Scrape:
        page = parse(generate_latest(registry).decode(), metric.WANTED)
        return Scrape(at_s, "0.1.0", "srpf", (a_replica("mixed-0"),), {"mixed-0": page})

    prefill.record(a_report())
    before = scrape(0.0)
    prefill.record(a_report(computed_tokens=600))
    generated.inc(20)
    view = view_of(before, scrape(2.0))
    (row,) = view.workers
    assert (row.running, row.waiting, row.tokens_per_s) == (2, 0, 310)
    assert view.kv == {"mixed": Usage(250, 1000)}
    assert view.offload_pool == Usage(16, 64)
    assert "KV blocks mixed 25% of 1000, offload 25% of 64" in text_of(view)


def test_what_gives_no_answer_is_shown_and_counts_for_nothing() -> None:
    processes = Processes()
    before, after = processes.scrape(0.0), processes.scrape(2.0)
    after = replace(after, pages={**after.pages, "prefill-0": "Connection refused"})
    view = view_of(before, after)
    silent = view.workers[1]
    assert (silent.state, silent.problem) == ("no answer", "no metrics: Connection refused")
    assert silent.kv_blocks is None
    assert (view.num_ready, view.kv["prefill"].total) == (2, 0)
    assert "prefill-0: no metrics: Connection refused" in text_of(view)


def test_nothing_at_all_is_a_frame_too() -> None:
    view = view_of(Scrape(0.0), Scrape(0.0, controller_error=UnavailableError("no answer")))
    assert view.ttft == Latency(0)
    assert "CONTROLLER GONE" in text_of(view)


def test_a_quantile_is_interpolated_in_its_bucket() -> None:
    inf = float("inf")
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0, inf: 0}, 0.5) is None
    assert quantile({1.0: 0, 2.0: 4, 4.0: 8, inf: 8}, 0.5) == 2.0
    assert quantile({1.0: 0, 2.0: 4, 4.0: 8, inf: 8}, 0.75) == 3.0
    assert quantile({1.0: 1, 2.0: 1, inf: 10}, 0.99) == 2.0


def test_a_page_without_labels_in_common_gains_its_new_series() -> None:
    name = metric.ERRORS
    before = Page({(name, (("reason", "A"),)): 3.0})
    after = Page({(name, (("reason", "A"),)): 4.0, (name, (("reason", "B"),)): 2.0})
    assert gained(before, after).by_label(name, "reason") == {"A": 1.0, "B": 2.0}


def test_vllm_has_the_metrics_that_are_read_from_it() -> None:
    spec = find_spec("vllm")  # not imported, which takes ten seconds
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    names = [name for name in metric.WANTED if name.startswith("vllm:")]
    assert len(names) == 3
    for name in names:
        assert f'name="{name.removesuffix("_total")}"' in source


# -- the loop ----------------------------------------------------------------------------


class Fleet:
    """A controller's HTTP and its workers' metrics servers."""

    def __init__(self, processes: Processes) -> None:
        self.servers = {
            name: MetricsServer("127.0.0.1", 0, each) for name, each in processes.registries.items()
        }
        self.http = controller_http(self.status)

    def status(self) -> dict[str, Any]:
        replicas = [
            {
                "name": name, "role": name.partition("-")[0], "phase": "ready", "incarnation": 1,
                "reason": "", "address": {"metrics_address": server.address},
            }
            for name, server in self.servers.items()
        ]  # fmt: skip
        return {"version": "0.1.0", "policy": "srpf", "replicas": replicas}

    def close(self) -> None:
        for server in self.servers.values():
            server.close()


@asynccontextmanager
async def a_fleet() -> AsyncIterator[tuple[Fleet, str]]:
    fleet = Fleet(Processes())
    address = await fleet.http.start("127.0.0.1", 0)
    try:
        yield fleet, address
    finally:
        await fleet.http.close()
        fleet.close()


def once(address: str) -> Result:
    args = ["top", "--once", "--interval", "0.05", "--controller", address]
    return cli(*args, env={"COLUMNS": "100"})


async def test_once_prints_a_frame_of_a_cluster_and_of_what_is_left_of_it() -> None:
    async with a_fleet() as (fleet, address):
        whole = await asyncio.to_thread(once, address)
        fleet.servers["decode-0"].close()
        less = await asyncio.to_thread(once, address)
    assert (whole.exit_code, less.exit_code) == (0, 0), whole.output
    assert f"{address}  0.1.0  policy srpf  3 of 3 ready" in whole.stdout
    assert "\x1b" not in whole.stdout
    assert "2 of 3 ready" in less.stdout
    assert "decode-0   no answer  127.0.0.1" in less.stdout


@pytest.mark.parametrize("answer", [{}, {"replicas": [{}]}, {"replicas": [1]}])
async def test_something_else_than_a_controller_is_one_line(answer: dict[str, Any]) -> None:
    async with a_controller(lambda: answer) as address:
        result = await asyncio.to_thread(once, address)
    assert (result.exit_code, len(result.stderr.splitlines())) == (4, 1), result.output


def test_without_a_terminal_the_live_view_points_to_once() -> None:
    result = cli("top", "--controller", "127.0.0.1:1")
    check_failed(result, 2, "--once")


@contextmanager
def a_terminal(*args: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """`stream2llm` in a terminal of 80 columns and 24 lines."""
    ours, theirs = pty.openpty()
    pty_size = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    command = [sys.executable, "-m", "stream2llm.cli.main", *args]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=pty_size)
    os.close(theirs)
    try:
        yield ours, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        read = os.read(terminal, 65536)
        assert read, seen
        seen += read


async def test_the_live_view_outlasts_its_controller_and_q_ends_it() -> None:
    args = ("top", "--interval", "0.1", "--controller")
    async with a_fleet() as (fleet, address):
        with a_terminal(*args, address) as (terminal, process):
            await asyncio.to_thread(read_until, terminal, b"3 of 3 ready")
            await fleet.http.close()
            await asyncio.to_thread(read_until, terminal, b"CONTROLLER GONE")
            host, _, port = address.rpartition(":")
            await fleet.http.start(host, int(port))
            await asyncio.to_thread(read_until, terminal, b"3 of 3 ready")
            os.write(terminal, b"q")
            assert await asyncio.to_thread(process.wait, 30) == 0


def test_a_status_is_read_as_the_controller_writes_it() -> None:
    raw = {"name": "decode-0", "role": "decode", "phase": "starting", "incarnation": 3,
           "reason": "died", "address": None}  # fmt: skip
    assert described({"replicas": [raw]}).replicas == (
        Replica("decode-0", "decode", "starting", 3, "", "died"),
    )
