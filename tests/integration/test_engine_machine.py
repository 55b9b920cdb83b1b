"""The session machine on a real engine: a random Llama, 40 KV blocks, exact answers.

Hypothesis drives append, update, seal, cancel, shortages and policy switches;
every answer is compared with that of a plain engine to the whole prompt. What
runs here is vLLM's EngineCore with its model runner and kernels, in this
process; tests/scheduling runs the same machine thousands of steps long on a
fake executor.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from bench.local_engine import LocalEngine
from stream2llm.model_store import ensure_random_llama
from tests.reference_engine import ReferenceEngine
from tests.scheduling.engine_driver import EngineDriver
from tests.session_machine import SessionMachine

pytestmark = pytest.mark.integration

NUM_BLOCKS = 41  # one of them is vLLM's null block
# vLLM wants room for one prompt of full length: 40 blocks of 32 tokens.
MAX_MODEL_LEN = 1280


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(
        ensure_random_llama("sensitive"),
        dtype="float32",
        block_size=32,
        num_gpu_blocks_override=NUM_BLOCKS,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=192,
        max_num_seqs=4,
        options={"patience_steps": 20},
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference() -> Iterator[ReferenceEngine]:
    with ReferenceEngine(ensure_random_llama("sensitive"), MAX_MODEL_LEN) as reference:
        yield reference


def test_every_answer_is_the_one_shot_answer(
    engine: LocalEngine, reference: ReferenceEngine
) -> None:
    drivers = []

    class EngineMachine(SessionMachine):
        def make_driver(self) -> EngineDriver:
            drivers.append(EngineDriver(engine, reference))
            return drivers[-1]

    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=16,
            stateful_step_count=50,
            deadline=None,
            # Each example takes seconds: a failure is told as it was found.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert sum(len(driver.answers()) for driver in drivers) > 10
    counters = engine.scheduler.counters
    # What the test is about did happen.
    assert counters.invalidated_tokens > 0
    assert counters.reused_within_session_tokens > 0
    assert counters.reused_across_sessions_tokens > 0
    assert counters.recompute_preemptions > 0
