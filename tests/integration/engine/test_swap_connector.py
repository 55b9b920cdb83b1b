"""The swap connector on a real engine, beside NIXL: blocks go to the host and come back exact.

The jobs are made by hand here, so the scheduler does not swap itself;
what is tested is all between a job and the bytes: metadata, MultiConnector,
where vLLM put the KV, the copies, and what is reported.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from unittest import mock

import pytest
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlConnector

from prefill_worker.kv_transfer import kv_transfer
from prefill_worker.local_engine import LocalEngine
from prefill_worker.session_state import ContextEvent
from prefill_worker.swap_connector import SwapConnector, find_connector
from prefill_worker.swap_jobs import CopyJob, Direction, JobResults
from stream2llm.models.store import ensure_random_llama
from stream2llm.serving.settings.worker_options import WorkerOptions
from stream2llm.serving.system.ports import pick_port

BLOCK_SIZE = 32
NUM_SLOTS = 24
NIXL = {
    "kv_buffer_device": "cpu",
    "kv_connector_extra_config": {"kv_lease_duration": 10},
    "kv_load_failure_policy": "fail",
}
# 9 blocks, the last one not full.
CONTEXT = [2000 + 7 * position for position in range(270)]
QUESTION = [5000, 5003, 5011]


class Swapper:
    """An engine, both halves of its swap connector, and steps by hand."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        scheduler = find_connector(engine.scheduler.connector, SwapConnector)
        worker = find_connector(get_kv_transfer_group(), SwapConnector)
        assert scheduler is not None
        assert worker is not None
        self.scheduler, self.worker = scheduler, worker
        self._numbers = itertools.count(1_000_000)
        self._sessions = itertools.count()

    def session(self) -> str:
        """A session that has computed the context and waits."""
        name = f"s{next(self._sessions)}"
        self.engine.add(name, CONTEXT, ContextEvent(1, 0, seal=False, begins=True))
        self._run()
        return name

    def answer(self, session: str) -> list[int]:
        """Its first token, after the question."""
        self.engine.add(session, QUESTION, ContextEvent(2, len(CONTEXT), seal=True))
        return self._run()

    def _run(self) -> list[int]:
        tokens: list[int] = []
        while not tokens and self.engine.scheduler.has_requests():
            tokens = [token for each in self.engine.step() for token in each.new_token_ids]
        return tokens

    def blocks(self, session: str) -> tuple[int, ...]:
        """The blocks it holds."""
        (block_ids,) = self.engine.scheduler.kv_cache_manager.get_block_ids(session)
        return tuple(block_ids)

    def overwrite(self, blocks: tuple[int, ...]) -> None:
        """Other KV in all layers of these blocks."""
        for memory, _ in self.worker._copier._pairs:
            memory[list(blocks)] = ~memory[list(blocks)]

    def copy(self, *jobs: tuple[Direction, tuple[int, ...], tuple[int, ...]]) -> JobResults:
        """Runs jobs in one step that computes nothing."""
        numbers = []
        for direction, blocks, slots in jobs:
            numbers.append(next(self._numbers))
            self.scheduler.start(CopyJob(numbers[-1], direction, blocks, slots))
        output = self.engine.execute(self.engine.scheduler.schedule()).kv_connector_output
        if output is not None:
            self.engine.scheduler.connector.update_connector_output(output)
        results = self.scheduler.take_results()
        assert results.num_ranks_done == dict.fromkeys(numbers, 1)
        return results


@pytest.fixture(scope="module")
def swapper() -> Iterator[Swapper]:
    port = str(pick_port("127.0.0.1", "swap connector"))
    with mock.patch.dict(os.environ, {"VLLM_NIXL_SIDE_CHANNEL_PORT": port}):
        engine = LocalEngine(
            ensure_random_llama("sensitive"),
            dtype="float32",
            block_size=BLOCK_SIZE,
            num_gpu_blocks_override=41,
            max_model_len=1280,
            max_num_batched_tokens=192,
            max_num_seqs=4,
            # Nothing but the copies may bring a session its KV.
            enable_prefix_caching=False,
            kv_transfer_config=KVTransferConfig(**kv_transfer(NIXL, swaps=True)),
            options=WorkerOptions(offload_pool_blocks=NUM_SLOTS),
        )
        yield Swapper(engine)
        engine.close()


@pytest.fixture(scope="module")
def expected(swapper: Swapper) -> list[int]:
    return swapper.answer(swapper.session())


def test_the_engine_has_both_connectors_and_the_memory_they_need(swapper: Swapper) -> None:
    assert find_connector(swapper.engine.scheduler.connector, NixlConnector) is not None
    cache = swapper.engine.scheduler.kv_cache_config
    assert swapper.scheduler.num_slots == swapper.worker.num_slots == NUM_SLOTS
    sizes = {tensor.size for tensor in cache.kv_cache_tensors}
    assert sizes == {cache.num_blocks * swapper.scheduler.bytes_per_block}


def test_what_went_to_the_host_and_back_gives_the_exact_answer(
    swapper: Swapper, expected: list[int]
) -> None:
    session = swapper.session()
    blocks = swapper.blocks(session)
    # No order, so no run of neighbours.
    slots = tuple(sorted(range(len(blocks)), key=lambda slot: slot * 5 % len(blocks)))
    out = swapper.copy((Direction.OUT, blocks, slots))
    swapper.overwrite(blocks)
    back = swapper.copy((Direction.IN, blocks, slots))
    assert not out.failures
    assert not back.failures
    [out_time], [back_time] = out.times.values(), back.times.values()
    assert out_time[:2] == (Direction.OUT, len(blocks))
    assert back_time[:2] == (Direction.IN, len(blocks))
    assert min(out_time.seconds, back_time.seconds) > 0
    assert swapper.answer(session) == expected


def test_what_was_not_copied_back_shows(swapper: Swapper, expected: list[int]) -> None:
    """Or the test above would prove nothing."""
    session = swapper.session()
    swapper.overwrite(swapper.blocks(session)[:1])
    assert swapper.answer(session) != expected


def test_a_step_may_copy_out_what_it_copies_into(swapper: Swapper, expected: list[int]) -> None:
    first, second = swapper.session(), swapper.session()
    blocks, others = swapper.blocks(first), swapper.blocks(second)
    low, high = tuple(range(len(blocks))), tuple(range(len(blocks), 2 * len(blocks)))
    swapper.copy((Direction.OUT, blocks, low))
    # The other session's blocks are saved and overwritten in one step.
    swapper.copy((Direction.IN, others, low), (Direction.OUT, others, high))
    swapper.overwrite(blocks)
    swapper.copy((Direction.IN, blocks, high))
    assert swapper.answer(first) == swapper.answer(second) == expected


def test_blocks_are_copied_before_the_step_writes_to_them(
    swapper: Swapper, expected: list[int]
) -> None:
    session = swapper.session()
    written = swapper.blocks(session)[-1]
    [(memory, pool)] = swapper.worker._copier._pairs
    before = memory[written].copy()
    swapper.scheduler.start(CopyJob(1, Direction.OUT, (written,), (0,)))
    # The engine's scheduler does not know this job.
    with mock.patch.object(swapper.scheduler, "update_connector_output") as told:
        # The question's tokens have room in the block that the context ends in.
        assert swapper.answer(session) == expected
    [done] = [call.args[0].kv_connector_worker_meta for call in told.mock_calls]
    assert done is not None
    assert (pool[0] == before).all()
    assert (memory[written] != before).any()


def test_a_step_without_jobs_reports_nothing(swapper: Swapper) -> None:
    assert swapper.copy() == JobResults()


def test_a_copy_that_fails_is_reported_and_the_engine_lives(
    swapper: Swapper, expected: list[int]
) -> None:
    session = swapper.session()
    blocks = swapper.blocks(session)
    slots = tuple(range(len(blocks)))
    results = swapper.copy(
        (Direction.OUT, blocks, tuple(slot + NUM_SLOTS for slot in slots)),
        (Direction.OUT, blocks, slots),
    )
    assert len(results.failures) == 1
    assert "there is no slot beyond 23" in next(iter(results.failures.values()))

    error = RuntimeError("the bus is on fire")
    with mock.patch.object(swapper.worker._copier, "_copy", side_effect=error):
        results = swapper.copy((Direction.IN, blocks, slots))
    assert list(results.failures.values()) == ["RuntimeError: the bus is on fire"]

    swapper.overwrite(blocks)
    assert not swapper.copy((Direction.IN, blocks, slots)).failures
    assert swapper.answer(session) == expected
