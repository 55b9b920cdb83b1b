"""Both roles' schedulers say how long their present step may take."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

from stream2llm.engine.step_history import NEW_SIZE_LIMIT_S
from stream2llm.engine.step_limit import LIMIT_VARIABLE, StepLimit
from tests.scheduling.decode_settings import create_decode_scheduler
from tests.scheduling.driver import SchedulerDriver
from tests.scheduling.engine_settings import EngineSettings


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> StepLimit:
    limit, path = StepLimit.create()
    monkeypatch.setenv(LIMIT_VARIABLE, path)
    return limit


def test_a_prefill_step_has_a_limit_until_it_ends(limit: StepLimit) -> None:
    driver = SchedulerDriver(EngineSettings())
    try:
        driver.open("s", tuple(range(100, 112)))
        output = driver.scheduler.schedule()
        assert output.total_num_scheduled_tokens
        assert limit.read() == NEW_SIZE_LIMIT_S
        driver.scheduler.update_from_output(output, driver.executor.execute(output))
        assert limit.read() == 0.0
        driver.run()
    finally:
        driver.close()


def test_a_decode_step_has_a_limit_until_it_ends(limit: StepLimit) -> None:
    scheduler = create_decode_scheduler(EngineSettings())
    output = scheduler.schedule()
    assert limit.read() == NEW_SIZE_LIMIT_S
    scheduler.update_from_output(output, EMPTY_MODEL_RUNNER_OUTPUT)
    assert limit.read() == 0.0
