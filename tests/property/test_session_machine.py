"""Random sessions on the planner alone; tests/session_machine.py has the invariants."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from prefill_worker.policy import POLICIES
from tests.planner_driver import PlannerDriver
from tests.session_machine import SessionMachine

pytestmark = pytest.mark.property

EXAMPLES = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("policy", POLICIES)
def test_sessions_end_and_blocks_come_back(policy: str, prefix_caching: bool) -> None:
    class Machine(SessionMachine):
        def make_driver(self) -> PlannerDriver:
            return PlannerDriver(policy=policy, prefix_caching=prefix_caching)

    run_state_machine_as_test(Machine, settings=EXAMPLES)
