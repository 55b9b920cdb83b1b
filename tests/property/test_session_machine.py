"""Random sessions on the planner alone; tests/session_machine.py has the invariants."""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test

from prefill_worker.policy import POLICIES
from tests.builders import LinearCosts, a_preemption
from tests.examples import examples
from tests.planner_driver import PlannerDriver
from tests.session_machine import SessionMachine


@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("policy", POLICIES)
def test_sessions_end_and_blocks_come_back(policy: str, prefix_caching: bool) -> None:
    class Machine(SessionMachine):
        def make_driver(self) -> PlannerDriver:
            return PlannerDriver(policy=policy, prefix_caching=prefix_caching)

    run_state_machine_as_test(Machine, settings=examples(10))


# One block is not worth its copies, two and more are.
COSTS = LinearCosts(token_s=1.0, block_s=0.5, copy_s=1.5)


@pytest.mark.parametrize("num_host_slots", [0, 1, 5, 100])
@pytest.mark.parametrize("mode", ["swap", "cost"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("load_delay_steps", [0, 2])
def test_swapped_sessions_end_and_slots_come_back(
    prefix_caching: bool, mode: str, num_host_slots: int, load_delay_steps: int
) -> None:
    class Machine(SessionMachine):
        def make_driver(self) -> PlannerDriver:
            return PlannerDriver(
                prefix_caching=prefix_caching,
                preemption=a_preemption(mode, COSTS, block_size=4),
                num_host_slots=num_host_slots,
                load_delay_steps=load_delay_steps,
            )

    run_state_machine_as_test(Machine, settings=examples(5))
