"""Phase 1, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest

from cost_profiles.decision import Reason
from prefill_worker.planner import MAX_LOADED_BLOCKS, plan_step
from prefill_worker.types import (
    BlockLedger,
    Eviction,
    EvictionReason,
    Grant,
    Load,
    RequestView,
    StepLimits,
    StepPlan,
    StopReason,
    SwapChoice,
)
from prefill_worker.victims import WINDOW
from tests.builders import (
    BY_RANK,
    LinearCosts,
    a_ledger,
    a_preemption,
    a_ranking,
    a_request,
    limits,
)

IDLE, LOWER_RANK = EvictionReason.IDLE, EvictionReason.LOWER_RANK


def plan_of(
    *views: RequestView,
    limits: StepLimits = limits(),  # noqa: B008 - a frozen value
    ledger: BlockLedger = a_ledger(),  # noqa: B008
    policy: str = "fcfs",
    guarded_first: bool = False,
) -> StepPlan:
    ranking = a_ranking(*views, policy=policy, guarded_first=guarded_first)
    return plan_step(ranking, limits, ledger, BY_RANK)


@pytest.mark.parametrize(
    ("session", "num_granted"),
    [
        pytest.param({"known": 10}, 9, id="an-open-one-keeps-its-last-token-back"),
        pytest.param({"known": 10, "computed": 9, "sealed": True}, 1, id="a-sealed-one-does-not"),
        pytest.param({"known": 10, "computed": 9}, 0, id="without-work"),
        pytest.param({"known": 0}, 0, id="empty"),
    ],
)
def test_what_one_session_is_granted(session: dict[str, Any], num_granted: int) -> None:
    grants = (Grant("a", num_granted),) if num_granted else ()
    assert plan_of(a_request(**session)) == StepPlan(grants)


def test_sealed_sessions_are_served_before_open_ones() -> None:
    early = a_request("early", arrival=1, known=400)
    sealed = a_request("sealed", arrival=2, known=400, sealed=True)
    plan = plan_of(early, sealed, limits=limits(tokens=500))
    assert plan.grants == (Grant("sealed", 400), Grant("early", 100))


def test_srpf_leaves_open_sessions_out_of_a_step_that_computes_for_sealed_ones() -> None:
    """A client waits for the end of that step, but none for open sessions."""
    early = a_request("early", arrival=1, known=400)
    sealed = a_request("sealed", arrival=2, known=400, sealed=True)
    plan = plan_of(early, sealed, limits=limits(tokens=500), policy="srpf")
    assert plan == StepPlan((Grant("sealed", 400),), (), StopReason.SEALED_APART, "early")
    assert plan_of(early, policy="srpf").grants == (Grant("early", 399),)


def test_srpf_keeps_steps_short_in_which_nobody_waits() -> None:
    """A session that is sealed meanwhile waits for the end."""
    views = [a_request("a", known=400), a_request("b", arrival=2, known=400)]
    short = limits(tokens=500, open_tokens=300)
    assert plan_of(*views, limits=short, policy="srpf").grants == (Grant("a", 300),)
    assert plan_of(*views, limits=short, policy="fcfs").grants == (Grant("a", 399), Grant("b", 101))
    sealed = a_request("sealed", arrival=3, known=400, sealed=True)
    assert plan_of(*views, sealed, limits=short, policy="srpf").grants == (Grant("sealed", 400),)
    long = limits(tokens=500, open_tokens=900)
    assert sum(g.num_tokens for g in plan_of(*views, limits=long, policy="srpf").grants) == 500


def test_under_srpf_a_guarded_open_session_shares_its_turn_with_sealed_ones() -> None:
    guarded = a_request("guarded", arrival=1, known=100, guard_number=1)
    sealed = a_request("sealed", arrival=2, known=100, sealed=True)
    other = a_request("other", arrival=3, known=100)
    ranking = a_ranking(guarded, sealed, other, policy="srpf", guarded_first=True)
    plan = plan_step(ranking, limits(tokens=500), a_ledger(), BY_RANK)
    assert [grant.request_id for grant in plan.grants] == ["guarded", "sealed"]


@pytest.mark.parametrize(
    ("known", "step", "granted", "stop"),
    [
        (400, limits(tokens=300), 300, StopReason.TOKEN_BUDGET),
        (4, limits(requests=1), 3, StopReason.REQUEST_SLOTS),
    ],
)
def test_the_step_never_exceeds_its_tokens_and_slots(
    known: int, step: StepLimits, granted: int, stop: StopReason
) -> None:
    views = [a_request("a", known=known), a_request("b", arrival=2, known=known)]
    assert plan_of(*views, limits=step) == StepPlan((Grant("a", granted),), (), stop, "b")


def test_what_fits_is_computed_where_nobody_can_be_evicted() -> None:
    plan = plan_of(a_request(known=101), limits=limits(free_blocks=2))
    assert plan == StepPlan((Grant("a", 64),))


def test_idle_sessions_are_evicted_first() -> None:
    wants = a_request("wants", sealed=True, known=64)
    idle = a_request("idle", arrival=1, known=33, computed=32, num_blocks=1)
    busy = a_request("busy", arrival=2, known=200, computed=32, num_blocks=1)
    plan = plan_of(
        wants,
        idle,
        busy,
        limits=limits(free_blocks=1, tokens=64),
        ledger=a_ledger(idle=(1,), busy=(2,)),
    )
    assert plan.evictions == (Eviction("idle", 0, 1, IDLE, "wants"),)
    assert plan.grants == (Grant("wants", 64),)


def test_of_those_with_work_the_last_in_rank_is_evicted_first() -> None:
    wants = a_request("wants", sealed=True, known=64)
    second = a_request("second", arrival=2, known=200, computed=32, num_blocks=1)
    third = a_request("third", arrival=3, known=200, computed=32, num_blocks=1)
    ledger = a_ledger(second=(1,), third=(2,))
    plan = plan_of(wants, second, third, limits=limits(free_blocks=1, tokens=64), ledger=ledger)
    assert plan.evictions == (Eviction("third", 0, 1, LOWER_RANK, "wants"),)


def test_nobody_with_work_is_evicted_for_a_lower_rank() -> None:
    first = a_request("first", arrival=1, known=64, computed=32, num_blocks=1)
    second = a_request("second", arrival=2, known=65)
    plan = plan_of(second, first, limits=limits(free_blocks=1), ledger=a_ledger(first=(1,)))
    assert plan == StepPlan(
        (Grant("first", 31),), (), StopReason.KV_MEMORY, "second", short_of_memory=("second",)
    )


def test_an_idle_session_is_evicted_even_for_a_lower_rank() -> None:
    """mcps ranks the session that computed most first; idle and pinned it would block all others."""
    idle = a_request("idle", known=65, computed=64, num_blocks=2)
    wants = a_request("wants", arrival=2, known=33)
    plan = plan_of(
        idle, wants, limits=limits(free_blocks=0), ledger=a_ledger(idle=(1, 2)), policy="mcps"
    )
    assert plan == StepPlan((Grant("wants", 32),), (Eviction("idle", 1, 1, IDLE, "wants"),))


def test_restoring_lost_kv_evicts_nobody_and_comes_last() -> None:
    """Else two that do not fit together would evict each other for ever."""
    lost = a_request("lost", arrival=1, known=65, reached=64)
    idle = a_request("idle", arrival=2, known=65, computed=64, num_blocks=2)
    fresh = a_request("fresh", arrival=3, known=33)
    ledger = a_ledger(idle=(1, 2))
    assert plan_of(lost, idle, limits=limits(free_blocks=1), ledger=ledger) == StepPlan(
        (Grant("lost", 32),)
    )
    assert plan_of(lost, idle, limits=limits(free_blocks=0), ledger=ledger) == StepPlan(
        (), (), StopReason.NO_ROOM_TO_RESTORE, "lost"
    )
    plan = plan_of(lost, idle, fresh, limits=limits(free_blocks=1), ledger=ledger)
    assert plan.grants == (Grant("fresh", 32),)


def test_a_sealed_session_may_evict_to_restore() -> None:
    lost = a_request("lost", sealed=True, known=64, reached=64)
    idle = a_request("idle", arrival=2, known=65, computed=64, num_blocks=2)
    plan = plan_of(lost, idle, limits=limits(free_blocks=0), ledger=a_ledger(idle=(1, 2)))
    assert plan == StepPlan((Grant("lost", 64),), (Eviction("idle", 0, 2, IDLE, "lost"),))


def test_the_default_policy_evicts_the_newest_and_only_for_those_that_run() -> None:
    oldest = a_request("oldest", arrival=1, known=200, computed=32, num_blocks=1)
    newest = a_request("newest", arrival=3, known=200, computed=32, num_blocks=1)
    waits = a_request("waits", arrival=2, known=64, sealed=True)
    plan = plan_of(
        oldest,
        newest,
        waits,
        limits=limits(free_blocks=0, tokens=32),
        ledger=a_ledger(oldest=(1,), newest=(2,)),
        policy="default",
    )
    assert plan.evictions == (Eviction("newest", 0, 1, LOWER_RANK, "oldest"),)
    assert plan.grants == (Grant("oldest", 32),)


def test_a_guarded_session_goes_before_all_others() -> None:
    sealed = a_request("sealed", sealed=True, known=64)
    guarded = a_request("guarded", arrival=9, known=65, guard_number=1)
    plan = plan_of(sealed, guarded, limits=limits(tokens=80), guarded_first=True)
    assert plan.grants == (Grant("guarded", 64), Grant("sealed", 16))
    plan = plan_of(sealed, guarded, limits=limits(tokens=80))
    assert plan.grants == (Grant("sealed", 64), Grant("guarded", 16))


@pytest.mark.parametrize(
    ("wanted", "free_blocks", "shared", "kept", "freed"),
    [
        pytest.param(64, 1, (7,), 0, (0, 1), id="free-after-its-last-holder"),
        pytest.param(32, 0, (7, 8), 1, (0, 1), id="each-loses-the-tail"),
    ],
)
def test_shared_blocks(
    wanted: int, free_blocks: int, shared: tuple[int, ...], kept: int, freed: tuple[int, int]
) -> None:
    wants = a_request("wants", sealed=True, known=wanted)
    computed, num_blocks = 32 * len(shared), len(shared)
    one, two = (
        a_request(name, arrival=n, known=computed + 1, computed=computed, num_blocks=num_blocks)
        for n, name in enumerate(("one", "two"), start=2)
    )
    ledger = a_ledger(one=shared, two=shared)
    plan = plan_of(wants, one, two, limits=limits(free_blocks=free_blocks), ledger=ledger)
    assert plan.evictions == (
        Eviction("two", kept, freed[0], IDLE, "wants"),
        Eviction("one", kept, freed[1], IDLE, "wants"),
    )


def test_nobody_is_evicted_in_vain() -> None:
    """A victim whose blocks a lease holds too stays, and of the others what is not needed."""
    wants = a_request("wants", sealed=True, known=128)
    leased = a_request("leased", arrival=5, known=33, computed=32, num_blocks=1)
    small = a_request("small", arrival=4, known=33, computed=32, num_blocks=1)
    large = a_request("large", arrival=3, known=97, computed=96, num_blocks=3)
    ledger = a_ledger(leased=(9,), small=(1,), large=(2, 3, 4))
    ledger = BlockLedger(
        {**ledger.block_ids_by_request, "leased": (9,)}, {**ledger.ref_counts, 9: 2}
    )
    plan = plan_of(wants, leased, small, large, limits=limits(free_blocks=1), ledger=ledger)
    assert plan.evictions == (
        Eviction("small", 0, 1, IDLE, "wants"),
        Eviction("large", 1, 2, IDLE, "wants"),
    )


def test_a_victim_loses_its_tail_only_and_more_of_it_for_the_next() -> None:
    first = a_request("first", sealed=True, known=32)
    second = a_request("second", sealed=True, arrival=2, known=32)
    victim = a_request("victim", arrival=3, known=129, computed=128, num_blocks=4)
    ledger = a_ledger(victim=(2, 3, 4, 5))
    plan = plan_of(first, second, victim, limits=limits(free_blocks=0), ledger=ledger)
    assert plan.evictions == (Eviction("victim", 2, 2, IDLE, "first"),)
    assert plan.grants == (Grant("first", 32), Grant("second", 32))


def test_whole_requests_lose_everything_in_rank_order() -> None:
    """The naive way, for comparison."""
    wants = a_request("wants", sealed=True, known=96)
    small = a_request("small", arrival=4, known=33, computed=32, num_blocks=1)
    large = a_request("large", arrival=3, known=129, computed=128, num_blocks=4)
    ledger = a_ledger(small=(1,), large=(2, 3, 4, 5))
    whole = limits(free_blocks=0, whole_requests=True)
    plan = plan_of(wants, small, large, limits=whole, ledger=ledger)
    assert plan.evictions == (
        Eviction("small", 0, 1, IDLE, "wants"),
        Eviction("large", 0, 4, IDLE, "wants"),
    )


def test_blocks_of_its_own_are_taken_before_shared_ones() -> None:
    """However many sessions share theirs: none of them loses anything."""
    wants = a_request("wants", sealed=True, known=64)
    sharers = [
        a_request(f"sharer{n}", arrival=5 + n, known=65, computed=64, num_blocks=2)
        for n in range(3)
    ]
    old = a_request("old", arrival=2, known=97, computed=96, num_blocks=3)
    blocks = {view.request_id: (7, 8) for view in sharers}
    ledger = a_ledger(old=(1, 2, 3), **blocks)
    plan = plan_of(wants, old, *sharers, limits=limits(free_blocks=0), ledger=ledger)
    assert plan.evictions == (Eviction("old", 1, 2, IDLE, "wants"),)


def test_an_evicted_session_computes_nothing_in_the_same_step() -> None:
    wants = a_request("wants", sealed=True, known=64)
    victim = a_request("victim", known=100, computed=64, num_blocks=2)
    plan = plan_of(wants, victim, limits=limits(free_blocks=0), ledger=a_ledger(victim=(1, 2)))
    assert plan == StepPlan((Grant("wants", 64),), (Eviction("victim", 0, 2, LOWER_RANK, "wants"),))


def test_leased_blocks_can_stop_even_the_first_and_evict_nobody() -> None:
    wants = a_request("wants", sealed=True, known=64)
    plan = plan_of(wants, limits=limits(free_blocks=0), ledger=a_ledger(leased=(1, 2)))
    assert plan == StepPlan(
        stop=StopReason.KV_LEASED, stopped_at="wants", short_of_memory=("wants",)
    )


def test_room_in_the_last_block_needs_no_memory() -> None:
    wants = a_request("wants", sealed=True, known=64, computed=40, num_blocks=2)
    plan = plan_of(wants, limits=limits(free_blocks=0), ledger=a_ledger(wants=(1, 2)))
    assert plan == StepPlan((Grant("wants", 24),))


def test_equal_ranks_are_served_by_id() -> None:
    plan = plan_of(a_request("b", known=9), a_request("a", known=9))
    assert [grant.request_id for grant in plan.grants] == ["a", "b"]


def test_equal_documents_are_computed_once() -> None:
    """The second session takes the block from the prefix cache in the next step."""
    first = a_request("first", arrival=1, known=100)
    second = a_request("second", arrival=2, known=90)
    other = a_request("other", arrival=3, known=50)
    keys = {"first": ("x", "y", "z"), "second": ("x", "y"), "other": ("q",)}
    plan = plan_of(first, second, other, ledger=BlockLedger({}, {}, keys))
    assert plan == StepPlan((Grant("first", 99), Grant("other", 49)), deduplicated=("second",))


def test_a_block_that_stays_partial_is_nothing_to_wait_for() -> None:
    views = [a_request("first", known=20), a_request("second", arrival=2, known=20)]
    plan = plan_of(*views, ledger=BlockLedger({}, {}, {"first": (), "second": ()}))
    assert plan == StepPlan((Grant("first", 19), Grant("second", 19)))


@pytest.mark.parametrize(
    ("computed", "host_blocks", "free_blocks", "plan"),
    [
        pytest.param(64, (2, 5), 1000, StepPlan(loads=(Load("a", 2, 3),)), id="all"),
        pytest.param(40, (3, 5), 1000, StepPlan((Grant("a", 56),)), id="a-gap-is-computed-first"),
        pytest.param(64, (2, 5), 2, StepPlan(loads=(Load("a", 2, 2),)), id="as-there-is-room"),
    ],
)
def test_blocks_on_the_host_come_back_when_all_before_them_is_computed(
    computed: int, host_blocks: tuple[int, int], free_blocks: int, plan: StepPlan
) -> None:
    away = a_request(
        "a", sealed=True, known=200, computed=computed, num_blocks=2, host_blocks=host_blocks
    )
    assert plan_of(away, limits=limits(free_blocks=free_blocks)) == plan


def test_coming_back_takes_blocks_and_no_tokens() -> None:
    away = a_request("a", sealed=True, known=200, computed=64, num_blocks=2, host_blocks=(2, 5))
    other = a_request("b", arrival=2, sealed=True, known=64)
    plan = plan_of(away, other, limits=limits(tokens=64, requests=1, free_blocks=5))
    assert plan == StepPlan((Grant("b", 64),), loads=(Load("a", 2, 3),))
    plan = plan_of(away, other, limits=limits(tokens=64, free_blocks=4))
    assert plan.grants == (Grant("b", 32),)


def test_a_step_brings_back_a_bounded_number_of_blocks() -> None:
    size = 32 * 400
    away = [
        a_request(name, arrival=n, sealed=True, known=size + 1, host_blocks=(0, 400))
        for n, name in enumerate("abc")
    ]
    plan = plan_of(*away, limits=limits(free_blocks=5000))
    assert plan == StepPlan(
        loads=(Load("a", 0, 400), Load("b", 0, MAX_LOADED_BLOCKS - 400)),
        stop=StopReason.REQUEST_SLOTS,
        stopped_at="c",
    )


def test_memory_that_others_kv_comes_back_to_is_not_leased() -> None:
    coming = a_request("a", sealed=True, known=200, num_blocks=3, is_loading=True)
    waits = a_request("b", arrival=2, sealed=True, known=64)
    plan = plan_of(coming, waits, limits=limits(free_blocks=0), ledger=a_ledger(a=(1, 2, 3)))
    assert plan == StepPlan(stop=StopReason.KV_MEMORY, stopped_at="b", short_of_memory=("b",))


def test_others_are_evicted_for_what_comes_back_to_a_session_with_a_claim() -> None:
    idle = a_request("idle", arrival=2, known=65, computed=64, num_blocks=2)
    away = a_request("a", known=200, computed=0, host_blocks=(0, 2), reached=64)
    plan = plan_of(away, idle, limits=limits(free_blocks=0), ledger=a_ledger(idle=(1, 2)))
    assert plan == StepPlan(
        evictions=(Eviction("idle", 0, 2, IDLE, "a"),), loads=(Load("a", 0, 2),)
    )
    restores = away._replace(num_reached_tokens=200)
    plan = plan_of(restores, idle, limits=limits(free_blocks=0), ledger=a_ledger(idle=(1, 2)))
    assert plan == StepPlan(stop=StopReason.NO_ROOM_TO_RESTORE, stopped_at="a")


def test_while_kv_comes_back_a_session_is_left_alone() -> None:
    coming = a_request("a", sealed=True, known=200, computed=32, num_blocks=3, is_loading=True)
    other = a_request("b", arrival=2, sealed=True, known=64)
    plan = plan_of(coming, other, limits=limits(free_blocks=1), ledger=a_ledger(a=(1, 2, 3)))
    assert plan == StepPlan((Grant("b", 32),))


def swaps(**views: int) -> StepPlan:
    """Idle sessions of so many full blocks, a new one that wants three, and two slots."""
    idle = [
        a_request(name, arrival=n, known=32 * size + 1, computed=32 * size, num_blocks=size)
        for n, (name, size) in enumerate(views.items(), start=2)
    ]
    ids = iter(range(100))
    ledger = a_ledger(**{name: tuple(islice(ids, size)) for name, size in views.items()})
    new = a_request("new", sealed=True, known=96)
    costs = LinearCosts(token_s=1.0, block_s=1.0)
    return plan_step(
        a_ranking(new, *idle),
        limits(free_blocks=0, host_slots=2),
        ledger,
        a_preemption("cost", costs),
    )


def test_the_host_takes_as_much_as_it_has_room_for() -> None:
    assert swaps(a=5).evictions == (
        Eviction("a", 2, 3, IDLE, "new", SwapChoice(Reason.CHEAPER, 2, 4)),
    )
    assert swaps(a=1, b=2).evictions == (
        Eviction("b", 0, 2, IDLE, "new", SwapChoice(Reason.CHEAPER, 0, 2)),
        Eviction("a", 0, 1, IDLE, "new", SwapChoice(Reason.POOL_FULL)),
    )


class GrowingCosts(LinearCosts):
    """A token costs as much as it has tokens before it."""

    def recompute_s(self, from_token: int, to_token: int) -> float:
        return (to_token**2 - from_token**2) / 2


def victims(views: Sequence[RequestView], want: int, policy: str = "fcfs") -> list[str]:
    ids = iter(range(10_000))
    ledger = a_ledger(**{v.request_id: tuple(islice(ids, v.num_blocks)) for v in views})
    new = a_request("new", sealed=True, known=32 * want)
    preemption = a_preemption("recompute", GrowingCosts())
    ranking = a_ranking(new, *views, policy=policy)
    plan = plan_step(ranking, limits(free_blocks=0), ledger, preemption)
    return [eviction.request_id for eviction in plan.evictions]


def test_of_idle_sessions_those_go_first_whose_tails_are_cheap() -> None:
    long = a_request("long", arrival=3, known=321, computed=320, num_blocks=10)
    short = a_request("short", arrival=2, known=65, computed=64, num_blocks=2)
    assert victims([short, long], 3) == ["short", "long"]
    # Among sessions that have work the last in rank goes first, whatever it costs:
    # the others will need theirs before.
    working = [view._replace(num_known_tokens=400) for view in (short, long)]
    assert victims(working, 3) == ["long"]
    # The naive policy evicts the newest.
    assert victims([short, long], 3, policy="default") == ["long"]


def test_a_few_equals_are_compared_at_a_time() -> None:
    views = [
        a_request(f"s{n}", arrival=n, known=32 * n + 1, computed=32 * n, num_blocks=n)
        for n in range(1, 2 * WINDOW)
    ]
    # The ranking offers the last WINDOW ones, of which this is the shortest.
    assert victims(views, 1) == [f"s{WINDOW}"]
