"""The supervisor against actors in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from stream2llm.api.errors import UnavailableError
from stream2llm.cluster import supervision as sv
from stream2llm.cluster.supervision import events as fleet_events
from stream2llm.cluster.supervisor import Settings, Supervisor
from stream2llm.serving.actor.loss import Cause, Loss
from stream2llm.serving.actor.replica_status import ReplicaStatus, RouterStatus
from stream2llm.serving.settings.launch import GatewayStarted, RouterStarted, StartOutcome
from stream2llm.serving.settings.worker_spec import ClusterView, WorkerAddress, WorkerStatus
from tests.polling import eventually

KILLED = Loss(Cause.DIED, "killed")
ROLES: dict[str, sv.Role] = {"router-0": "router", "prefill-0": "prefill", "decode-0": "decode"}


class FakeHosts:
    """Actors that die on demand."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[StartOutcome]] = {}
        self.deaths: dict[str, asyncio.Future[Loss]] = {}
        self.views: list[ClusterView] = []
        self.views_of: dict[str, list[ClusterView]] = {}
        self.cleaned: list[str] = []
        self.connections: list[tuple[str, str]] = []
        self.refusals = 0
        self.hung: set[str] = set()
        self.num_silent_connections = 0
        self.num_cleanings_that_fail = 0
        # Workers that cannot be connected with until they are recreated, and what they report.
        self.sick: dict[str, str] = {}
        # The policy that a worker follows, and what the chosen one raised.
        self.policies: dict[str, tuple[str, str]] = {}
        # Workers that no node has room for, until the event is set.
        self.full: dict[str, asyncio.Event] = {}
        self.created: list[str] = []
        # What happens to them in their order, as far as tests look at it.
        self.log: list[str] = []
        # Sessions of a draining replica end when the event is set.
        self.idle: dict[str, asyncio.Event] = {}
        self.draining: set[str] = set()
        # Those on a node that ends.
        self.left: set[str] = set()

    async def create(
        self, name: str, incarnation: int, waits: Callable[[str], None]
    ) -> StartOutcome:
        self.created.append(name)
        self.deaths[name] = asyncio.get_running_loop().create_future()
        if name in self.full:
            waits("no node has 1 GPU")
            await self.full[name].wait()
            waits("")
        if planned := self.outcomes.get(name):
            return planned.pop(0)
        return an_outcome(name, incarnation)

    async def wait_dead(self, name: str) -> Loss:
        return await asyncio.shield(self.deaths[name])  # a successor of its caller waits, too

    async def connect(self, decode: str, prefill: WorkerAddress) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("no handshake")
        if self.sick.keys() & {decode, prefill.worker_id}:
            raise ConnectionError("no handshake")
        if self.num_silent_connections:
            self.num_silent_connections -= 1
            await asyncio.Event().wait()
        self.connections.append((decode, prefill.worker_id))

    async def examine(self, name: str) -> str:
        return self.sick.get(name, "")

    async def status(self, name: str) -> ReplicaStatus:
        if name in self.hung:
            await asyncio.Event().wait()
        if name.startswith("router"):
            return RouterStatus(name, {}, is_draining=name in self.draining)
        policy, failure = self.policies.get(name, ("", ""))
        return WorkerStatus(
            num_sessions=0,
            num_kv_blocks=10,
            num_kv_blocks_held=0,
            block_size=32,
            pids=(),
            policy=policy,
            policy_failure=failure,
            is_draining=name in self.draining,
        )

    async def push_view(self, name: str, view: ClusterView) -> None:
        self.views.append(view)
        self.views_of.setdefault(name, []).append(view)
        self.log.append(f"view {' '.join(w.worker_id for w in view.workers)}")

    async def drain(self, name: str, timeout_s: float) -> None:
        self.log.append(f"drain {name} {timeout_s:g}")
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.idle.setdefault(name, asyncio.Event()).wait()

    async def leaving(self) -> set[str]:
        return self.left

    async def its_log(self) -> list[str]:
        return self.log

    async def stop(self, name: str) -> None:
        self.log.append(f"stop {name}")

    async def clean(self, name: str) -> None:
        if self.num_cleanings_that_fail:
            self.num_cleanings_that_fail -= 1
            raise TimeoutError("these processes do not end")
        self.cleaned.append(name)
        self.log.append(f"clean {name}")
        self.sick.pop(name, None)
        self.draining.discard(name)
        self.left.discard(name)


def an_outcome(name: str, incarnation: int = 1) -> StartOutcome:
    role = name.split("-")[0]
    if role == "router":
        return StartOutcome(RouterStarted(name, role, f"r:{incarnation}", "r:2", ()))
    if role == "gateway":
        return StartOutcome(GatewayStarted(name, role, "g:1", "g:1", ()))
    port = f"w:{incarnation}"
    return StartOutcome(WorkerAddress(name, role, port, port, (), 1024, 10, 32))


@pytest.fixture
def hosts() -> FakeHosts:
    return FakeHosts()


@asynccontextmanager
async def running(
    hosts: FakeHosts,
    unresponsive_s: float = 10.0,
    settings: Settings | None = None,
    roles: dict[str, sv.Role] = ROLES,
) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(roles, hosts, settings or Settings(2, 0.01, unresponsive_s))
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until_ready(supervisor: Supervisor, past_event: int = 0) -> None:
    async with asyncio.timeout(10):
        while supervisor.num_events <= past_event or not supervisor.is_ready:
            await supervisor.wait_change(supervisor.num_events)


@asynccontextmanager
async def ready(hosts: FakeHosts, **options: Any) -> AsyncIterator[Supervisor]:
    async with running(hosts, **options) as supervisor:
        await until_ready(supervisor)
        yield supervisor


async def test_everything_comes_up_connected_and_the_router_knows(hosts: FakeHosts) -> None:
    async with ready(hosts) as supervisor:
        assert hosts.connections == [("decode-0", "prefill-0")]
        assert [w.worker_id for w in supervisor.view.workers] == ["prefill-0", "decode-0"]
    assert hosts.views[-1] == supervisor.view


async def test_a_gateway_gets_the_routers_that_can_be_used() -> None:
    hosts, roles = FakeHosts(), {**ROLES, "gateway-0": "gateway"}
    async with ready(hosts, roles=roles) as supervisor:
        assert supervisor.view.routers == ("r:1",)
        assert hosts.views_of["gateway-0"][-1] == hosts.views_of["router-0"][-1] == supervisor.view
        seen = supervisor.num_events
        hosts.deaths["router-0"].set_result(KILLED)
        await until_ready(supervisor, seen)
        of_gateway = [view.routers for view in hosts.views_of["gateway-0"]]
        assert of_gateway[-2:] == [(), ("r:2",)]
        hosts.deaths["gateway-0"].set_result(KILLED)
        await until_ready(supervisor, supervisor.num_events)
        assert hosts.cleaned == ["router-0", "gateway-0"]
        assert hosts.views_of["gateway-0"][-1] == supervisor.view


async def test_without_a_gateway_a_view_has_no_routers(hosts: FakeHosts) -> None:
    async with ready(hosts) as supervisor:
        assert supervisor.view.routers == ()


@pytest.mark.parametrize("name", ["prefill-0", "decode-0"])
async def test_a_death_is_published_at_once_and_the_worker_replaced(name: str) -> None:
    hosts = FakeHosts()
    async with ready(hosts) as supervisor:
        seen, version = supervisor.num_events, supervisor.view.version
        hosts.deaths[name].set_result(KILLED)
        await until_ready(supervisor, seen)
        without = next(v for v in hosts.views if v.version == version + 1)
        assert name not in [w.worker_id for w in without.workers]
        assert hosts.cleaned == [name]
        assert hosts.connections == [("decode-0", "prefill-0")] * 2
        assert supervisor.addresses[name].grpc_address == "w:2"
        assert f"{name} died: killed" in supervisor.events_since(seen)


async def test_a_policy_that_failed_is_an_event_once() -> None:
    hosts, events = FakeHosts(), list[str]()
    async with ready(hosts) as supervisor:
        seen = supervisor.num_events
        for error in ("KeyError: 1", "KeyError: 2"):
            hosts.policies["prefill-0"] = ("srpf", f"mine:late raised {error}")
            await supervisor.wait_change(seen + len(events))
            events = supervisor.events_since(seen)
    assert events == [f"prefill-0 follows srpf now: mine:late raised KeyError: {n}" for n in (1, 2)]


async def test_a_failed_connection_replaces_the_newcomer(hosts: FakeHosts) -> None:
    hosts.refusals = 1
    async with ready(hosts) as supervisor:
        assert len(hosts.cleaned) == 1
        assert "cannot connect" in " ".join(supervisor.events_since(0))


async def test_a_connection_without_an_answer_replaces_the_newcomer(hosts: FakeHosts) -> None:
    hosts.num_silent_connections = 1
    settings = Settings(2, 0.01, 10.0, connect_timeout_s=0.05)
    async with ready(hosts, settings=settings) as supervisor:
        assert len(hosts.cleaned) == 1
        assert "no answer came for 0.05 s" in " ".join(supervisor.events_since(0))


async def test_an_old_worker_that_says_what_is_wrong_is_replaced_and_the_newcomer_stays() -> None:
    hosts = FakeHosts()
    async with ready(hosts) as supervisor:
        seen = supervisor.num_events
        hosts.sick["prefill-0"] = "its side channel gave no answer"
        hosts.deaths["decode-0"].set_result(KILLED)
        await until_ready(supervisor, seen)
        told = " ".join(supervisor.events_since(seen))
    assert hosts.cleaned == ["decode-0", "prefill-0"]
    assert "prefill-0 is replaced: its side channel gave no answer" in told


async def test_an_old_worker_that_others_cannot_connect_with_is_replaced(hosts: FakeHosts) -> None:
    """It says that it is well; the newcomer connects with another one, so it is not the newcomer."""
    two: dict[str, sv.Role] = {**ROLES, "prefill-1": "prefill"}
    async with ready(hosts, roles=two) as supervisor:
        seen = supervisor.num_events
        hosts.sick["prefill-0"] = ""
        hosts.deaths["decode-0"].set_result(KILLED)
        await until_ready(supervisor, seen)
        told = " ".join(supervisor.events_since(seen))
    assert hosts.cleaned == ["decode-0", "prefill-0"]
    assert "prefill-0 is replaced: decode-0 connects with another worker" in told


async def test_an_old_worker_of_which_nothing_is_known_is_replaced_after_the_newcomer() -> None:
    hosts = FakeHosts()
    async with ready(hosts) as supervisor:
        seen = supervisor.num_events
        hosts.sick["prefill-0"] = ""
        hosts.deaths["decode-0"].set_result(KILLED)
        await until_ready(supervisor, seen)
    assert hosts.cleaned == ["decode-0", "decode-0", "prefill-0"]


async def test_what_is_given_up_is_tried_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_events, "FIRST_RETRY_AFTER_S", 0.01)
    hosts = FakeHosts()
    hosts.outcomes["decode-0"] = [StartOutcome(None, "no memory")] * 4
    async with ready(hosts) as supervisor:
        told = supervisor.events_since(0)
    assert sum("is given up: no memory" in line for line in told) == 3


async def test_what_is_given_up_is_tried_at_once_when_somebody_asks(hosts: FakeHosts) -> None:
    hosts.outcomes["decode-0"] = [StartOutcome(None, "no memory", permanent=True)]
    async with running(hosts) as supervisor:
        async with asyncio.timeout(10):
            while not sv.given_up(supervisor.fleet):
                await supervisor.wait_change(supervisor.num_events)
        assert supervisor.retry("prefill-0") == []
        assert supervisor.retry(None) == ["decode-0"]
        await until_ready(supervisor)
    with pytest.raises(KeyError):
        supervisor.retry("decode-7")


async def test_a_worker_that_cannot_be_cleaned_is_cleaned_again_and_then_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_events, "CLEAN_AGAIN_AFTER_S", 0.01)
    hosts = FakeHosts()
    async with ready(hosts) as supervisor:
        seen, hosts.num_cleanings_that_fail = supervisor.num_events, 2
        hosts.deaths["prefill-0"].set_result(KILLED)
        await until_ready(supervisor, seen)
        told = supervisor.events_since(seen)
    assert hosts.cleaned == ["prefill-0"]
    assert sum("what is left of it does not end" in line for line in told) == 2


async def test_a_hopeless_start_is_given_up_with_its_reason(hosts: FakeHosts) -> None:
    hosts.outcomes["decode-0"] = [StartOutcome(None, "ValueError: bad dtype", permanent=True)]
    async with running(hosts) as supervisor:
        async with asyncio.timeout(10):
            while not sv.given_up(supervisor.fleet):
                await supervisor.wait_change(supervisor.num_events)
    (lost,) = sv.given_up(supervisor.fleet)
    assert (lost.name, lost.reason) == ("decode-0", "ValueError: bad dtype")


async def test_a_worker_that_gives_no_answer_is_replaced(hosts: FakeHosts) -> None:
    async with ready(hosts, unresponsive_s=0.05) as supervisor:
        seen = supervisor.num_events
        hosts.hung.add("prefill-0")
        while "prefill-0" not in hosts.cleaned:
            await supervisor.wait_change(supervisor.num_events)
        hosts.hung.clear()
        await until_ready(supervisor, seen)


async def test_a_change_is_noticed_only_after_the_events_already_seen() -> None:
    async with ready(FakeHosts()) as supervisor:
        assert supervisor.events_since(supervisor.num_events) == []
        assert len(supervisor.events_since(0)) == supervisor.num_events


async def test_a_worker_that_waits_for_room_says_so_and_starts_when_there_is_some() -> None:
    hosts = FakeHosts()
    hosts.full["decode-0"] = asyncio.Event()
    async with running(hosts) as supervisor:
        await until(supervisor, lambda: supervisor.fleet["decode-0"].phase is sv.Phase.WAITING)
        assert "decode-0 waits: no node has 1 GPU" in supervisor.events_since(0)
        assert not supervisor.is_ready
        hosts.full["decode-0"].set()
        await until_ready(supervisor)
        assert (supervisor.fleet["decode-0"].incarnation, hosts.cleaned) == (1, [])


async def until(supervisor: Supervisor, is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await supervisor.wait_change(supervisor.num_events)


@pytest.mark.parametrize("name", ["prefill-0", "decode-0", "router-0"])
async def test_a_drained_replica_is_replaced_once_its_sessions_have_ended(name: str) -> None:
    hosts = FakeHosts()
    async with ready(hosts) as supervisor:
        hosts.log.clear()
        assert supervisor.drain(name, 60.0)
        assert not supervisor.drain(name, 60.0)
        await eventually(hosts.its_log, lambda log: f"drain {name} 60" in log)
        if name != "router-0":  # routers know it before the worker refuses sessions
            others = " ".join({"prefill-0", "decode-0"} - {name})
            assert hosts.log == [f"view {others}", f"drain {name} 60"]
            (drains,) = hosts.views[-1].draining
            assert drains.worker_id == name
            assert 0 < drains.left_s <= 60.0
        assert supervisor.fleet[name].phase is sv.Phase.DRAINING
        seen = supervisor.num_events
        hosts.idle[name].set()
        await until_ready(supervisor, seen)
        assert [f"stop {name}", f"clean {name}"] == [
            each for each in hosts.log if each.startswith(("stop", "clean"))
        ]
        replica = supervisor.fleet[name]
        assert (replica.incarnation, replica.start_failures) == (2, 0)


async def test_a_drain_without_an_end_takes_its_time_and_no_longer(hosts: FakeHosts) -> None:
    async with ready(hosts) as supervisor:
        seen = supervisor.num_events
        supervisor.drain("decode-0", 0.01)
        await until_ready(supervisor, seen)
        assert supervisor.fleet["decode-0"].incarnation == 2


async def test_a_removed_replica_stays_away_until_it_is_asked_for(hosts: FakeHosts) -> None:
    async with ready(hosts) as supervisor:
        supervisor.drain("prefill-0", 0.0, stays_away=True)
        await until(supervisor, lambda: supervisor.fleet["prefill-0"].phase is sv.Phase.STOPPED)
        assert supervisor.is_ready  # as the operator wants it
        assert [w.worker_id for w in supervisor.view.workers] == ["decode-0"]
        assert supervisor.retry(None) == ["prefill-0"]
        await until(supervisor, lambda: len(supervisor.view.workers) == 2)
        assert supervisor.fleet["prefill-0"].incarnation == 2


@pytest.mark.parametrize("what", ["draining", "left"])
@pytest.mark.parametrize("name", ["decode-0", "router-0"])
async def test_what_is_on_a_pod_or_node_that_ends_is_taken_out_of_use(what: str, name: str) -> None:
    hosts = FakeHosts()
    hosts.idle[name] = asyncio.Event()
    hosts.idle[name].set()
    async with running(
        hosts, settings=Settings(2, 0.01, 10.0, nodes_interval_s=0.01)
    ) as supervisor:
        await until_ready(supervisor)
        seen = supervisor.num_events
        getattr(hosts, what).add(name)
        await until_ready(supervisor, seen)
        assert supervisor.fleet[name].incarnation == 2
        assert not [e for e in supervisor.events_since(seen) if "died" in e]


async def test_a_successor_goes_on_with_the_living_and_creates_none(hosts: FakeHosts) -> None:
    async with ready(hosts) as first:
        fleet, addresses, view = first.fleet, dict(first.addresses), first.view
    hosts.created.clear()
    hosts.views.clear()
    successor = Supervisor(ROLES, hosts, Settings(2, 0.01, 10.0))
    successor.restore(fleet, addresses, replace(view, version=view.version + 1000))
    task = asyncio.create_task(successor.run())
    try:
        await until_ready(successor)
        assert (hosts.created, hosts.cleaned) == ([], [])
        assert [v.workers for v in hosts.views] == [view.workers]
        assert len(hosts.connections) == 1  # the first one's
        seen = successor.num_events
        hosts.deaths["prefill-0"].set_result(KILLED)  # it is watched
        await until_ready(successor, seen)
        assert hosts.created == ["prefill-0"]
        assert successor.fleet["prefill-0"].incarnation == 2
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_watcher_of_an_earlier_controller_gets_all_events(hosts: FakeHosts) -> None:
    async with ready(hosts) as supervisor:
        async with asyncio.timeout(10):
            await supervisor.wait_change(supervisor.num_events + 100)
        assert supervisor.events_since(supervisor.num_events + 100) == supervisor.events_since(0)


async def test_nothing_drains_while_supervision_does_not_run(hosts: FakeHosts) -> None:
    supervisor = Supervisor(ROLES, hosts, Settings(2, 0.01, 10.0))
    with pytest.raises(UnavailableError, match="try again"):
        supervisor.drain("decode-0")
    async with ready(hosts) as supervisor:
        pass
    before = supervisor.fleet
    with pytest.raises(UnavailableError):
        supervisor.drain("decode-0")
    assert supervisor.fleet == before
