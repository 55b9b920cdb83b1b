"""Virtual times of tenants, by hand."""

from __future__ import annotations

import pytest

from prefill_worker.policy import POLICIES
from prefill_worker.rank_index import RankIndex
from prefill_worker.session_table import SessionTable
from prefill_worker.starvation_guard import GUARDED_TURN
from stream2llm.api.tenant import TenantShare
from stream2llm.serving.sessions.tenant_ledger import TOKEN, TenantLedger
from tests.builders import BY_RANK, a_ledger, a_request, limits

ACME, ZETA = TenantShare("acme"), TenantShare("zeta", weight=4.0)


def test_a_token_costs_less_with_more_weight() -> None:
    ledger = TenantLedger()
    ledger.resume(ACME)
    ledger.resume(ZETA)
    assert ledger.charge(ACME, 10) == 10 * TOKEN
    assert ledger.charge(ZETA, 10) == 10 * TOKEN // 4


def test_who_comes_or_comes_back_starts_at_the_present() -> None:
    ledger = TenantLedger()
    ledger.resume(ACME)
    ledger.charge(ACME, 500)
    ledger.advance(0, 300 * TOKEN)
    assert ledger.resume(ZETA) == 300 * TOKEN
    ledger.depart("zeta")
    ledger.advance(0, 400 * TOKEN)
    assert ledger.resume(ZETA) == 400 * TOKEN


def test_who_leaves_in_debt_comes_back_in_debt() -> None:
    ledger = TenantLedger()
    ledger.resume(ACME)
    ledger.charge(ACME, 500)
    ledger.depart("acme")
    assert ledger.resume(ACME) == 500 * TOKEN


def test_each_priority_has_a_present_of_its_own() -> None:
    ledger = TenantLedger()
    ledger.advance(1, 300)
    assert ledger.resume(TenantShare("low", priority=0)) == 0
    assert ledger.resume(TenantShare("high", priority=1)) == 300


def test_tenants_that_come_and_go_leave_nothing_behind() -> None:
    ledger = TenantLedger(max_departed=3)
    for number in range(100):
        ledger.resume(TenantShare(str(number)))
        ledger.depart(str(number))
    assert len(ledger) == 3


def a_table(policy: str = "fcfs") -> SessionTable:
    return SessionTable(POLICIES[policy], starvation_guard_steps=10**9, num_lost_blocks=0)


def grants_of_a_step(table: SessionTable, num_tokens: int) -> dict[str, int]:
    table.begin_step()
    plan = table.plan(limits(tokens=num_tokens), a_ledger(), BY_RANK)
    table.end_step(plan, 1000)
    return dict(plan.grants)


def test_a_step_alternates_between_tenants() -> None:
    """Three sessions of one came first; the other one's is served after the first of them."""
    table = a_table()
    for name, tenant in (("a1", ACME), ("a2", ACME), ("a3", ACME), ("z1", TenantShare("zeta"))):
        table.open(name, revision=1, sealed=True, tenant=tenant)
        table.update(name, 100, 0, 0)
    assert list(grants_of_a_step(table, 400)) == ["a1", "z1", "a2", "a3"]


def test_who_replaces_its_list_pays_for_what_it_threw_away() -> None:
    """Each step has 100 tokens; both want 100 all the time, one of them the same again and again."""
    table = a_table()
    for name in ("changes", "grows"):
        table.open(name, revision=1, sealed=False, tenant=TenantShare(name))
        table.update(name, 101, 0, 0)
    served = {"changes": 0, "grows": 0}
    useful = dict(served)
    for _ in range(10):
        ((name, num_tokens),) = grants_of_a_step(table, 100).items()
        served[name] += num_tokens
        if name == "changes":  # a new list: nothing of it is of use any more
            table.update(name, 101, 100, 0)
            table.note_event(name, 0)
            table.update(name, 101, 0, 0)
        else:
            useful[name] += num_tokens
            table.update(name, useful[name] + 101, useful[name], 0)
    assert served == {"changes": 500, "grows": 500}
    assert useful == {"changes": 0, "grows": 500}


def test_who_comes_during_a_step_is_served_in_the_next() -> None:
    table = a_table()
    for number in range(20):
        table.open(f"a{number}", revision=1, sealed=True, tenant=ACME)
        table.update(f"a{number}", 1000, 0, 0)
    for _ in range(5):
        (name,) = grants_of_a_step(table, 1000)
        table.close(name)
    table.open("late", revision=1, sealed=True, tenant=TenantShare("zeta"))
    table.update("late", 10, 0, 0)
    assert next(iter(grants_of_a_step(table, 1000))) == "late"


def test_who_was_not_here_has_no_credit_for_what_others_were_served() -> None:
    """After five steps of one, two with a backlog take turns; the new one does not get five."""
    table = a_table()
    for number in range(20):
        table.open(f"acme-{number}", revision=1, sealed=True, tenant=ACME)
        table.update(f"acme-{number}", 1000, 0, 0)
    for _ in range(5):
        (name,) = grants_of_a_step(table, 1000)
        table.close(name)
    for number in range(20):
        table.open(f"zeta-{number}", revision=1, sealed=True, tenant=TenantShare("zeta"))
        table.update(f"zeta-{number}", 1000, 0, 0)
    served = []
    for _ in range(6):
        (name,) = grants_of_a_step(table, 1000)
        served.append(name.partition("-")[0])
        table.close(name)
    assert served.count("zeta") in (3, 4)


def a_ranking(**tenants: str) -> RankIndex:
    """Sealed sessions by arrival, each of 320 tokens with 5 blocks of 32, and its tenant."""
    ranking = RankIndex(POLICIES["fcfs"])
    for arrival, (name, tenant) in enumerate(tenants.items(), 1):
        ranking.enter(name, TenantShare(tenant))
        ranking.put(
            a_request(name, sealed=True, arrival=arrival, known=320, computed=160, num_blocks=5)
        )
    return ranking


def test_a_tenant_within_its_share_of_the_memory_is_not_evicted_for_others() -> None:
    ranking = a_ranking(first="acme", second="acme", third="acme", last="zeta")
    views = {view.request_id: view for view in ranking.to_serve()}
    # zeta has a quarter of the blocks, a half is its share.
    assert not ranking.may_evict(views["first"], views["last"])
    assert ranking.may_evict(views["first"], views["second"])
    # What the policy serves first is evicted for no one.
    assert not ranking.may_evict(views["last"], views["first"])


def test_a_tenant_without_memory_counts_with_its_weight() -> None:
    ranking = a_ranking(first="acme", second="acme")
    ranking.enter("new", TenantShare("zeta"))
    new = a_request("new", sealed=True, arrival=0, known=320)
    ranking.put(new)
    assert ranking.may_evict(new, ranking["second"])


@pytest.mark.parametrize("turn", range(GUARDED_TURN))
def test_sessions_of_two_tenants_that_do_not_fit_together_are_served_in_turn(turn: int) -> None:
    """Each holds its share and needs more; one is guarded, takes all, and ends."""
    table = a_table()
    held = {"a": tuple(range(5)), "z": tuple(range(10, 15))}
    for name, tenant in (("a", ACME), ("z", TenantShare("zeta"))):
        table.open(name, revision=1, sealed=True, tenant=tenant)
        table.update(name, 320, 160, 5)
    for _ in range(turn + 1):
        table.begin_step()
    plan = table.plan(limits(free_blocks=0), a_ledger(**held), BY_RANK)
    assert dict(plan.grants) == {"a": 160}
    assert [(each.request_id, each.num_blocks_kept) for each in plan.evictions] == [("z", 0)]
    assert table.view("a").guard_number == 1
