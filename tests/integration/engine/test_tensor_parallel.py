"""Two ranks on a CPU: KV is split by heads, and every rank swaps its share of each block."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from prefill_worker.local_engine import LocalEngine
from tests.builders import FrozenCosts
from tests.reference_engine import ReferenceEngine
from tests.scheduling.pressure import COSTS, Play, tight_engine

pytestmark = pytest.mark.slow
# As they are before any engine in this process binds it to one.
CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    if len(CORES) < 2:
        pytest.skip("vLLM binds each rank to a core of its own")
    engine = tight_engine(
        tensor_parallel_size=2,
        in_process=False,
        environment={"VLLM_CPU_OMP_THREADS_BIND": f"{CORES[0]}|{CORES[1]}"},
    )
    yield engine
    engine.close()


@pytest.mark.parametrize("mode", ["swap", "cost"])
def test_every_answer_is_exact(engine: LocalEngine, reference: ReferenceEngine, mode: str) -> None:
    scheduler = engine.scheduler
    scheduler.preempt_by(mode, FrozenCosts(COSTS))
    before = scheduler.counters.swapped_in_blocks
    play = Play(engine, reference)
    play.run()
    play.check_answers()
    play.driver.check_empty()
    assert scheduler.counters.swapped_in_blocks > before
    assert scheduler.counters.swap_failures == 0
