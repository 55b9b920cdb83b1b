"""The controller's decisions: pure functions over frozen fleets."""

from __future__ import annotations

import pytest

from stream2llm.cluster import supervision as sv
from stream2llm.cluster.supervision import Clean, Connect, Create, Fleet, Phase, events
from stream2llm.serving.actor.loss import Cause, Loss

KILLED = Loss(Cause.DIED, "killed")
PAIR: dict[str, sv.Role] = {"prefill-0": "prefill", "decode-0": "decode"}
PAIRS: dict[str, sv.Role] = {**PAIR, "prefill-1": "prefill", "decode-1": "decode"}


def begun_all(fleet: Fleet) -> Fleet:
    for action in sv.plan(fleet, now_s=0.0):
        fleet = sv.begun(fleet, action)
    return fleet


def a_ready_fleet(roles: dict[str, sv.Role]) -> Fleet:
    fleet = begun_all(sv.new_fleet(roles))
    for name in roles:
        fleet = sv.started(fleet, name)
    while connects := [a for a in sv.plan(fleet, 0.0) if isinstance(a, Connect)]:
        fleet = sv.connected(sv.begun(fleet, connects[0]), connects[0].decode, connects[0].prefill)
    assert sv.is_ready(fleet)
    return fleet


def test_everything_that_is_missing_is_created_at_once() -> None:
    fleet = sv.new_fleet({"router-0": "router", **PAIR})
    assert sv.plan(fleet, 0.0) == (Create("router-0"), Create("prefill-0"), Create("decode-0"))


def test_what_is_under_way_is_not_begun_again() -> None:
    assert sv.plan(begun_all(sv.new_fleet(PAIR)), 0.0) == ()


def test_a_decode_worker_is_not_in_the_view_before_it_has_shaken_hands() -> None:
    fleet = begun_all(sv.new_fleet(PAIR))
    fleet = sv.started(sv.started(fleet, "prefill-0"), "decode-0")
    assert sv.view_members(fleet) == ("prefill-0",)
    assert sv.plan(fleet, 0.0) == (Connect("decode-0", "prefill-0"),)
    fleet = sv.connected(fleet, "decode-0", "prefill-0")
    assert sv.view_members(fleet) == ("prefill-0", "decode-0")


def test_a_mixed_worker_shakes_hands_with_no_other_one() -> None:
    fleet = sv.started(begun_all(sv.new_fleet({"mixed-0": "mixed"})), "mixed-0")
    assert sv.is_ready(fleet)
    fleet = sv.died(a_ready_fleet({**PAIR, "mixed-0": "mixed"}), "decode-0", KILLED)
    assert sv.view_members(fleet) == ("prefill-0", "mixed-0")


def test_a_new_prefill_worker_waits_for_every_ready_decode_worker() -> None:
    fleet = sv.died(a_ready_fleet(PAIRS), "prefill-0", KILLED)
    fleet = begun_all(sv.cleaned(begun_all(fleet), "prefill-0", 0.0, 3))
    fleet = sv.started(fleet, "prefill-0")
    assert sv.plan(fleet, 0.0) == (
        Connect("decode-0", "prefill-0"),
        Connect("decode-1", "prefill-0"),
    )
    fleet = sv.connected(fleet, "decode-0", "prefill-0")
    assert "prefill-0" not in sv.view_members(fleet)
    assert sv.is_ready(sv.connected(fleet, "decode-1", "prefill-0"))


def test_a_dead_worker_leaves_the_view_and_is_cleaned_and_created_without_delay() -> None:
    fleet = sv.died(a_ready_fleet(PAIR), "decode-0", KILLED)
    assert sv.view_members(fleet) == ("prefill-0",)
    assert sv.plan(fleet, 0.0) == (Clean("decode-0"),)
    fleet = sv.cleaned(begun_all(fleet), "decode-0", now_s=7.0, max_start_failures=3)
    assert sv.plan(fleet, 7.0) == (Create("decode-0"),)


def test_peers_forget_a_dead_worker() -> None:
    fleet = sv.died(a_ready_fleet(PAIR), "prefill-0", KILLED)
    assert fleet["decode-0"].connected == frozenset()
    assert sv.view_members(fleet) == ("decode-0",)


def test_failed_starts_wait_longer_each_time_and_end() -> None:
    fleet = sv.new_fleet({"router-0": "router"})
    waits = []
    for _ in range(3):
        fleet = sv.failed(begun_all_at(fleet), "router-0", "no")
        fleet = sv.cleaned(begun_all_at(fleet), "router-0", now_s=100.0, max_start_failures=3)
        waits.append(fleet["router-0"].not_before_s - 100.0)
    assert waits[:2] == [1.0, 2.0]
    assert [r.reason for r in sv.given_up(fleet)] == ["no"]


def begun_all_at(fleet: Fleet, now_s: float = 1e6) -> Fleet:
    for action in sv.plan(fleet, now_s):
        fleet = sv.begun(fleet, action)
    return fleet


def test_a_permanent_failure_of_the_first_start_is_final() -> None:
    fleet = begun_all(sv.new_fleet(PAIR))
    fleet = sv.failed(fleet, "prefill-0", "no such model", permanent=True)
    fleet = sv.cleaned(begun_all(fleet), "prefill-0", 0.0, max_start_failures=3)
    assert fleet["prefill-0"].phase is Phase.GIVEN_UP


def test_what_once_ran_is_tried_again_after_a_permanent_failure() -> None:
    fleet = begun_all(sv.died(a_ready_fleet(PAIR), "prefill-0", KILLED))
    fleet = begun_all(sv.cleaned(fleet, "prefill-0", 0.0, 3))
    fleet = begun_all(sv.failed(fleet, "prefill-0", "no memory", permanent=True))
    assert sv.cleaned(fleet, "prefill-0", 0.0, 3)["prefill-0"].phase is Phase.MISSING


def test_what_starts_after_a_permanent_failure_is_no_longer_one_that_cannot() -> None:
    fleet = begun_all(sv.new_fleet(PAIR))
    fleet = sv.failed(fleet, "prefill-0", "no such module", permanent=True)
    fleet = sv.cleaned(begun_all(fleet), "prefill-0", 0.0, max_start_failures=3)
    fleet = sv.begun(fleet, Create("prefill-0"))
    fleet = begun_all(sv.died(sv.started(fleet, "prefill-0"), "prefill-0", KILLED))
    assert sv.cleaned(fleet, "prefill-0", 0.0, 3)["prefill-0"].phase is Phase.MISSING


def test_what_was_given_up_is_tried_again_after_pauses_that_grow_to_a_limit() -> None:
    fleet, now_s, pauses = sv.new_fleet({"router-0": "router"}), 0.0, []
    while len(pauses) < 7:
        fleet = sv.failed(begun_all_at(fleet, now_s), "router-0", "no")
        fleet = sv.cleaned(begun_all_at(fleet, now_s), "router-0", now_s, max_start_failures=1)
        assert sv.given_up(fleet)
        due_s = sv.next_due_s(fleet)
        assert sv.plan(fleet, due_s - 0.001) == ()
        assert sv.plan(fleet, due_s) == (Create("router-0"),)
        pauses.append(due_s - now_s)
        now_s = due_s
    assert pauses == [60.0, 120.0, 240.0, 480.0, 900.0, 900.0, 900.0]


def test_what_comes_up_after_all_begins_with_the_shortest_pause_again() -> None:
    fleet = a_fleet_that_gave_up("router-0")
    assert fleet["router-0"].num_given_up == 1
    fleet = sv.started(begun_all_at(fleet), "router-0")
    assert sv.is_ready(fleet)
    assert (fleet["router-0"].num_given_up, fleet["router-0"].start_failures) == (0, 0)


def a_fleet_that_gave_up(name: str) -> Fleet:
    fleet = sv.failed(begun_all(sv.new_fleet({name: "router"})), name, "no", permanent=True)
    return sv.cleaned(begun_all(fleet), name, 0.0, max_start_failures=3)


def test_an_operator_has_it_tried_at_once_with_all_its_starts() -> None:
    fleet = sv.retried(a_fleet_that_gave_up("router-0"), "router-0")
    assert sv.plan(fleet, 0.0) == (Create("router-0"),)
    fleet = sv.failed(begun_all(fleet), "router-0", "no")
    fleet = sv.cleaned(begun_all(fleet), "router-0", 0.0, max_start_failures=3)
    assert (fleet["router-0"].phase, fleet["router-0"].not_before_s) == (Phase.MISSING, 1.0)
    assert sv.plan(sv.retried(fleet, "router-0"), 0.0) == (Create("router-0"),)


def test_what_runs_or_is_under_way_is_not_tried_again() -> None:
    for fleet in (a_ready_fleet(PAIR), begun_all(sv.new_fleet(PAIR))):
        assert sv.retried(fleet, "decode-0") is fleet


# -- who is to blame ---------------------------------------------------------------

FAULT = "its side channel gave no answer"


@pytest.mark.parametrize(
    ("evidence", "blamed"),
    [
        (sv.Evidence(decode_fault=FAULT), "decode-0"),
        (sv.Evidence(prefill_fault=FAULT), "prefill-0"),
        # A fault that it says itself outweighs what others see.
        (sv.Evidence(prefill_fault=FAULT, prefill_connects=True), "prefill-0"),
        (sv.Evidence(decode_connects=True, prefill_connects=False), "prefill-0"),
        (sv.Evidence(decode_connects=True), "prefill-0"),
        (sv.Evidence(prefill_connects=False), "prefill-0"),
        (sv.Evidence(decode_connects=False, prefill_connects=True), "decode-0"),
        (sv.Evidence(prefill_connects=True), "decode-0"),
        (sv.Evidence(decode_connects=False), "decode-0"),
    ],
)
@pytest.mark.parametrize("newcomer", ["decode-0", "prefill-0"])
def test_evidence_says_who_is_to_blame_however_new_it_is(
    evidence: sv.Evidence, blamed: str, newcomer: str
) -> None:
    fleet = a_fleet_with_a_newcomer(newcomer)
    assert sv.blamed_for_failed_connection(fleet, "decode-0", "prefill-0", evidence)[0] == blamed


@pytest.mark.parametrize(
    "evidence",
    [
        sv.Evidence(),
        sv.Evidence(FAULT, FAULT),
        sv.Evidence(decode_connects=True, prefill_connects=True),
        sv.Evidence(decode_connects=False, prefill_connects=False),
    ],
)
@pytest.mark.parametrize("newcomer", ["decode-0", "prefill-0"])
def test_without_evidence_the_newcomer_is_replaced_and_then_its_partner(
    evidence: sv.Evidence, newcomer: str
) -> None:
    fleet, replaced = a_fleet_with_a_newcomer(newcomer), []
    for _ in range(2):
        fleet, blamed = sv.connection_failed(fleet, "decode-0", "prefill-0", evidence, "timeout")
        assert "decode-0 cannot connect to prefill-0: timeout" in fleet[blamed].reason
        replaced.append(blamed)
        fleet = created_anew(fleet, blamed)
    partner = "prefill-0" if newcomer == "decode-0" else "decode-0"
    assert replaced == [newcomer, partner]
    fleet = sv.connected(begun_all(fleet), "decode-0", "prefill-0")
    assert sv.is_ready(fleet)
    assert not any(replica.replaced_for for replica in fleet.values())


def a_fleet_with_a_newcomer(name: str) -> Fleet:
    """decode-0 and prefill-0 try to connect; one of them was ready before the other came."""
    return begun_all(created_anew(sv.died(a_ready_fleet(PAIR), name, KILLED), name))


def created_anew(fleet: Fleet, name: str) -> Fleet:
    fleet = sv.cleaned(begun_all_at(fleet), name, 0.0, max_start_failures=9)
    return sv.started(begun_all_at(fleet), name)


def test_being_ready_forgives_earlier_failures() -> None:
    fleet = begun_all(sv.new_fleet({"router-0": "router"}))
    fleet = begun_all(sv.failed(fleet, "router-0", "no"))
    fleet = begun_all_at(sv.cleaned(fleet, "router-0", 0.0, 3))
    fleet = sv.started(fleet, "router-0")
    assert (fleet["router-0"].start_failures, fleet["router-0"].incarnation) == (0, 2)


def test_planning_changes_nothing() -> None:
    fleet = sv.new_fleet(PAIRS)
    before = dict(fleet)
    sv.plan(fleet, 0.0)
    assert fleet == before


def test_what_could_not_be_cleaned_is_cleaned_again_later_and_not_created_before() -> None:
    fleet = begun_all(sv.died(a_ready_fleet(PAIR), "decode-0", KILLED))
    fleet = sv.not_cleaned(fleet, "decode-0", now_s=7.0, reason="a process does not end")
    assert fleet["decode-0"].reason == "a process does not end"
    assert sv.plan(fleet, 7.0) == ()
    due_s = sv.next_due_s(fleet)
    assert due_s == 7.0 + events.CLEAN_AGAIN_AFTER_S
    assert sv.plan(fleet, due_s) == (Clean("decode-0"),)


# -- room --------------------------------------------------------------------------


def test_waiting_for_room_is_no_failed_start_and_shows_what_is_missing() -> None:
    fleet = sv.waits_for_room(begun_all(sv.new_fleet(PAIR)), "prefill-0", "no GPU")
    assert (fleet["prefill-0"].phase, fleet["prefill-0"].missing_room) == (Phase.WAITING, "no GPU")
    assert sv.plan(fleet, 1e9) == ()
    assert sv.next_due_s(fleet) is None
    assert sv.waits_for_room(fleet, "prefill-0", "no GPU") is fleet
    fleet = sv.waits_for_room(fleet, "prefill-0", "")
    assert fleet["prefill-0"] == begun_all(sv.new_fleet(PAIR))["prefill-0"]
    fleet = sv.started(sv.waits_for_room(fleet, "prefill-0", "no GPU"), "prefill-0")
    assert (fleet["prefill-0"].missing_room, fleet["prefill-0"].start_failures) == ("", 0)


def test_a_worker_that_was_waiting_and_failed_says_why_it_failed() -> None:
    fleet = sv.waits_for_room(begun_all(sv.new_fleet(PAIR)), "prefill-0", "no GPU")
    fleet = sv.failed(fleet, "prefill-0", "its process has died")
    assert (fleet["prefill-0"].missing_room, fleet["prefill-0"].start_failures) == ("", 1)


def test_a_late_word_of_room_changes_nothing() -> None:
    fleet = a_ready_fleet(PAIR)
    assert sv.waits_for_room(fleet, "prefill-0", "no GPU") is fleet
