"""What a router knows of a cache is what the cache has, whatever changes, also for a slow reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.cached_blocks import BlockFormat, CachedBlocks
from stream2llm.engine.cache_log import BlockCounts, CacheLog
from stream2llm.serving.sessions.block_hashes import from_wire

pytestmark = pytest.mark.property

FORMAT = BlockFormat(16, b"root")
HASHES = st.integers(1, 12)
# A step adds blocks, and removes some of those that are there.
STEPS = st.lists(
    st.tuples(st.lists(HASHES, max_size=5), st.lists(st.integers(0, 50), max_size=5)),
    max_size=20,
)


class Reader:
    """A router that reads a worker's log, as the RPC lets it."""

    def __init__(self) -> None:
        self.cached, self._version = CachedBlocks(), -1

    def read(self, log: CacheLog) -> None:
        changes, self._version = log.since(self._version), log.version
        if changes is None:
            self.cached.begin("w", FORMAT, 100)
            self.cached.change("w", log.held, ())
        for each in changes or ():
            added, removed = from_wire(each.added, "added"), from_wire(each.removed, "removed")
            self.cached.change("w", added, removed)

    def knows(self) -> set[int]:
        return {each for each in range(13) if self.cached.cached_blocks(FORMAT, [each])}


@given(STEPS, st.sets(st.integers(0, 19)), st.sets(st.integers(0, 19)))
def test_readers_know_what_the_cache_has(
    steps: list[tuple[list[int], list[int]]], clears: set[int], pauses: set[int]
) -> None:
    counts, log = BlockCounts(), CacheLog(max_logged_hashes=8)
    quick, slow, blocks = Reader(), Reader(), list[int]()
    for number, (added, picks) in enumerate(steps):
        if number in clears:
            counts.clear()
            blocks.clear()
        removed = [blocks.pop(pick % len(blocks)) for pick in picks if blocks]
        counts.remove(removed)
        counts.add(added)
        blocks += added
        change = counts.take()
        if change is not None:
            log.apply(change)
        assert log.held == set(blocks)
        quick.read(log)
        assert quick.knows() == set(blocks)
        if number not in pauses:
            slow.read(log)
            assert slow.knows() == set(blocks)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 40))
def test_the_leading_blocks_are_counted(held: list[int], num_blocks: int) -> None:
    cached = CachedBlocks()
    for index, num_held in enumerate(held):
        cached.begin(f"w{index}", FORMAT, 100)
        cached.change(f"w{index}", range(1000, 1000 + num_held), ())
    found = cached.cached_blocks(FORMAT, range(1000, 1000 + num_blocks))
    assert found == {f"w{i}": min(n, num_blocks) for i, n in enumerate(held) if n}
    assert cached.cached_blocks(BlockFormat(32, b"root"), range(1000, 1040)) == {}


def test_what_was_sent_counts_until_the_worker_has_told_or_the_session_ends() -> None:
    cached = CachedBlocks()
    cached.sent("w", [1])
    assert cached.cached_blocks(FORMAT, [1]) == {}, "it has told nothing"
    cached.begin("w", FORMAT, max_blocks=3)
    cached.sent("w", [1, 2, 3])
    assert cached.cached_blocks(FORMAT, [1, 2, 3, 4]) == {"w": 3}
    assert cached.num_told("w") == 0
    cached.change("w", [1], ())
    cached.ended("w", [1, 2, 3])
    assert cached.cached_blocks(FORMAT, [1, 2, 3]) == {"w": 1}
    cached.sent("w", [11, 12, 13, 14])
    assert cached.cached_blocks(FORMAT, [11]) == {}, "no more is kept than the worker can hold"
    cached.begin("w", FORMAT, max_blocks=3)
    assert cached.cached_blocks(FORMAT, [12, 13, 14]) == {"w": 3}
    assert cached.num_told("w") == 0
    cached.forget("w")
    assert cached.cached_blocks(FORMAT, [12]) == {}
