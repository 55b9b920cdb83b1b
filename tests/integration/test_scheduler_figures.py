"""What the real scheduler counts and reports: whose work served again, and that commands are answered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from prefill_worker.report import SchedulerCounters
from tests.scheduling.driver import SchedulerDriver
from tests.scheduling.engine_settings import EngineSettings

A, B, C = (tuple(range(start, start + 12)) for start in (100, 200, 300))


@pytest.fixture
def driver() -> Iterator[SchedulerDriver]:
    driver = SchedulerDriver(EngineSettings())
    yield driver
    driver.close()


def counters(driver: SchedulerDriver) -> SchedulerCounters:
    return driver.scheduler.counters


def test_an_update_computes_only_what_is_behind_the_common_prefix(driver: SchedulerDriver) -> None:
    driver.open("s", A)
    driver.append("s", [B])
    driver.run()
    assert counters(driver).computed_tokens == 23  # the last token is held back
    # 14 tokens are common: 3 blocks of A, then 2 tokens of a block that the
    # cache knows and that must stay as it is.
    driver.update("s", [(*B[:2], *C)])
    driver.run()
    assert counters(driver).invalidated_tokens == 23 - 14
    assert counters(driver).computed_tokens == 23 + 25 - 12
    assert counters(driver).reused_within_session_tokens == 12


def test_tokens_sent_again_are_not_computed_again(driver: SchedulerDriver) -> None:
    driver.open("s", A)
    driver.run()
    # The sender keeps less than is common; the scheduler finds the rest.
    driver.become("s", [*A, *B], keep_tokens=4)
    driver.run()
    assert counters(driver).computed_tokens == 23
    assert counters(driver).invalidated_tokens == 0


@pytest.mark.parametrize("cache_salt", ["", "tenant"])
def test_coming_back_to_an_earlier_list_finds_it_in_the_cache(
    driver: SchedulerDriver, cache_salt: str
) -> None:
    driver.open("s", A, cache_salt=cache_salt)
    for documents in ([B], [C], [B]):
        driver.update("s", documents)
        driver.run()
    # B's last block was never full: its last token was held back.
    assert counters(driver).computed_tokens == 23 + 11 + 3
    assert counters(driver).reused_across_sessions_tokens == 0


def test_equal_documents_of_many_sessions_are_computed_once(driver: SchedulerDriver) -> None:
    for name in ("s", "t", "u"):
        driver.open(name, [*A, *B])
    driver.run()
    # One block stays private to each, with 3 of its 4 tokens.
    assert counters(driver).computed_tokens == 20 + 3 * 3
    assert counters(driver).reused_across_sessions_tokens == 2 * 20


def test_a_command_is_answered_once_also_when_there_is_nothing_to_do(
    driver: SchedulerDriver,
) -> None:
    driver.command(1)
    assert driver.has_work()
    driver.step()
    assert [report.last_command for report in driver.reports] == [1]
    assert not driver.has_work()
    driver.command(2, set_policy="mcps")
    driver.step()
    assert (driver.reports[-1].last_command, driver.reports[-1].policy) == (2, "mcps")


def test_a_policy_nobody_knows_changes_nothing_and_is_answered(driver: SchedulerDriver) -> None:
    driver.command(1, set_policy="no such policy")
    driver.step()
    assert (driver.reports[-1].last_command, driver.reports[-1].policy) == (1, "srpf")


def test_reports_come_when_work_ends_and_every_sixteen_steps() -> None:
    driver = SchedulerDriver(EngineSettings(token_budget=3, num_blocks=40))
    driver.command(1)
    driver.step()
    driver.open("s", [*A, *B, *C, *range(400, 470)])
    num_steps = driver.run()
    assert num_steps > 2 * 16
    assert len(driver.reports) == 1 + num_steps // 16 + (num_steps % 16 > 0)
    last = driver.reports[-1]
    assert (last.num_sessions_with_work, last.num_sessions_idle) == (0, 1)
    assert sum(len(report.plan_s) for report in driver.reports) == num_steps + 1
    assert last.counters == counters(driver)
