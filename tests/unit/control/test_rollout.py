"""Rolling restarts: the order of their steps, with a supervisor over actors in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster import rollout as ro
from stream2llm.cluster import supervision as sv
from stream2llm.cluster.adoption import SavedState, restored
from stream2llm.cluster.rolling_restart import RollingRestart
from stream2llm.cluster.supervisor import Settings, Supervisor
from stream2llm.serving.settings.launch import StartOutcome
from tests.unit.control.test_supervisor import FakeHosts, running, until_ready

PAIRS: dict[str, sv.Role] = {
    "router-0": "router",
    "router-1": "router",
    "prefill-0": "prefill",
    "prefill-1": "prefill",
    "decode-0": "decode",
    "decode-1": "decode",
}
ONE_EACH: dict[str, sv.Role] = {"router-0": "router", "prefill-0": "prefill", "decode-0": "decode"}
IN_ORDER = ["prefill-0", "prefill-1", "decode-0", "decode-1", "router-0", "router-1"]


class Hosts(FakeHosts):
    """Sessions end at once; `missing` is what nodes lack for a stand-in."""

    missing = ""

    async def missing_room(self, name: str) -> str:
        return self.missing

    async def drain(self, name: str, timeout_s: float) -> None:
        self.log.append(f"drain {name} {timeout_s:g}")


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


@asynccontextmanager
async def rolling(
    hosts: Hosts, roles: dict[str, sv.Role] = PAIRS
) -> AsyncIterator[tuple[Supervisor, RollingRestart]]:
    async with running(hosts, settings=Settings(1, 0.01, 10.0), roles=roles) as supervisor:
        await until_ready(supervisor)
        restart = RollingRestart(supervisor, hosts)
        task = asyncio.create_task(restart.run())
        try:
            yield supervisor, restart
        finally:
            task.cancel()
            await asyncio.wait([task])


async def changed(supervisor: Supervisor) -> None:
    """Returns soon after something has changed, also what is no event of the supervisor's."""
    event = asyncio.ensure_future(supervisor.wait_change(supervisor.num_events))
    await asyncio.wait({event}, timeout=0.05)
    event.cancel()


async def until_over(supervisor: Supervisor, restart: RollingRestart) -> ro.Rollout:
    async with asyncio.timeout(10):
        while restart.rollout is None or restart.rollout.state is ro.State.RUNNING:
            await changed(supervisor)
    return restart.rollout


async def until_waiting(supervisor: Supervisor, name: str) -> None:
    """Until there is no room for its successor."""
    async with asyncio.timeout(10):
        while supervisor.fleet[name].phase is not sv.Phase.WAITING:
            await supervisor.wait_change(supervisor.num_events)


def drained(hosts: Hosts) -> list[str]:
    return [each.split()[1] for each in hosts.log if each.startswith("drain")]


async def test_all_are_replaced_one_after_the_other_workers_first(hosts: Hosts) -> None:
    async with rolling(hosts) as (supervisor, restart):
        hosts.log.clear()
        assert restart.begin([], 7.0, 60.0) == IN_ORDER
        over = await until_over(supervisor, restart)
        assert (over.state, drained(hosts)) == (ro.State.DONE, IN_ORDER)
        assert all(r.incarnation == 2 for r in supervisor.fleet.values())
        assert supervisor.is_ready
    # Never were two away, and routers knew the successor before the next one went.
    views = [each for each in hosts.log if each.startswith("view")]
    assert min(len(view.split()) - 1 for view in views) == 3


async def test_a_chosen_few_are_replaced(hosts: Hosts) -> None:
    async with rolling(hosts) as (supervisor, restart):
        assert restart.begin(["router-1", "decode-0"], None, 60.0) == ["decode-0", "router-1"]
        await until_over(supervisor, restart)
        assert {n for n, r in supervisor.fleet.items() if r.incarnation == 2} == {
            "decode-0",
            "router-1",
        }


async def test_the_only_worker_of_a_role_has_a_stand_in_meanwhile(hosts: Hosts) -> None:
    async with rolling(hosts, ONE_EACH) as (supervisor, restart):
        hosts.log.clear()
        restart.begin([], 7.0, 60.0)
        assert (await until_over(supervisor, restart)).state is ro.State.DONE
        assert drained(hosts) == [
            *("prefill-0", "prefill-0-stand-in"),
            *("decode-0", "decode-0-stand-in"),
            "router-0",
        ]
        assert supervisor.fleet.keys() == ONE_EACH.keys()
    views = [set(each.split()[1:]) for each in hosts.log if each.startswith("view")]
    for role in ("prefill", "decode"):  # no router was without one
        assert all(any(name.startswith(role) for name in view) for view in views)


async def test_without_room_for_a_stand_in_sessions_wait(hosts: Hosts) -> None:
    hosts.missing = "no node has 1 GPU"
    async with rolling(hosts, ONE_EACH) as (supervisor, restart):
        restart.begin([], 7.0, 60.0)
        await until_over(supervisor, restart)
        assert drained(hosts) == ["prefill-0", "decode-0", "router-0"]
        described = restart.describe()
        assert described["no_room"] == {
            "prefill-0": "no node has 1 GPU",
            "decode-0": "no node has 1 GPU",
        }


async def test_it_stops_at_a_successor_that_does_not_come_up(hosts: Hosts) -> None:
    async with rolling(hosts) as (supervisor, restart):
        hosts.outcomes["prefill-1"] = [StartOutcome(None, "no such model")]
        restart.begin([], 7.0, 60.0)
        over = await until_over(supervisor, restart)
        assert over.state is ro.State.FAILED
        assert over.reason == "prefill-1 does not come up: no such model"
        described = restart.describe()
        assert described["replaced"] == ["prefill-0"]
        assert described["left"] == IN_ORDER[1:]


async def test_a_stand_in_stays_while_the_successor_does_not_come_up(hosts: Hosts) -> None:
    async with rolling(hosts, ONE_EACH) as (supervisor, restart):
        hosts.outcomes["prefill-0"] = [StartOutcome(None, "no such model")]
        restart.begin([], 7.0, 60.0)
        over = await until_over(supervisor, restart)
        assert over.reason == "prefill-0 does not come up: no such model"
        assert supervisor.fleet["prefill-0-stand-in"].phase is sv.Phase.ADMITTED
        assert supervisor.retry("prefill-0") == ["prefill-0"]
        async with asyncio.timeout(10):
            while "prefill-0-stand-in" in supervisor.fleet:
                await changed(supervisor)
        assert supervisor.fleet["prefill-0"].phase is sv.Phase.ADMITTED


async def test_a_successor_that_takes_too_long_is_named(hosts: Hosts) -> None:
    async with rolling(hosts) as (supervisor, restart):
        hosts.full["decode-0"] = asyncio.Event()
        restart.begin(["decode-0"], 7.0, 0.3)
        over = await until_over(supervisor, restart)
        assert over.state is ro.State.FAILED
        assert over.reason == (
            "decode-0 was not replaced within 0.3 s: decode-0 is waiting for room:"
            " no node has 1 GPU"
        )


async def test_an_operator_stops_it_and_begins_another_one(hosts: Hosts) -> None:
    async with rolling(hosts) as (supervisor, restart):
        hosts.full["prefill-0"] = asyncio.Event()
        restart.begin([], 7.0, 60.0)
        with pytest.raises(InvalidRequestError, match="under way, it is prefill-0's turn"):
            restart.begin([], 7.0, 60.0)
        await until_waiting(supervisor, "prefill-0")
        assert restart.stop() == IN_ORDER
        assert restart.stop() == []
        seen = supervisor.num_events
        hosts.full["prefill-0"].set()
        await until_ready(supervisor, seen)
        assert restart.begin(["prefill-1"], 7.0, 60.0) == ["prefill-1"]
        await until_over(supervisor, restart)
        with pytest.raises(InvalidRequestError, match="no router or worker"):
            restart.begin(["prefill-9"], 7.0, 60.0)


async def test_another_controller_goes_on_with_it(hosts: Hosts) -> None:
    """In the middle of the turn of a worker that has a stand-in."""
    async with rolling(hosts, ONE_EACH) as (supervisor, restart):
        hosts.full["prefill-0"] = asyncio.Event()
        restart.begin([], 7.0, 60.0)
        await until_waiting(supervisor, "prefill-0")
        saved = SavedState(
            dict(supervisor.fleet), dict(supervisor.addresses), rollout=restart.rollout
        ).at(0.0, 0.0)
        view = supervisor.view
    living = {name: r.incarnation for name, r in saved.fleet.items()}
    fleet = restored(ONE_EACH, saved, living)
    assert fleet["prefill-0-stand-in"].phase is sv.Phase.ADMITTED
    successor = Supervisor(ONE_EACH, hosts, Settings(1, 0.01, 10.0))
    successor.restore(fleet, saved.addresses, replace(view, version=view.version + 1000))
    now_s = asyncio.get_running_loop().time()
    restart = RollingRestart(successor, hosts, rollout=replace(saved.rollout, turn_began_s=now_s))
    del hosts.full["prefill-0"]
    tasks = [asyncio.create_task(each.run()) for each in (successor, restart)]
    try:
        assert (await until_over(successor, restart)).state is ro.State.DONE
        assert successor.fleet.keys() == ONE_EACH.keys()
        assert drained(hosts).count("prefill-0") == 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def test_what_an_operator_has_removed_is_left_alone() -> None:
    fleet = sv.new_fleet(PAIRS)
    fleet = {**fleet, "decode-1": replace(fleet["decode-1"], phase=sv.Phase.STOPPED)}
    rollout = ro.begun(fleet, [], None, 60.0, 0.0)
    assert list(rollout.before) == [name for name in IN_ORDER if name != "decode-1"]


def test_the_time_of_a_turn_begins_with_it() -> None:
    fleet = {
        name: replace(replica, phase=sv.Phase.ADMITTED, incarnation=1)
        for name, replica in sv.new_fleet(PAIRS).items()
    }
    rollout = ro.begun(fleet, [], None, 60.0, 100.0)
    assert ro.due_s(rollout) == 160.0
    assert ro.turned(rollout, fleet, 150.0) is rollout
    fleet["prefill-0"] = replace(fleet["prefill-0"], incarnation=2)
    turned = ro.turned(rollout, fleet, 150.0)
    assert (turned.turn, ro.due_s(turned)) == ("prefill-1", 210.0)
