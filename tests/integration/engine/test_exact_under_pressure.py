"""Thirty sessions, KV memory for eight: exact, whatever the mode of preemption and the policy.

On a real engine. Sessions append and update, begin alike, are cancelled in
between; every answer is compared with that of a plain engine to the whole prompt.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest

from prefill_worker.local_engine import LocalEngine
from prefill_worker.offload_pool import OffloadPool
from prefill_worker.policy import POLICIES
from prefill_worker.report import SchedulerCounters
from tests.builders import FrozenCosts
from tests.reference_engine import ReferenceEngine
from tests.scheduling.pressure import COSTS, Play, tight_engine


class EnginePool:
    """Holds the one engine that runs, "cache" or "no-cache"; starting one takes seconds."""

    def __init__(self) -> None:
        self._kind = ""
        self._engine: LocalEngine | None = None

    def get(self, kind: str) -> LocalEngine:
        """An engine of that kind; ends the one of the other kind."""
        if self._engine is None or kind != self._kind:
            self.close()
            self._engine = tight_engine(enable_prefix_caching=kind == "cache")
            self._kind = kind
        return self._engine

    def close(self) -> None:
        """Ends the engine, if one runs."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None


@pytest.fixture(scope="module")
def engine_pool() -> Iterator[EnginePool]:
    pool = EnginePool()
    yield pool
    pool.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest, engine_pool: EnginePool) -> LocalEngine:
    """With a prefix cache or without, as the test's parameter says."""
    return engine_pool.get(request.param)


# Each policy, and each mode with a cache and without one: what a mode does to a session does
# not depend on the policy that chose it. `test_session_machine.py` draws all pairs.
CASES = [
    pytest.param(
        "no-cache" if is_without else "cache",
        mode,
        policy,
        id=f"{'no-cache' if is_without else 'cache'}-{mode}-{policy}",
        marks=() if is_daily else pytest.mark.slow,
    )
    for mode, policy, is_without, is_daily in (
        ("recompute", "fcfs", False, False),
        ("recompute", "lcas", True, False),
        ("swap", "default", False, False),
        ("swap", "srpf", True, False),
        ("cost", "fcfs", True, False),
        ("cost", "mcps", False, True),
    )
]


def test_every_policy_and_every_mode_is_tried() -> None:
    tried = [case.values for case in CASES]
    assert {policy for _, _, policy in tried} == set(POLICIES)
    modes = itertools.product(("cache", "no-cache"), ("recompute", "swap", "cost"))
    assert {(cache, mode) for cache, mode, _ in tried} == set(modes)


CACHE = pytest.mark.parametrize(
    "engine", ["cache", pytest.param("no-cache", marks=pytest.mark.slow)], indirect=True
)


@pytest.mark.parametrize(("engine", "mode", "policy"), CASES, indirect=["engine"])
def test_every_answer_is_exact(
    engine: LocalEngine, reference: ReferenceEngine, mode: str, policy: str
) -> None:
    scheduler = engine.scheduler
    scheduler.set_policy(policy)
    scheduler.preempt_by(mode, FrozenCosts(COSTS))
    before = dataclasses.replace(scheduler.counters)
    play = Play(engine, reference)
    play.run()
    play.check_answers()
    play.driver.check_empty()
    _check_counters(before, scheduler.counters, mode)


@pytest.mark.parametrize(
    ("engine", "mode", "policy"),
    [
        ("cache", "cost", "srpf"),
        pytest.param("cache", "swap", "fcfs", marks=pytest.mark.slow),
        pytest.param("no-cache", "recompute", "lcas", marks=pytest.mark.slow),
        pytest.param("no-cache", "cost", "mcps", marks=pytest.mark.slow),
        pytest.param("cache", "recompute", "default", marks=pytest.mark.slow),
    ],
    indirect=["engine"],
)
def test_answers_that_go_on_here_are_exact(
    engine: LocalEngine, reference: ReferenceEngine, mode: str, policy: str
) -> None:
    """As on a mixed worker: sessions keep their KV, and lose it to others, while they answer."""
    scheduler = engine.scheduler
    scheduler.set_policy(policy)
    scheduler.preempt_by(mode, FrozenCosts(COSTS))
    before = dataclasses.replace(scheduler.counters)
    play = Play(engine, reference, num_answer_tokens=64)
    play.run()
    play.check_answers()
    play.driver.check_empty()
    _check_counters(before, scheduler.counters, mode)


def _check_counters(before: SchedulerCounters, now: SchedulerCounters, mode: str) -> None:
    """Memory was short, and what the mode says was done about it."""
    swapped = now.swap_preemptions - before.swap_preemptions
    recomputed = now.recompute_preemptions - before.recompute_preemptions
    assert swapped + recomputed > 10
    assert now.swap_failures == before.swap_failures
    if mode == "recompute":
        assert not swapped
    else:
        assert swapped > 3
        assert now.restored_tokens > before.restored_tokens
    if mode == "cost":
        assert now.recomputed_as_cheaper > before.recomputed_as_cheaper


@pytest.mark.parametrize(
    ("engine", "num_slots"),
    [
        pytest.param("cache", 1, marks=pytest.mark.slow),
        pytest.param("cache", 0, marks=pytest.mark.slow),
        pytest.param("no-cache", 5, marks=pytest.mark.slow),
    ],
    indirect=["engine"],
)
def test_a_small_offload_pool(
    engine: LocalEngine, reference: ReferenceEngine, num_slots: int
) -> None:
    scheduler, swapping = engine.scheduler, engine.scheduler.swapping
    scheduler.set_policy("fcfs")
    scheduler.preempt_by("swap", FrozenCosts(COSTS))
    before = dataclasses.replace(scheduler.counters)
    whole, swapping.host = swapping.host, OffloadPool(num_slots)
    play = Play(engine, reference)
    play.run()
    play.check_answers()
    play.driver.check_empty()
    swapping.host = whole
    counters = scheduler.counters
    assert counters.recomputed_as_pool_full > before.recomputed_as_pool_full
    assert (counters.swapped_in_blocks > before.swapped_in_blocks) == (num_slots > 0)


@CACHE
def test_copies_that_fail_are_computed_again(
    engine: LocalEngine, reference: ReferenceEngine
) -> None:
    scheduler = engine.scheduler
    scheduler.set_policy("fcfs")
    scheduler.preempt_by("swap", FrozenCosts(COSTS))
    before = dataclasses.replace(scheduler.counters)
    play = Play(engine, reference)
    # Every third step its copies fail, out and in.
    play.run(before_step=lambda step: play.driver.swaps_fail(step % 3 == 0))
    play.driver.swaps_fail(False)
    play.check_answers()
    play.driver.check_empty()
    counters = scheduler.counters
    assert counters.swap_failures > before.swap_failures + 3
    assert counters.swapped_in_blocks > before.swapped_in_blocks
