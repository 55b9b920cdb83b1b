"""The session machine on a real engine: a random Llama, 40 KV blocks, exact answers.

Hypothesis drives append, update, seal, cancel, shortages, policy switches and failing copies;
every answer is compared with that of a plain engine to the whole prompt. What
runs here is vLLM's EngineCore with its model runner and kernels, in this
process; tests/scheduling runs the same machine thousands of steps long on a
fake executor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from vllm.config import KVTransferConfig

from prefill_worker.kv_transfer import SWAP_ONLY
from prefill_worker.local_engine import LocalEngine
from prefill_worker.policy import POLICIES
from stream2llm.models.store import ensure_random_llama
from tests.builders import FrozenCosts, LinearCosts
from tests.examples import examples
from tests.reference_engine import ReferenceEngine
from tests.scheduling.engine_driver import EngineDriver
from tests.scheduling.engine_settings import worker_options
from tests.session_machine import SessionMachine, Tokens

# A few blocks are computed again, more are swapped, as long as 30 have room.
COSTS = LinearCosts(token_s=1.0, block_s=10.0, copy_s=20.0)
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
        kv_transfer_config=KVTransferConfig(**SWAP_ONLY),
        options=worker_options(starvation_guard_steps=20, offload_pool_blocks=30),
    )
    engine.scheduler.preempt_by("cost", FrozenCosts(COSTS))
    yield engine
    engine.close()


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
            examples(2, steps=15),
            # Each example takes seconds: a failure is reported as found, without shrinking.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    # How many it comes to is up to chance.
    assert sum(len(driver.answers()) for driver in drivers) > 0


def test_sessions_that_do_not_fit_together_are_exact(
    engine: LocalEngine, reference: ReferenceEngine
) -> None:
    """Six of about twenty blocks each, on forty: all append or update, then all are sealed.

    test_exact_under_pressure.py does so with more sessions, under every policy.
    """
    policy = "default"
    before = dataclasses.replace(engine.scheduler.counters)
    engine.scheduler.set_policy(policy)
    engine.scheduler.preempt_by("recompute")
    driver = EngineDriver(engine, reference)
    sequences: dict[str, Tokens] = {}
    for number in range(6):
        first, second, third = (_document(policy, number, part) for part in range(3))
        name = f"{policy}-{number}"
        driver.open(name, first, hand_over=False)
        driver.append(name, [second])
        _settle(driver)
        if number % 2:
            driver.update(name, [third])
        else:
            driver.append(name, [third])
        sequences[name] = first + third if number % 2 else first + second + third
        _settle(driver)
    for name in sequences:
        driver.seal(name, (7,))
    _settle(driver)
    for name, tokens in sequences.items():
        assert driver.answers()[name] == [driver.one_shot_answer((*tokens, 7))]
    driver.check_empty()
    counters = engine.scheduler.counters
    assert counters.recompute_preemptions > before.recompute_preemptions
    assert counters.recomputed_tokens > before.recomputed_tokens
    assert counters.invalidated_tokens > before.invalidated_tokens


def _document(policy: str, number: int, part: int) -> Tokens:
    """A document of fifteen tokens of the machine's that no other has."""
    start = 300 + 50 * (18 * list(POLICIES).index(policy) + 3 * number + part)
    return tuple(range(start % 2900, start % 2900 + 15))


def _settle(driver: EngineDriver) -> None:
    """Steps until the engine may rest."""
    while driver.has_work():
        driver.step()
        driver.check()
