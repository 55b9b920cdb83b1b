"""Random sessions on the real scheduler class, with and without a prefix cache and hand-overs.

tests/session_machine.py has the machine and its invariants, tests/scheduling/
what stands for the engine.
"""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test

pytest.importorskip("vllm")

from prefill_worker.policy import POLICIES
from tests.examples import examples
from tests.scheduling.driver import SchedulerDriver
from tests.scheduling.engine_settings import EngineSettings, create_scheduler, worker_options
from tests.session_machine import SessionMachine

# Sessions wait for this many steps at most before they are put first.
STARVATION_GUARD_STEPS = 6
STEPS = 60


def machine(
    engine: EngineSettings, *, load_delay_steps: int = 0, streams: bool = False
) -> type[SessionMachine]:
    class Machine(SessionMachine):
        def make_driver(self) -> SchedulerDriver:
            return SchedulerDriver(engine, load_delay_steps=load_delay_steps, streams=streams)

    return Machine


@pytest.mark.parametrize("leases", [True, False], ids=["leases", "no-leases"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no-cache"])
def test_sessions_are_exact_and_none_is_lost(prefix_caching: bool, leases: bool) -> None:
    engine = EngineSettings(
        prefix_caching=prefix_caching,
        leases=leases,
        options=worker_options(starvation_guard_steps=STARVATION_GUARD_STEPS),
    )
    create_scheduler(engine)  # the first one takes a second; examples are timed
    run_state_machine_as_test(machine(engine), settings=examples(8, STEPS))


@pytest.mark.parametrize(("num_slots", "offload_pool_blocks"), [(1, 5), (2, 0)])
def test_sessions_on_a_model_runner_with_slots_are_exact(
    num_slots: int, offload_pool_blocks: int
) -> None:
    """V2 keeps so many requests, and counts what each has computed itself."""
    engine = EngineSettings(
        step_requests=num_slots,
        offload_pool_blocks=offload_pool_blocks,
        has_runner_v2=True,
        options=worker_options(starvation_guard_steps=STARVATION_GUARD_STEPS, preemption="cost"),
    )
    create_scheduler(engine)
    run_state_machine_as_test(machine(engine), settings=examples(8, STEPS))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_with_one_request_a_step_and_larger_blocks(policy: str) -> None:
    engine = EngineSettings(
        block_size=16,
        num_blocks=9,
        token_budget=10,
        step_requests=1,
        options=worker_options(policy=policy, starvation_guard_steps=STARVATION_GUARD_STEPS),
    )
    create_scheduler(engine)
    run_state_machine_as_test(machine(engine), settings=examples(8, STEPS))


@pytest.mark.parametrize("pool", ["small", pytest.param("tiny or ample", marks=pytest.mark.slow)])
@pytest.mark.parametrize("leases", [True, False], ids=["leases", "no-leases"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("mode", ["swap", "cost"])
def test_sessions_whose_kv_is_swapped_are_exact(
    mode: str, prefix_caching: bool, leases: bool, pool: str
) -> None:
    """With copies that fail at times, and, with leases, that take two steps longer."""
    # For any two of the other parameters, each combination meets both sizes.
    is_tiny = (mode == "swap") ^ prefix_caching ^ leases
    offload_pool_blocks = 5 if pool == "small" else 1 if is_tiny else 100
    engine = EngineSettings(
        prefix_caching=prefix_caching,
        leases=leases,
        offload_pool_blocks=offload_pool_blocks,
        options=worker_options(starvation_guard_steps=STARVATION_GUARD_STEPS, preemption=mode),
    )
    create_scheduler(engine)
    run_state_machine_as_test(
        machine(engine, load_delay_steps=2 * leases), settings=examples(5, STEPS)
    )


@pytest.mark.parametrize("offload_pool_blocks", [0, 5])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no-cache"])
def test_sessions_that_offer_their_kv_are_exact(
    prefix_caching: bool, offload_pool_blocks: int
) -> None:
    """Offers hold blocks until a reader or time ends them, whatever becomes of their session."""
    engine = EngineSettings(
        prefix_caching=prefix_caching,
        offload_pool_blocks=offload_pool_blocks,
        options=worker_options(
            starvation_guard_steps=STARVATION_GUARD_STEPS, preemption="cost", min_offer_tokens=8
        ),
    )
    create_scheduler(engine)
    run_state_machine_as_test(machine(engine, streams=True), settings=examples(8, STEPS))
