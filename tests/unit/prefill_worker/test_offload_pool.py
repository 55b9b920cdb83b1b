"""Slots of the CPU KV offload pool and whose blocks they hold."""

from __future__ import annotations

from prefill_worker.offload_pool import OffloadPool


def test_runs_begin_behind_gaps() -> None:
    pool = OffloadPool(10)
    assert pool.put("a", 3, 2) == (0, 1)
    assert pool.put("a", 7, 1) == (2,)
    assert pool.next_run("a") == (3, 5)
    pool.drop_before("a", 5)
    assert pool.next_run("a") == (7, 8)
    assert pool.num_free == 9
    pool.check_integrity([])


def test_an_eviction_further_up_joins_what_is_there() -> None:
    pool = OffloadPool(10)
    pool.put("a", 4, 2)
    pool.put("a", 2, 2)
    assert pool.next_run("a") == (2, 6)


def test_who_takes_slots_gives_them_back() -> None:
    pool = OffloadPool(4)
    pool.put("a", 0, 4)
    slots = pool.take("a", 0, 3)
    assert pool.next_run("a") == (3, 4)
    assert pool.num_free == 0
    pool.check_integrity(slots)
    pool.release(slots)
    assert pool.num_free == 3


def test_what_is_behind_the_common_prefix_is_dropped() -> None:
    pool = OffloadPool(8)
    pool.put("a", 2, 6)
    assert pool.drop_from("a", 5) == 3
    assert pool.next_run("a") == (2, 5)
    assert pool.drop_from("a", 0) == 3
    assert not pool.has_copies("a")
    assert pool.next_run("a") == (0, 0)


def test_a_copy_that_failed_is_lost_unless_it_was_replaced() -> None:
    pool = OffloadPool(4)
    first = pool.put("a", 0, 2)
    pool.drop_from("a", 1)
    assert pool.put("a", 1, 1) == (first[1],)
    pool.put("a", 2, 1)
    assert pool.lose("a", [(0, first[0]), (2, 3)]) == 1
    assert pool.next_run("a") == (1, 3)
    pool.check_integrity([])


def test_a_session_that_ends_leaves_nothing() -> None:
    pool = OffloadPool(4)
    pool.put("a", 0, 3)
    pool.put("b", 0, 1)
    pool.forget("a")
    pool.forget("a")
    assert pool.num_used == 1
    assert pool.sessions() == {"b"}


def test_a_pool_without_slots_holds_nothing() -> None:
    pool = OffloadPool(0)
    assert pool.put("a", 3, 0) == ()
    assert not pool.has_copies("a")
    pool.check_integrity([])
