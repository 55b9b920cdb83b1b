"""What the real scheduler counts and reports, and defects that a hostile review found in it.

Each as it was found. They cost time, memory or the truth of a figure, not the answer, so the
session machine cannot see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("vllm")

from prefill_worker.report import SchedulerCounters
from prefill_worker.settings import require_settings
from tests.scheduling.driver import SchedulerDriver
from tests.scheduling.engine_settings import EngineSettings, create_config

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


def make_driver(**settings: Any) -> SchedulerDriver:
    return SchedulerDriver(EngineSettings(**settings))


def tokens(session: int, num_tokens: int) -> list[int]:
    """No other session's tokens."""
    return [1000 * (session + 1) + position for position in range(num_tokens)]


def delays(driver: SchedulerDriver, name: str) -> Sequence[str]:
    return [progress["delay"] for progress in driver.sessions[name].progress]


def test_more_hits_than_slots_are_taken_without_evicting_anybody() -> None:
    """Sessions beyond the slots computed it all again, and evicted all others for it."""
    driver = make_driver(leases=False, num_blocks=26, token_budget=128, step_requests=4)
    shared = tokens(0, 92)
    for number in range(30):
        driver.open(f"s{number}", [*shared, number])
    driver.run(max_steps=20)
    counters = driver.scheduler.counters
    assert counters.computed_tokens == len(shared)
    assert counters.reused_across_sessions_tokens == 29 * len(shared)
    assert counters.recompute_preemptions == 0


def test_blocks_that_one_session_holds_alone_go_before_those_that_many_share() -> None:
    driver = make_driver(leases=False, num_blocks=31, token_budget=128, step_requests=32)
    driver.open("old", tokens(1, 60))
    driver.run()
    shared = tokens(0, 41)
    for number in range(20):
        driver.open(f"s{number}", [*shared[:40], number])
    driver.run()
    assert all(len(driver.table(f"s{number}")) == 10 for number in range(20))
    driver.open("new", tokens(2, 41))
    driver.run()
    assert driver.scheduler.counters.recompute_preemptions == 1
    assert len(driver.table("old")) < 15


def test_a_hit_that_is_lost_before_any_step_used_it_costs_no_claim() -> None:
    driver = make_driver(leases=False, num_blocks=25, token_budget=128, step_requests=8)
    shared = tokens(1, 40)
    driver.open("first", shared)
    driver.seal("first", [3])
    driver.run_until_answered(["first"])
    driver.open("large", tokens(3, 81))
    driver.open("small", shared[:33])
    driver.run()
    assert driver.scheduler.requests["small"].num_computed_tokens == 32


def test_without_a_prefix_cache_equal_sessions_do_not_wait_for_each_other() -> None:
    """vLLM hashes blocks for a connector, too."""
    driver = make_driver(prefix_caching=False, num_blocks=60, token_budget=128, step_requests=8)
    for number in range(6):
        driver.open(f"s{number}", [*tokens(0, 8), number])
    driver.step()
    assert driver.last_step.num_scheduled_tokens == {f"s{n}": 8 for n in range(6)}


def test_a_delay_is_over_when_tokens_are_granted_and_not_before() -> None:
    driver = make_driver()
    driver.command(1, set_policy="fcfs")
    driver.step()
    driver.take_blocks(24)
    driver.open("early", tokens(9, 1))
    driver.open("late", tokens(1, 20))
    driver.seal("late", [3])
    driver.step()
    driver.append("early", [tuple(tokens(10, 20))])
    driver.seal("early", [3])  # goes before `late`
    for _ in range(3):
        driver.step()
    assert delays(driver, "late")[-1] == "kv_leased"
    assert delays(driver, "early")[-1] == "kv_leased"
    driver.return_blocks()
    driver.run_until_answered(["early", "late"])
    assert delays(driver, "late")[-1] == ""


def test_kv_that_was_made_good_is_not_counted_as_recomputed_again() -> None:
    driver = make_driver(
        leases=False, block_size=16, num_blocks=9, token_budget=64, max_model_len=400
    )
    sequence = tokens(1, 65)
    driver.open("a", sequence)
    driver.run()
    driver.open("b", tokens(2, 120))
    driver.seal("b", [1])
    driver.run_until_answered(["b"])
    driver.append("a", [tuple(tokens(5, 3))])
    driver.run()
    before = driver.scheduler.counters.recomputed_tokens
    assert before > 0
    for number in range(3):
        # Keeps 63 tokens; the block they end in is hashed, and goes.
        driver.become("a", [*sequence[:63], *tokens(50 + number, 4)])
        driver.run()
    assert driver.scheduler.counters.recomputed_tokens == before


def test_a_request_samples_one_token_whatever_it_asks() -> None:
    driver = make_driver(leases=False)
    driver.add_request("many", tokens(0, 10), None, max_tokens=5)
    scheduler = driver.scheduler
    outputs = []
    while scheduler.has_requests():
        step = scheduler.schedule()
        by_client = scheduler.update_from_output(step, driver.executor.execute(step))
        outputs += [output for each in by_client.values() for output in each.outputs]
    [answer] = [output for output in outputs if output.new_token_ids]
    assert len(answer.new_token_ids) == 1
    assert answer.finished
    driver.check_empty()


def test_vllms_events_do_not_gather_while_a_session_lives() -> None:
    driver = make_driver(leases=False, max_model_len=4000, num_blocks=1000)
    driver.open("a", [1])
    for number in range(50):
        driver.append("a", [(number,)])
        driver.run()
    assert len(driver.scheduler.requests["a"].events) <= 2


def test_the_gauge_of_running_requests_counts_the_chosen() -> None:
    driver = make_driver(leases=False)
    driver.open("a", tokens(0, 40))
    output = driver.scheduler.schedule()
    by_client = driver.scheduler.update_from_output(output, driver.executor.execute(output))
    [stats] = [each.scheduler_stats for each in by_client.values() if each.scheduler_stats]
    assert stats.num_running_reqs == 1


@pytest.mark.parametrize("args", [{"pipeline_parallel_size": 2}, {"enable_lora": True}])
def test_settings_under_which_a_plan_would_not_be_carried_out_are_refused(
    args: dict[str, Any],
) -> None:
    config = create_config(EngineSettings(leases=False, engine_args=args))
    with pytest.raises(ValueError, match=r"pipeline_parallel_size=1|no lora_config"):
        require_settings(config)
