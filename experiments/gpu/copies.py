"""The pinned pool, and copies of KV blocks beside a step: with torch alone.

Blocks have the size of Llama 3.1 8B's in bfloat16, 16 tokens: 64 parts (keys and values of each
layer) of 32 KiB. Copier, streams and pool are a prefill worker's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from prefill_worker.block_copy import BlockCopier, make_copier
from prefill_worker.swap_jobs import CopyJob, Direction, StepJobs
from stream2llm.serving.system.clock import SystemClock

NUM_PARTS, PART_WORDS = 64, 4096  # words of 8 bytes
BLOCK_BYTES = NUM_PARTS * PART_WORDS * 8
_GIB = 2**30
_CLOCK = SystemClock()
_ROUNDS = 7

Figures = dict[str, float | str]


def some_blocks(num_blocks: int, device: str) -> torch.Tensor:
    """Returns a view [num_blocks, NUM_PARTS, PART_WORDS] as the swap connector has it, full of random words."""
    shape = (NUM_PARTS, num_blocks, PART_WORDS)
    return torch.randint(0, 1 << 60, shape, device=device).transpose(0, 1)


def jobs(direction: Direction, blocks: Sequence[int], slots: Sequence[int]) -> StepJobs:
    """Returns the one job of a step."""
    job = CopyJob(1, direction, tuple(blocks), tuple(slots))
    return StepJobs(outs=(job,)) if direction is Direction.OUT else StepJobs(ins=(job,))


def pool(device: str = "cuda", sizes_gib: Sequence[float] = (0.25, 1, 4)) -> Figures:
    """Seconds to allocate and pin pools of these sizes."""
    found: Figures = {}
    views = [some_blocks(2, device)]
    for size in sizes_gib:
        began_s = _CLOCK.monotonic_s()
        copier = make_copier(views, int(size * _GIB / BLOCK_BYTES))
        found[f"{size:g} GiB, s"] = _CLOCK.monotonic_s() - began_s
        del copier
    return found


def copies(device: str = "cuda", num_blocks: int = 512) -> Figures:
    """Blocks come back exactly; GB/s of scattered blocks out and back, by number of blocks."""
    view = some_blocks(num_blocks, device)
    copier = make_copier([view], num_blocks // 2)
    require_exact(view, copier, num_blocks // 4)
    found: Figures = {}
    for count in [each for each in (1, 8, 64, num_blocks // 2) if each <= num_blocks // 2]:
        for direction in Direction:
            seconds = median_s(copier, direction, num_blocks, count)
            found[f"{direction} {count} blocks, GB/s"] = count * BLOCK_BYTES / seconds / 1e9
    return found


def require_exact(view: torch.Tensor, copier: BlockCopier, count: int) -> None:
    """Raises AssertionError unless blocks go out as they were before the step, and come back so."""
    numbers = random.Random(0).sample(range(view.shape[0]), 2 * count)
    blocks, others, slots = numbers[:count], numbers[count:], range(count)
    before = view[blocks].clone()
    copier.start(jobs(Direction.OUT, blocks, slots))
    view[blocks] = 0  # the step, queued behind
    copier.start(jobs(Direction.IN, others, slots))
    results = copier.take_results(wait=True)
    assert not results.failures, results.failures
    assert torch.equal(view[others], before), "blocks came back with other bytes"
    assert not view[blocks].any(), "a copy touched blocks that it was not asked for"


def median_s(copier: BlockCopier, direction: Direction, num_blocks: int, count: int) -> float:
    """Returns the seconds of a batch, as the copier reports them."""
    rng = random.Random(count)
    times = []
    for _ in range(_ROUNDS):
        blocks, slots = (
            rng.sample(range(num_blocks), count),
            rng.sample(range(num_blocks // 2), count),
        )
        copier.start(jobs(direction, blocks, slots))
        (time,) = copier.take_results(wait=True).times.values()
        times.append(time.seconds)
    return sorted(times)[_ROUNDS // 2]


def streams(num_blocks: int = 512) -> Figures:
    """A step of matrix products, copies out of as many seconds or so, and both at once."""
    view = some_blocks(num_blocks, "cuda")
    copier = make_copier([view], num_blocks // 2)
    count = num_blocks // 2
    copy_s = median_s(copier, Direction.OUT, num_blocks, count)
    matrix = torch.randn((8192, 8192), device="cuda", dtype=torch.bfloat16)
    one_s = _timed_s(lambda: _products(matrix, 4)) / 4
    num_products = max(round(copy_s / one_s), 1)
    step_s = _timed_s(lambda: _products(matrix, num_products))

    def both() -> None:
        copier.start(jobs(Direction.OUT, range(count), range(count)))
        _products(matrix, num_products)
        copier.take_results(wait=True)

    both_s = _timed_s(both)
    hidden = (step_s + copy_s - both_s) / min(step_s, copy_s)
    return {
        "step alone, ms": 1e3 * step_s,
        "copies alone, ms": 1e3 * copy_s,
        "both at once, ms": 1e3 * both_s,
        "share of the shorter one that is hidden": hidden,
    }


def _products(matrix: torch.Tensor, count: int) -> None:
    for _ in range(count):
        torch.mm(matrix, matrix)


def _timed_s(work: object) -> float:
    assert callable(work)
    times = []
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        began_s = _CLOCK.monotonic_s()
        work()
        torch.cuda.synchronize()
        times.append(_CLOCK.monotonic_s() - began_s)
    return sorted(times)[_ROUNDS // 2]
