"""Directed cases of swapping on the real scheduler class, with a fake executor.

tests/integration/test_session_machine.py has the random ones, and
engine/test_exact_under_pressure.py a real engine.
"""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from prefill_worker.swap_jobs import CopyJob, Direction, JobResults
from tests.scheduling.driver import SchedulerDriver
from tests.scheduling.engine_settings import EngineSettings, worker_options
from tests.scheduling.executor import FakeCopier
from tests.session_machine import Tokens

A: Tokens = tuple(range(100, 121))
B: Tokens = tuple(range(200, 221))


def a_driver(
    *,
    mode: str = "swap",
    load_delay_steps: int = 0,
    num_blocks: int = 9,
    slots: int = 40,
    prefix_caching: bool = False,
) -> SchedulerDriver:
    """Eight blocks of four tokens: room for one of the sessions and a half."""
    settings = EngineSettings(
        options=worker_options(preemption=mode),
        offload_pool_blocks=slots,
        num_blocks=num_blocks,
        token_budget=64,
        leases=False,
        prefix_caching=prefix_caching,
    )
    return SchedulerDriver(settings, load_delay_steps=load_delay_steps)


def swapped_out(driver: SchedulerDriver) -> None:
    """Session "a" has computed five blocks, of which "b" has pushed some to the host."""
    driver.open("a", A)
    driver.run()
    driver.open("b", B)
    driver.run()
    assert driver.scheduler.counters.swapped_out_blocks > 0


def test_what_went_to_the_host_is_not_computed_again() -> None:
    driver = a_driver()
    swapped_out(driver)
    num_out = driver.scheduler.counters.swapped_out_blocks
    driver.cancel("b")
    driver.seal("a")
    driver.run()
    counters = driver.scheduler.counters
    assert driver.is_exact("a")
    assert counters.recomputed_tokens == 0
    assert counters.restored_tokens == 4 * num_out
    assert counters.swapped_in_blocks == num_out


def test_the_client_hears_that_kv_has_come_back() -> None:
    driver = a_driver()
    swapped_out(driver)
    told = len(driver.sessions["a"].progress)
    driver.cancel("b")
    driver.run()
    assert driver.scheduler.counters.swapped_in_blocks > 0
    assert [each["prefilled_tokens"] for each in driver.sessions["a"].progress[told:]] == [20]


def test_an_update_drops_what_is_on_the_host_behind_the_common_prefix() -> None:
    driver = a_driver()
    swapped_out(driver)
    first, stop = driver.scheduler.swapping.host.next_run("a")
    assert (first, stop) == (3, 5)
    driver.cancel("b")
    driver.become("a", [*A[:17], 7, 8, 9])
    assert driver.scheduler.swapping.host.next_run("a") == (3, 4)
    driver.seal("a")
    driver.run()
    assert driver.is_exact("a")
    assert driver.scheduler.counters.swapped_in_blocks == 1


@pytest.mark.parametrize("num_kept", [0, 5, 13, 18, 21])
def test_an_update_while_kv_comes_back(num_kept: int) -> None:
    driver = a_driver(load_delay_steps=3)
    swapped_out(driver)
    driver.cancel("b")
    driver.seal("a") if num_kept == 21 else driver.become("a", [*A, 1])
    driver.step()
    assert driver.scheduler.swapping.is_loading("a")
    if num_kept < 21:
        driver.become("a", [*A[:num_kept], 5, 6, 7])
        # Blocks 3 and 4 are on their way.
        assert driver.scheduler.swapping.is_loading("a") == (num_kept >= 16)
        driver.seal("a")
    driver.run()
    assert driver.is_exact("a")
    assert driver.scheduler.counters.restored_tokens == 4 * max(min(num_kept // 4, 5) - 3, 0)
    driver.check_empty()


def test_a_session_that_ends_while_its_kv_comes_back_frees_nothing_that_is_written() -> None:
    driver = a_driver(load_delay_steps=3)
    swapped_out(driver)
    driver.cancel("b")
    driver.seal("a")
    driver.step()
    driver.cancel("a")
    # The copies still hold their blocks; others get the rest.
    assert driver.num_free_blocks < 8
    driver.open("c", B)
    driver.seal("c")
    driver.run()
    assert driver.is_exact("c")
    driver.check_empty()


def test_the_engine_steps_while_copies_are_under_way_and_rests_afterwards() -> None:
    driver = a_driver(load_delay_steps=5)
    swapped_out(driver)
    driver.cancel("b")
    driver.become("a", [*A, 1])
    driver.step()
    for _ in range(5):
        assert driver.scheduler.has_unfinished_requests()
        driver.step()
    assert driver.run() < 3
    assert not driver.scheduler.has_unfinished_requests()


@pytest.mark.parametrize("direction", Direction)
def test_a_copy_that_fails_is_computed_again_and_counted(direction: Direction) -> None:
    driver = a_driver()
    driver.executor.copier.fails = direction is Direction.OUT
    swapped_out(driver)
    driver.executor.copier.fails = direction is Direction.IN
    driver.cancel("b")
    driver.seal("a")
    driver.run()
    assert driver.is_exact("a")
    assert driver.scheduler.counters.swap_failures == 1
    assert driver.scheduler.counters.recomputed_tokens > 0
    driver.check_empty()


class LateFailure(FakeCopier):
    """Copies out fail, and say so a step late; what comes back is garbage."""

    def __init__(self, real: FakeCopier) -> None:
        super().__init__(real._kv, len(real.host), delay_steps=1)
        self._late: list[int] = []

    def _copy(self, job: CopyJob) -> None:
        if job.direction is Direction.IN:
            super()._copy(job)
        else:
            self._late.append(job.number)
            self._under_way.append(
                (2, job._replace(direction=Direction.IN, block_ids=(), slots=()))
            )

    def report(self) -> JobResults:
        results = super().report()
        for number in self._late:
            if number in results.num_ranks_done:
                results.failures[number] = "injected"
        return results


def test_kv_that_never_reached_the_host_does_not_come_back() -> None:
    """Though the load was under way when the failure was reported."""
    driver = a_driver()
    driver.executor.copier = LateFailure(driver.executor.copier)
    driver.open("a", A)
    driver.run()
    driver.open("b", B)
    driver.step()
    driver.cancel("b")
    driver.seal("a")
    driver.run()
    assert driver.is_exact("a")
    assert driver.scheduler.counters.restored_tokens == 0


def test_a_full_pool_means_computing_again() -> None:
    driver = a_driver(slots=1)
    swapped_out(driver)
    assert driver.scheduler.counters.swapped_out_blocks == 1
    driver.open("c", A[:9])
    driver.run()
    assert driver.scheduler.counters.recomputed_as_pool_full > 0
    for name in ("a", "b", "c"):
        driver.seal(name)
    driver.run()
    assert all(driver.is_exact(name) for name in "abc")
    driver.check_empty()


def test_modes_change_while_sessions_are_swapped() -> None:
    driver = a_driver()
    swapped_out(driver)
    driver.scheduler.preempt_by("recompute")
    driver.open("c", A[:9])
    driver.run()
    for name in ("a", "b", "c"):
        driver.seal(name)
    driver.run()
    assert all(driver.is_exact(name) for name in "abc")
    assert driver.scheduler.counters.recomputed_by_mode > 0
    driver.check_empty()


@pytest.mark.parametrize("is_back", [True, False], ids=["back", "on-its-way"])
@pytest.mark.parametrize(("salt", "is_found"), [("x", True), ("y", False), ("", False)])
def test_swapped_kv_is_found_by_its_own_tenant_only(
    salt: str, is_found: bool, is_back: bool
) -> None:
    driver = a_driver(load_delay_steps=3, num_blocks=13, prefix_caching=True)
    counters = driver.scheduler.counters
    driver.open("a", A, cache_salt="x")
    driver.run()
    driver.open("b", [*B, *range(300, 320)], cache_salt="z")  # of eleven blocks
    driver.run()
    assert counters.swapped_out_blocks > 0
    driver.cancel("b")
    driver.become("a", [*A, 1])
    driver.step()
    assert driver.scheduler.swapping.is_loading("a")
    if is_back:
        driver.run()
    driver.open("c", A, cache_salt=salt)
    for name in "ac":
        driver.seal(name)
    driver.run()
    assert counters.swapped_in_blocks > 0
    assert bool(counters.reused_across_sessions_tokens) is is_found
    assert driver.is_exact("a")
    assert driver.is_exact("c")
    driver.check_empty()
