"""More open sessions than vLLM's model runner V2 has slots for."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from tests.scheduling.driver import SchedulerDriver
from tests.scheduling.engine_settings import EngineSettings

pytestmark = pytest.mark.integration


def test_sessions_that_lose_their_slots_keep_their_kv() -> None:
    driver = SchedulerDriver(
        EngineSettings(
            leases=False, num_blocks=61, token_budget=64, step_requests=2, has_runner_v2=True
        )
    )
    names = [f"s{number}" for number in range(5)]
    for number, name in enumerate(names):
        driver.open(name, range(1000 * number, 1000 * number + 20))
        driver.run()
    for name in names:
        driver.seal(name, (7,))
    driver.run()
    assert all(driver.is_exact(name) for name in names)
    assert driver.scheduler.counters.computed_tokens == 5 * 21
