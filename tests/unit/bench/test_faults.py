"""Faults from a seed, the processes they meet, and what comes of a run.

On values, and on real processes that carry a cluster's mark, beside sessions on a router without
engines.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import psutil
import pytest

from experiments.faults.load import sessions
from experiments.faults.parts import Kind, Part, kind_of, living_parts, parts_of
from experiments.faults.plan import LONGEST_STOP_S, SHORTEST_STOP_S, Fault, Strike, faults, victim
from experiments.faults.report import (
    Check,
    Delay,
    Outcome,
    Run,
    is_struck,
    missed,
    outcome,
    tables,
    to_compare,
)
from experiments.faults.run import Striker, compare, play
from experiments.token_sessions import longest_tokens
from stream2llm.client import SamplingParameters
from stream2llm.cluster.cluster import Cluster
from stream2llm.serving.system.processes import (
    OwnedProcess,
    kill_owned,
    mark_environment,
    owner_mark,
)
from stream2llm.workload.records import SessionRecord
from stream2llm.workload.replay.session import Asking
from tests.fake_router import FakeRouter
from tests.polling import eventually
from tests.runs import a_failed_record, a_record

TITLES = ("ray::PrefillActor.start", "VLLM::EngineCore", "VLLM::Worker_TP0")


def a_worker(name: str, first_pid: int) -> list[OwnedProcess]:
    """Its processes, with a helper of Python's."""
    titles = (*TITLES, "python -c from multiprocessing.resource_tracker import main")
    owner = f"c1/{name}/3/"
    return [OwnedProcess(first_pid + n, owner, title) for n, title in enumerate(titles)]


PROCESSES = [
    *a_worker("prefill-1", 900),
    *a_worker("decode-0", 100),
    OwnedProcess(5, "c1/controller/1/", "ray::Controller.watch"),
    OwnedProcess(6, "c1/router-0/1/", "ray::RouterActor"),
    OwnedProcess(7, "c1/ray/1/", "ray::IDLE"),
    OwnedProcess(8, "c1/ray/1/", "raylet"),
]


def test_a_plan_has_its_interval_and_its_seed() -> None:
    planned = faults(3, duration_s=3600.0, every_s=20.0)
    assert [each.at_s for each in planned] == [20.0 * n for n in range(1, 181)]
    assert planned == faults(3, 3600.0, 20.0) != faults(4, 3600.0, 20.0)
    # A longer run begins with the same faults.
    assert faults(3, 60.0, 20.0) == planned[:3]
    killed = [each for each in planned if each.stopped_s is None]
    assert 80 < len(killed) < 140
    stops = [each.stopped_s for each in planned if each.stopped_s is not None]
    assert SHORTEST_STOP_S <= min(stops) < 12 < max(stops) <= LONGEST_STOP_S  # hangs and others


def test_every_process_is_met_but_helpers() -> None:
    parts = parts_of(PROCESSES)
    planned = faults(0, duration_s=4000.0, every_s=20.0)
    met = {part.name for each in planned if (part := victim(each, parts)) is not None}
    workers = {f"{name}/3 {kind}" for name in ("prefill-1", "decode-0") for kind in Kind}
    assert met == {*workers, "controller/1 actor", "router-0/1 actor"}


def test_what_is_met_does_not_depend_on_the_order_or_the_numbers_of_processes() -> None:
    fault = Fault(0.0, 0.5, None)
    other = [OwnedProcess(each.pid + 77, each.owner, each.command) for each in PROCESSES[::-1]]
    first, second = victim(fault, parts_of(PROCESSES)), victim(fault, parts_of(other))
    assert (first.name, second.process.pid - first.process.pid) == (second.name, 77)


@pytest.mark.parametrize("parts", [[], parts_of(PROCESSES[-2:])])
def test_nothing_is_met_where_only_helpers_live(parts: Sequence[Part]) -> None:
    assert victim(Fault(0.0, 0.99, None), parts) is None


def test_a_title_says_the_kind() -> None:
    assert [kind_of(title) for title in TITLES] == [Kind.ACTOR, Kind.ENGINE_CORE, Kind.RANK]
    assert kind_of("grep VLLM::EngineCore") is None


def test_the_load_has_both_shapes_in_order_and_nothing_too_long() -> None:
    asked = sessions(1, duration_s=600.0, rate=0.2, longest=1000)
    assert [each.due_s for each in asked] == sorted(each.due_s for each in asked)
    assert len({each.session_id for each in asked}) == len(asked)
    assert {each.session_id.partition("-")[0] for each in asked} == {"crawler", "anns"}
    assert max(map(longest_tokens, asked)) <= 1000
    assert len(asked) > 100


def test_the_longest_wait_is_from_the_seal_or_between_tokens() -> None:
    record = a_record()  # sealed at 3 s; tokens at 3.5, 3.6 and 3.8 s
    assert record.longest_wait_s == 0.5
    assert a_record(token_times_s=(3.5, 5.0)).longest_wait_s == 1.5
    assert a_failed_record().longest_wait_s is None


def a_strike(at_s: float) -> Strike:
    return Strike(at_s, "decode-0", 2, Kind.ENGINE_CORE, None)


def a_run(records: Sequence[SessionRecord], *strikes: Strike, num_blocks_held: int = 0) -> Run:
    answers = {each.session_id: [1, 2] for each in records if not each.error}
    return Run(tuple(records), answers, strikes, 7, num_blocks_held)


def test_a_fault_counts_for_a_ttft_between_seal_and_first_token_alone() -> None:
    record = a_record()  # sealed at 3 s, first token at 3.5 s
    assert [is_struck(record, [at_s]) for at_s in (2.9, 3.2, 3.6)] == [False, True, False]
    assert not is_struck(a_record(sealed_s=None), [3.2])


def test_an_outcome_tells_disturbed_sessions_from_others() -> None:
    late = a_record("late", token_times_s=(3.5, 13.5), restarts=2)
    run = a_run([a_record("calm"), late, a_failed_record("bad", "WORKER_LOST", restarts=3)])
    found = outcome(run, Check(2, ()))
    assert (found.num_sessions, found.num_answered, found.failed) == (3, 2, {"WORKER_LOST": 1})
    assert (found.num_restarted, found.num_restarts) == (2, 5)
    assert found.delays == (
        Delay("TTFT, no fault before it", 2, 0.5, 0.5, 0.5),
        Delay("longest wait, not restarted", 1, 0.5, 0.5, 0.5),
        Delay("longest wait, restarted", 1, 10.0, 10.0, 10.0),
    )
    struck = outcome(a_run([a_record()], a_strike(3.2)), Check(0, ()))
    assert struck.delays[0] == Delay("TTFT, a fault before it", 1, 0.5, 0.5, 0.5)


def test_restarted_answers_are_compared_first() -> None:
    records = [a_record("a"), a_failed_record("b", restarts=1), a_record("c", restarts=1)]
    assert to_compare(a_run(records), 10) == ["c", "a"]
    assert to_compare(a_run(records), 1) == ["c"]


def an_outcome(*records: SessionRecord, check: Check, num_blocks_held: int = 0) -> Outcome:
    run = a_run(records, a_strike(1.0), a_strike(2.0), num_blocks_held=num_blocks_held)
    return outcome(run, check)


def test_what_was_wanted_and_is_not_so_is_named() -> None:
    well = an_outcome(a_record(restarts=1), check=Check(1, ()))
    assert missed(well) == []
    ill = an_outcome(a_failed_record("q", "WORKER_LOST"), check=Check(1, ("x",)), num_blocks_held=3)
    assert missed(ill) == [
        "1 sessions failed: WORKER_LOST",
        "other answers than without faults: x",
        "3 KV blocks are held after the last session",
        "no session was restarted, so the run shows nothing",
    ]
    text = tables(ill)
    assert "1 WORKER_LOST" in text
    assert "| decode | EngineCore | killed | 2 |" in text


CLUSTER_ID = f"faults{os.getpid()}"
SAMPLING = SamplingParameters(max_tokens=3, temperature=0.0)


@contextmanager
def an_engine(replica: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the title and the mark of one."""
    environment = {**os.environ, **mark_environment(owner_mark(CLUSTER_ID, replica, 1))}
    command = ["bash", "-c", 'echo up; exec -a "VLLM::EngineCore" sleep 600']
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            yield process
        finally:
            kill_owned(f"{CLUSTER_ID}/{replica}/")


async def until_titled(num_parts: int) -> None:
    """The title is there a moment after the process."""

    async def parts() -> int:
        return len(living_parts(CLUSTER_ID))

    await eventually(parts, lambda now: now == num_parts)


async def test_a_killed_process_is_gone_and_a_stopped_one_goes_on() -> None:
    told = list[Strike]()

    def is_stopped(strike: Strike) -> None:
        told.append(strike)
        if strike.stopped_s is not None:  # the signal may still be on its way
            while psutil.Process(stopped.pid).status() != psutil.STATUS_STOPPED:
                time.sleep(0.001)

    with an_engine("decode-0") as killed, an_engine("prefill-0") as stopped:
        await until_titled(2)
        engines = [part for part in living_parts(CLUSTER_ID) if part.kind is Kind.ENGINE_CORE]
        pids = {part.replica: part.process.pid for part in engines}
        assert pids == {"prefill-0": stopped.pid, "decode-0": killed.pid}
        striker = Striker(CLUSTER_ID, lambda: 0.0, is_stopped)
        await striker.run([Fault(0.0, 0.99, 0.1), Fault(0.0, 0.0, None)])
        assert await asyncio.to_thread(killed.wait, 30) == -9
        assert psutil.Process(stopped.pid).status() != psutil.STATUS_STOPPED
    assert [strike.replica for strike in told] == ["prefill-0", "decode-0"]
    assert told == striker.strikes


async def test_what_is_stopped_goes_on_when_the_run_is_interrupted() -> None:
    with an_engine("prefill-0") as process:
        await until_titled(1)
        struck = asyncio.Event()
        striker = Striker(CLUSTER_ID, lambda: 0.0, lambda _: struck.set())
        run = asyncio.create_task(striker.run([Fault(0.0, 0.0, 3600.0)]))
        await struck.wait()
        run.cancel()
        await asyncio.wait([run])
        assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED


class ClusterWithoutEngines:
    """What a run needs of a cluster."""

    def __init__(self, router: FakeRouter) -> None:
        self.cluster_id = CLUSTER_ID
        self.router_addresses = (router.address,)

    def wait_ready(self, timeout_s: float) -> None:
        """It always is."""

    def status(self) -> dict[str, Any]:
        return {"replicas": [{"restarts": 2}, {"restarts": 1}], "controller_restarts": 1}


async def test_a_run_has_its_sessions_and_strikes_and_compares_answers() -> None:
    asked = sessions(1, duration_s=2.0, rate=1.0, longest=4000)[:2]
    async with FakeRouter() as router:
        cluster = cast("Cluster", ClusterWithoutEngines(router))
        with an_engine("decode-0") as process:
            await until_titled(1)
            run = await play(cluster, asked, [Fault(0.0, 0.0, None)], Asking(SAMPLING, 60.0))
            assert await asyncio.to_thread(process.wait, 30) == -9
        assert [record.error for record in run.records] == ["", ""]
        assert [strike.replica for strike in run.strikes] == ["decode-0"]
        assert run.num_replaced == 4
        assert await compare(cluster, asked, run, SAMPLING, 2) == Check(2, ())
        other = Run(run.records, {each.session_id: [9] for each in asked}, (), 0, 0)
        differing = (await compare(cluster, asked, other, SAMPLING, 1)).differing
    assert len(differing) == 1
