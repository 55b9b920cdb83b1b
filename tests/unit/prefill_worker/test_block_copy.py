"""Copies of KV blocks: every byte, in every layout of vLLM's, and in every order a device may take.

1. Blocks come back from the host as they were, whatever the layout.
2. A copy touches no byte that it was not asked for.
3. A job that fails affects no other, and is reported after all its copies have ended.
4. With streams that work as late and in as bad an order as they may: outs read
   what was there before the step, ins write after earlier readers.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    compute_layout_strides,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache

from prefill_worker.block_copy import BlockCopier, HostCopier, make_copier
from prefill_worker.block_regions import Region, block_bytes, block_views, find_regions
from prefill_worker.copy_batch import runs_of
from prefill_worker.staged_copier import StagedCopier, _gather
from prefill_worker.swap_jobs import CopyJob, CopyTime, Direction, JobResults, StepJobs
from stream2llm.serving.system.clock import ManualClock

NUM_BLOCKS = 11
LAYERS = [f"layers.{number}.attn" for number in range(3)]
SPEC = FullAttentionSpec(block_size=4, num_kv_heads=2, head_size=8, dtype=torch.bfloat16)
BLOCK_BYTES = len(LAYERS) * SPEC.page_size_bytes


def a_config(layout: KVCacheLayout, *, second_group: bool = False) -> KVCacheConfig:
    """Placement as vLLM makes it for one group, or two that share the memory."""
    stride = BLOCK_BYTES if layout.is_block_outermost else None
    names = [LAYERS, ["other.0", "other.1"]] if second_group else [LAYERS]
    tensors = []
    for layers in names:
        layer_stride, block_stride, *_ = compute_layout_strides(
            SPEC, NUM_BLOCKS, len(layers), layout, fixed_strides=(None, stride, None, None, None)
        )
        tensors.append(KVCacheTensor(NUM_BLOCKS * BLOCK_BYTES, layers, layer_stride, block_stride))
    return KVCacheConfig(NUM_BLOCKS, tensors, [KVCacheGroupSpec(each, SPEC) for each in names])


def some_caches(config: KVCacheConfig, layout: KVCacheLayout) -> dict[str, torch.Tensor]:
    """The caches as vLLM allocates them, full of random bytes."""
    caches = allocate_kv_cache(config, torch.device("cpu"), layout)
    raw = memory_of(caches)
    raw.copy_(torch.randint(-128, 128, raw.shape, dtype=torch.int8))
    return caches


def memory_of(caches: dict[str, torch.Tensor]) -> torch.Tensor:
    """The whole allocation as bytes."""
    return torch.empty(0, dtype=torch.int8).set_(next(iter(caches.values())).untyped_storage())


def bytes_of(cache: torch.Tensor) -> torch.Tensor:
    """A layer's cache with the block as first dimension, comparable bit for bit."""
    return cache.contiguous().view(torch.int8)


def an_out(number: int, *pairs: tuple[int, int]) -> CopyJob:
    return CopyJob(number, Direction.OUT, tuple(b for b, _ in pairs), tuple(s for _, s in pairs))


def an_in(number: int, *pairs: tuple[int, int]) -> CopyJob:
    return an_out(number, *pairs)._replace(direction=Direction.IN)


# -- where blocks are ----------------------------------------------------------


@pytest.mark.parametrize("second_group", [False, True])
@pytest.mark.parametrize("layout", KVCacheLayout)
def test_blocks_return_exactly_in_every_layout(layout: KVCacheLayout, second_group: bool) -> None:
    config = a_config(layout, second_group=second_group)
    caches = some_caches(config, layout)
    before = {name: bytes_of(cache).clone() for name, cache in caches.items()}
    copier = make_copier(block_views(config, caches), num_slots=6)
    blocks, slots, others = [2, 3, 9, 5], [1, 2, 5, 0], [4, 6, 7, 8]

    copier.start(StepJobs(outs=(an_out(1, *zip(blocks, slots, strict=True)),)))
    for cache in caches.values():
        cache[blocks] = 0
    copier.start(StepJobs(ins=(an_in(2, *zip(others, slots, strict=True)),)))

    assert copier.take_results(wait=True).num_ranks_done == {1: 1, 2: 1}
    for name, cache in caches.items():
        expected = before[name].clone()
        expected[others] = before[name][blocks]
        expected[blocks] = 0
        assert torch.equal(bytes_of(cache), expected), name


@pytest.mark.parametrize("layout", KVCacheLayout)
def test_every_byte_belongs_to_one_block(layout: KVCacheLayout) -> None:
    config = a_config(layout, second_group=True)
    regions = find_regions(config)
    assert block_bytes(regions) == BLOCK_BYTES
    views = block_views(config, some_caches(config, layout))
    assert sum(view.nbytes for view in views) == NUM_BLOCKS * BLOCK_BYTES


def test_layers_of_different_sizes_are_regions_of_their_own() -> None:
    size = NUM_BLOCKS * (2 * 16 + 24)
    tensors = [
        KVCacheTensor(size, ["a", "b"], layer_stride=NUM_BLOCKS * 16, block_stride=16),
        KVCacheTensor(size, ["c"], NUM_BLOCKS * 24, 24, offset=2 * NUM_BLOCKS * 16),
    ]
    regions = find_regions(KVCacheConfig(NUM_BLOCKS, tensors, []))
    assert regions == [Region(0, 2, 16), Region(NUM_BLOCKS * 32, 1, 24)]


def test_a_layout_that_is_not_understood_is_refused() -> None:
    layout = KVCacheLayout.LBHNC
    config = a_config(layout)
    caches = some_caches(config, layout)
    with pytest.raises(ValueError, match=r"no KV cache was given for the layers layers\.2\.attn"):
        block_views(config, {name: caches[name] for name in LAYERS[:2]})
    with pytest.raises(ValueError, match=r"layers\.1\.attn lies"):
        block_views(config, {**caches, LAYERS[1]: caches[LAYERS[2]]})
    alone = {name: cache.clone() for name, cache in caches.items()}
    with pytest.raises(ValueError, match="bytes, not"):
        block_views(config, alone)


def test_a_placement_that_is_not_understood_is_refused() -> None:
    def refused(*tensors: KVCacheTensor, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            find_regions(KVCacheConfig(4, list(tensors), []))

    refused(KVCacheTensor(90, ["a"], layer_stride=90, block_stride=16), match="not a whole number")
    refused(
        KVCacheTensor(128, ["a"], layer_stride=64, block_stride=16),
        KVCacheTensor(128, ["b"], layer_stride=128, block_stride=32),
        match="share the bytes at 0",
    )
    refused(KVCacheTensor(64, ["a"], 64, 16, host_resident=True), match="live on the host")


def test_no_kv_at_all_is_no_region() -> None:
    config = KVCacheConfig(NUM_BLOCKS, [], [])
    assert find_regions(config) == []
    assert block_views(config, {}) == []
    copier = make_copier([], num_slots=0)
    copier.start(StepJobs(outs=(an_out(1, (0, 0)),)))
    assert list(copier.take_results(wait=True).failures) == [1]


def test_runs_are_as_long_as_they_can_be() -> None:
    pairs = [(1, 5), (2, 6), (3, 8), (9, 9), (10, 10), (4, 11)]
    assert list(runs_of(pairs)) == [(1, 5, 2), (3, 8, 1), (9, 9, 2), (4, 11, 1)]
    assert list(runs_of([])) == []


# -- jobs ------------------------------------------------------------------------


class SlowClock(ManualClock):
    """Each look at it takes a second."""

    def monotonic_s(self) -> float:
        self.advance(1.0)
        return super().monotonic_s()


def test_a_failing_job_harms_no_other() -> None:
    memory = torch.arange(4 * 2 * 3).view(4, 2, 3)
    copier = HostCopier([memory], torch.zeros((3, 6), dtype=torch.int64), SlowClock())
    before = memory.clone()
    outs = (an_out(1, (0, 0)), an_out(2, (1, 1), (7, 2)), an_out(3, (2, 2)))
    copier.start(StepJobs(outs, (an_in(4, (3, 2), (1, 0)),)))

    results = copier.take_results(wait=False)
    assert results.num_ranks_done == {1: 1, 2: 1, 3: 1, 4: 1}
    assert results.failures == {2: "ValueError: there is no block beyond 3 or below 0: (1, 7)"}
    # No time for the outs: one was not copied.
    assert list(results.times.values()) == [CopyTime(Direction.IN, 2, 1.0)]
    assert torch.equal(memory[[3, 1]], before[[2, 0]])
    assert copier.take_results(wait=False) == JobResults()


def test_jobs_that_lead_out_of_the_memory_fail() -> None:
    memory = torch.zeros((4, 1, 2))
    copier = HostCopier([memory], torch.zeros((3, 2)), ManualClock())
    uneven = CopyJob(5, Direction.OUT, (1, 2), (0,))
    bad = (an_out(1, (0, 3)), an_out(2, (-1, 0)), an_out(3, (0, -1)), an_out(4, (4, 0)), uneven)
    copier.start(StepJobs(outs=bad))
    assert sorted(copier.take_results(wait=False).failures) == [1, 2, 3, 4, 5]


# -- streams -----------------------------------------------------------------------


@dataclass
class LateMark:
    device: LateDevice
    reached: bool = False

    def is_reached(self) -> bool:
        self.device.work_a_little()
        return self.reached

    def wait(self) -> None:
        while not self.reached:
            self.device.work()

    def seconds_since(self, earlier: LateMark) -> float:
        assert self.reached
        assert earlier.reached
        return 1.0


@dataclass
class LateStream:
    device: LateDevice
    # Work, a mark of its own that it sets, or one of the other stream's that it waits for.
    queue: deque[tuple[str, Callable[[], None] | LateMark]] = field(default_factory=deque)

    def run(self, work: Callable[[], None]) -> None:
        self.queue.append(("run", work))

    def mark(self) -> LateMark:
        mark = LateMark(self.device)
        self.queue.append(("mark", mark))
        return mark

    def wait_for(self, mark: LateMark) -> None:
        self.queue.append(("wait", mark))

    def can_work(self) -> bool:
        if not self.queue:
            return False
        kind, what = self.queue[0]
        return kind != "wait" or what.reached

    def work(self) -> None:
        kind, what = self.queue.popleft()
        if kind == "run":
            what()
        elif kind == "mark":
            what.reached = True


class LateDevice:
    """Two streams; nothing is done before a wait or a query, and then in any order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.compute, self.side = LateStream(self), LateStream(self)
        # So that all is done late on one stream, then on the other, too.
        self._bias = self._random.choice([0.02, 0.5, 0.98])

    def work(self) -> None:
        streams = [stream for stream in (self.compute, self.side) if stream.can_work()]
        assert streams, "the streams wait for each other"
        stream = self.compute if self._random.random() < self._bias else self.side
        (stream if stream in streams else streams[0]).work()

    def work_a_little(self) -> None:
        for _ in range(self._random.randrange(6)):
            if self.compute.can_work() or self.side.can_work():
                self.work()


class Swapping:
    """A random scheduler on a late device, and what every block and slot must hold."""

    def __init__(self, seed: int, num_blocks: int = 7, num_slots: int = 9) -> None:
        self.random = random.Random(seed)
        self.device = LateDevice(seed)
        # Two regions of different shapes; a block's content is one number.
        self.memory = [
            torch.zeros((2, num_blocks, 3)).transpose(0, 1),
            torch.zeros(num_blocks, 1, 2),
        ]
        pool, staging = torch.zeros((num_slots, 8)), [torch.zeros((2, 8)) for _ in range(2)]
        self.copier = StagedCopier(
            self.memory, pool, staging, self.device.compute, self.device.side
        )
        self.blocks: list[float | None] = [0.0] * num_blocks
        self.slots: dict[int, float] = {}
        self.arriving: dict[int, dict[int, float]] = {}
        self.number = 0

    def step(self) -> None:
        busy = {block for job in self.arriving.values() for block in job}
        idle = [block for block in range(len(self.blocks)) if block not in busy]
        self.random.shuffle(idle)
        outs, ins = self._outs(idle[:4]), self._ins(idle[2:])
        self.copier.start(StepJobs(outs, ins))
        loading = {block for job in self.arriving.values() for block in job}
        self._forward([block for block in range(len(self.blocks)) if block not in loading])
        self._look(wait=self.random.random() < 0.2)

    def _outs(self, blocks: list[int]) -> tuple[CopyJob, ...]:
        free = [slot for slot in range(9) if slot not in self.slots]
        pairs = list(zip(blocks, free, strict=False))
        self.slots |= {slot: self.blocks[block] for block, slot in pairs}
        self.number += 1
        # A job that fails is among them.
        return (an_out(self.number, *pairs), an_out(-self.number, (99, 0)))

    def _ins(self, blocks: list[int]) -> tuple[CopyJob, ...]:
        slots = self.random.sample(sorted(self.slots), min(len(self.slots), len(blocks), 5))
        pairs = list(zip(blocks, slots, strict=False))
        if not pairs:
            return ()
        self.number += 1
        self.arriving[self.number] = {block: self.slots.pop(slot) for block, slot in pairs}
        return (an_in(self.number, *pairs),)

    def _forward(self, blocks: list[int]) -> None:
        """The step's forward pass overwrites some blocks."""
        for block in self.random.sample(blocks, len(blocks) // 2):
            self.blocks[block] = value = self.random.random()
            self.device.compute.run(lambda block=block, value=value: self._fill(block, value))

    def _fill(self, block: int, value: float) -> None:
        for region in self.memory:
            region[block] = value

    def _look(self, *, wait: bool) -> None:
        for number in self.copier.take_results(wait=wait).num_ranks_done:
            for block, value in self.arriving.pop(number, {}).items():
                self.blocks[block] = value
                # A step may use it from now on.
                self.device.compute.run(lambda block=block, value=value: self._see(block, value))

    def _see(self, block: int, value: float) -> None:
        for region in self.memory:
            assert torch.equal(region[block], torch.full_like(region[block], value))

    def finish(self) -> None:
        self._look(wait=True)
        assert not self.arriving
        self.device.compute.mark().wait()
        for block, value in enumerate(self.blocks):
            self._see(block, value)


@pytest.mark.parametrize("seed", range(60))
def test_no_order_that_a_device_may_take_mixes_blocks_up(seed: int) -> None:
    swapping = Swapping(seed)
    for _ in range(15):
        swapping.step()
    swapping.finish()


def test_a_job_has_ended_only_when_the_device_is_through_with_it() -> None:
    device = LateDevice(seed=1)
    device.work_a_little = lambda: None  # type: ignore[method-assign]
    memory = torch.ones((4, 1, 2))
    pool = torch.zeros((3, 2))
    copier = StagedCopier([memory], pool, [torch.zeros((1, 2))], device.compute, device.side)
    copier.start(StepJobs(outs=(an_out(1, (0, 0), (1, 1)), an_out(2, (9, 2)))))

    # A failure is reported at once, and again when the job has ended.
    early = copier.take_results(wait=False)
    assert (early.num_ranks_done, list(early.failures)) == ({}, [2])
    assert copier.take_results(wait=False) == JobResults()
    results = copier.take_results(wait=True)
    assert results.num_ranks_done == {1: 1, 2: 1}
    assert results.failures == early.failures
    assert results.times == {}
    assert pool.tolist() == [[1, 1], [1, 1], [0, 0]]


def second_call_fails(device: LateDevice) -> None:
    """The second piece of work for the side stream raises instead of being queued."""
    run, calls = device.side.run, []

    def fail_second(work: Callable[[], None]) -> None:
        calls.append(work)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        run(work)

    device.side.run = fail_second  # type: ignore[method-assign]


def test_a_job_that_raises_half_way_is_told_when_its_copies_have_ended() -> None:
    device = LateDevice(seed=2)
    memory = torch.ones((4, 1, 2))
    pool = torch.zeros((4, 2))
    copier = StagedCopier([memory], pool, [torch.zeros((1, 2))], device.compute, device.side)
    second_call_fails(device)
    copier.start(StepJobs(outs=(an_out(1, (0, 0), (1, 1)), an_out(2, (2, 2)))))
    results = copier.take_results(wait=True)
    assert results.failures == {1: "RuntimeError: out of memory"}
    assert results.num_ranks_done == {1: 1, 2: 1}
    assert pool.tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize("seed", range(8))
def test_a_load_that_raises_half_way_leaves_its_staging_to_nobody_too_early(seed: int) -> None:
    device = LateDevice(seed)
    memory = torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]]])
    pool = torch.tensor([[9.0, 9.0], [0.0, 0.0]])
    copier = StagedCopier([memory], pool, [torch.zeros((1, 2))], device.compute, device.side)
    second_call_fails(device)
    copier.start(StepJobs(ins=(an_in(1, (1, 0)),)))
    copier.start(StepJobs(outs=(an_out(2, (0, 1)),)))
    assert list(copier.take_results(wait=True).failures) == [1]
    assert pool[1].tolist() == [1, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", KVCacheLayout)
def test_on_a_gpu_blocks_return_exactly_while_the_step_overwrites_them(
    layout: KVCacheLayout,
) -> None:
    config = a_config(layout)
    caches = allocate_kv_cache(config, torch.device("cuda"), layout)
    views = block_views(config, caches)
    for view in views:
        view.copy_(torch.randint(0, 1 << 60, view.shape, device="cuda"))
    before = [view.clone() for view in views]
    copier: BlockCopier = make_copier(views, num_slots=6)
    blocks, others = [2, 3, 9, 5], [4, 6, 7, 8]

    copier.start(StepJobs(outs=(an_out(1, *zip(blocks, range(4), strict=True)),)))
    for view in views:
        view[blocks] = 0
    copier.start(StepJobs(ins=(an_in(2, *zip(others, range(4), strict=True)),)))

    results = copier.take_results(wait=True)
    assert results.num_ranks_done == {1: 1, 2: 1}
    assert all(time.seconds > 0 for time in results.times.values())
    for view, was in zip(views, before, strict=True):
        assert torch.equal(view[others], was[blocks])


def test_staging_takes_blocks_of_several_regions_as_the_pool_holds_them() -> None:
    views = [torch.arange(12).view(2, 3, 2).transpose(0, 1), torch.arange(3).view(3, 1, 1)]
    rows = torch.zeros((2, 5), dtype=torch.int64)
    _gather(views, [2, 0], rows)
    assert rows.tolist() == [[4, 5, 10, 11, 2], [0, 1, 6, 7, 0]]
