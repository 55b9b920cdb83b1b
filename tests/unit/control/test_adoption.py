"""What a controller goes on with after the death of its predecessor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stream2llm.cluster import supervision as sv
from stream2llm.cluster.adoption import (
    LOST_MEANWHILE,
    VIEWS_A_CONTROLLER,
    ActorName,
    SavedState,
    newest,
    restored,
    restored_view,
)
from stream2llm.serving.settings.launch import GatewayStarted, RouterStarted
from stream2llm.serving.settings.worker_spec import WorkerAddress

ROLES: dict[str, sv.Role] = {
    "router-0": "router",
    "prefill-0": "prefill",
    "prefill-1": "prefill",
    "decode-0": "decode",
}
LIVING = dict.fromkeys(ROLES, 1)


def an_address(name: str) -> WorkerAddress | RouterStarted:
    role = ROLES[name]
    if role == "router":
        return RouterStarted(name, role, "r:1", "r:2", ())
    return WorkerAddress(name, role, f"{name}:1", f"{name}:2", (), 1024, 10, 32)


def a_running_cluster() -> SavedState:
    """As it is when nothing is wrong."""
    fleet = sv.new_fleet(ROLES)
    for name in ROLES:
        fleet = sv.started(sv.begun(fleet, sv.Create(name)), name)
    for prefill in ("prefill-0", "prefill-1"):
        fleet = sv.connected(sv.begun(fleet, sv.Connect("decode-0", prefill)), "decode-0", prefill)
    assert sv.is_ready(fleet)
    return SavedState(fleet, {name: an_address(name) for name in ROLES}, num_controllers=1)


def changed(saved: SavedState, name: str, **fields: object) -> SavedState:
    return replace(saved, fleet={**saved.fleet, name: replace(saved.fleet[name], **fields)})  # type: ignore[arg-type]


def test_names_say_whose_an_actor_is_and_which() -> None:
    name = ActorName("c1", "prefill-0", 12)
    assert ActorName.parse(str(name)) == name
    foreign = ["controller", "a/b", "a/b/c", "a/b/1/2", "", "//1"]
    assert [ActorName.parse(each) for each in foreign] == [None] * len(foreign)
    names = ["c1/prefill-0/9", "c1/prefill-0/10", "c2/prefill-0/11", "controller", "c1/router-0/1"]
    found = {replica: each.incarnation for replica, each in newest(names, "c1").items()}
    assert found == {"prefill-0": 10, "router-0": 1}


def test_what_is_alive_goes_on_as_it_was() -> None:
    saved = a_running_cluster()
    fleet = restored(ROLES, saved, LIVING)
    assert fleet == saved.fleet
    assert sv.plan(fleet, 0.0) == ()  # nothing is created, killed or connected
    view = restored_view(fleet, saved, 2)
    assert [w.worker_id for w in view.workers] == ["prefill-0", "prefill-1", "decode-0"]
    assert view.version == VIEWS_A_CONTROLLER


def test_a_gateway_goes_on_with_the_routers_that_it_has() -> None:
    saved, roles = a_running_cluster(), {**ROLES, "gateway-0": "gateway"}
    fleet = sv.started(sv.begun(sv.new_fleet(roles), sv.Create("gateway-0")), "gateway-0")
    saved = replace(saved, fleet={**saved.fleet, "gateway-0": fleet["gateway-0"]})
    started = GatewayStarted("gateway-0", "gateway", "g:1", "g:1", ())
    saved = replace(saved, addresses={**saved.addresses, "gateway-0": started})
    living = {**LIVING, "gateway-0": 1}
    assert restored(roles, saved, living) == saved.fleet
    assert restored_view(saved.fleet, saved, 2).routers == ("r:1",)


@pytest.mark.parametrize("name", ["router-0", "prefill-0", "decode-0"])
def test_what_died_meanwhile_is_replaced_and_counts_go_on(name: str) -> None:
    saved = changed(a_running_cluster(), name, incarnation=4)
    living = {**LIVING, name: 4}
    assert restored(ROLES, saved, living) == saved.fleet
    del living[name]
    fleet = restored(ROLES, saved, living)
    assert (fleet[name].phase, fleet[name].reason) == (sv.Phase.DEAD, LOST_MEANWHILE)
    assert (fleet[name].incarnation, fleet[name].start_failures) == (4, 0)
    assert all(name not in each.connected for each in fleet.values())
    assert sv.Clean(name) in sv.plan(fleet, 0.0)
    assert not fleet[name].connected
    others = {n: r.phase for n, r in fleet.items() if n != name}
    assert set(others.values()) == {sv.Phase.ADMITTED}


@pytest.mark.parametrize("phase", [sv.Phase.STARTING, sv.Phase.WAITING])
def test_a_start_under_way_goes_on(phase: sv.Phase) -> None:
    saved = changed(a_running_cluster(), "prefill-1", phase=phase, missing_room="a GPU")
    fleet = restored(ROLES, saved, LIVING)
    assert (fleet["prefill-1"].phase, fleet["prefill-1"].incarnation) == (sv.Phase.STARTING, 1)
    assert sv.plan(fleet, 0.0) == ()
    gone = restored(ROLES, saved, {n: 1 for n in ROLES if n != "prefill-1"})
    assert (gone["prefill-1"].phase, gone["prefill-1"].start_failures) == (sv.Phase.DEAD, 0)


def test_what_was_created_after_the_last_saving_is_found_by_its_name() -> None:
    saved = changed(a_running_cluster(), "decode-0", phase=sv.Phase.CLEANING)
    fleet = restored(ROLES, saved, {**LIVING, "decode-0": 2})
    assert (fleet["decode-0"].phase, fleet["decode-0"].incarnation) == (sv.Phase.STARTING, 2)
    assert fleet["decode-0"].connected == frozenset()
    nothing_saved = restored(ROLES, SavedState({}), {**LIVING, "decode-0": 7})
    assert {n: r.incarnation for n, r in nothing_saved.items()} == {**LIVING, "decode-0": 7}
    assert {r.phase for r in nothing_saved.values()} == {sv.Phase.STARTING}


def test_what_was_to_be_killed_is_killed() -> None:
    for phase in (sv.Phase.DEAD, sv.Phase.CLEANING):
        fleet = restored(ROLES, changed(a_running_cluster(), "decode-0", phase=phase), LIVING)
        assert sv.plan(fleet, 0.0) == (sv.Clean("decode-0"),)


def test_a_given_up_worker_stays_given_up_for_its_pause() -> None:
    saved = changed(
        replace(a_running_cluster(), loop_s=1000.0, wall_s=50_000.0), "decode-0",
        phase=sv.Phase.GIVEN_UP, not_before_s=1060.0, num_given_up=3, start_failures=3,
    )  # fmt: skip
    # 20 s later, on a machine that has been up for less time.
    later = saved.at(loop_s=100.0, wall_s=50_020.0)
    fleet = restored(ROLES, later, {n: 1 for n in ROLES if n != "decode-0"})
    assert (fleet["decode-0"].phase, fleet["decode-0"].num_given_up) == (sv.Phase.GIVEN_UP, 3)
    assert fleet["decode-0"].not_before_s == pytest.approx(140.0)
    assert sv.plan(fleet, 139.0) == ()
    assert sv.plan(fleet, 141.0) == (sv.Create("decode-0"),)
    assert sv.begun(fleet, sv.Create("decode-0"))["decode-0"].incarnation == 2


def test_an_operator_s_removal_lasts() -> None:
    saved = changed(a_running_cluster(), "prefill-1", phase=sv.Phase.STOPPED, stays_away=True)
    living = {n: 1 for n in ROLES if n != "prefill-1"}
    assert restored(ROLES, saved, living)["prefill-1"].phase is sv.Phase.STOPPED


def test_a_drain_goes_on_with_the_time_that_is_left() -> None:
    saved = replace(a_running_cluster(), loop_s=1000.0, wall_s=50_000.0)
    draining = changed(saved, "prefill-1", phase=sv.Phase.DRAINING, drain_by_s=1030.0)
    later = draining.at(loop_s=100.0, wall_s=50_020.0)
    fleet = restored(ROLES, later, LIVING)
    assert fleet["prefill-1"].phase is sv.Phase.DRAINING
    view = restored_view(fleet, later, 2)
    assert [w.worker_id for w in view.workers] == ["prefill-0", "decode-0"]
    (drains,) = view.draining
    assert (drains.worker_id, drains.left_s) == ("prefill-1", pytest.approx(10.0))


def test_a_replica_whose_address_was_not_saved_is_asked_for_it() -> None:
    saved = a_running_cluster()
    saved = replace(saved, addresses={n: a for n, a in saved.addresses.items() if n != "router-0"})
    assert restored(ROLES, saved, LIVING)["router-0"].phase is sv.Phase.STARTING
