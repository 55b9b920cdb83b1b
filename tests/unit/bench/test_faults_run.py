"""Faults on real processes that carry a cluster's mark, beside sessions on a router without engines."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import psutil

from experiments.faults.load import sessions
from experiments.faults.parts import Kind, living_parts
from experiments.faults.plan import Fault, Strike
from experiments.faults.report import Check, Run
from experiments.faults.run import compare, play
from experiments.faults.strike import Striker
from stream2llm.client import SamplingParameters
from stream2llm.cluster.cluster import Cluster
from stream2llm.serving.system.processes import kill_owned, mark_environment, owner_mark
from stream2llm.workload.replay.session import Asking
from tests.fake_router import FakeRouter
from tests.polling import eventually

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
