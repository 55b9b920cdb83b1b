"""Defects that a hostile review found in the scheduler, each as it was found.

They cost time, memory or the truth of a figure, not the answer, so the session
machine cannot see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("vllm")

from prefill_worker.settings import require_settings
from tests.scheduling.driver import SchedulerDriver
from tests.scheduling.engine_settings import EngineSettings, create_config


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
