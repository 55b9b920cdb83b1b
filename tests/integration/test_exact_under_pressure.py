"""Thirty sessions, KV memory for eight: exact, whatever the mode of preemption and the policy.

On a real engine. Sessions append and update, begin alike, are cancelled in
between; every answer is compared with that of a plain engine to the whole prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from prefill_worker.local_engine import LocalEngine
from prefill_worker.policy import POLICIES
from prefill_worker.report import SchedulerCounters
from stream2llm.model_store import ensure_random_llama
from tests.builders import FrozenCosts
from tests.reference_engine import ReferenceEngine
from tests.scheduling.pressure import COSTS, MAX_MODEL_LEN, Play, tight_engine

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=[True, False], ids=["cache", "no-cache"])
def engine(request: pytest.FixtureRequest) -> Iterator[LocalEngine]:
    engine = tight_engine(enable_prefix_caching=request.param)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference() -> Iterator[ReferenceEngine]:
    with ReferenceEngine(ensure_random_llama("sensitive"), MAX_MODEL_LEN) as reference:
        yield reference


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", ["recompute", "swap", "cost"])
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
