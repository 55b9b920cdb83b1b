"""Tracks which blocks of which sessions are in the CPU KV offload pool. Pure.

A slot is room for one KV block in host memory, on every rank. A session's copies are
indexed by the block's position in the session's sequence; there may be gaps between
them, from blocks that were dropped instead of copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sortedcontainers import SortedDict


class OffloadPool:
    """The slots, and the sessions' copies in them."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        # Taken from the end: low numbers first.
        self._free = list(range(num_slots - 1, -1, -1))
        # Session to block index to slot.
        self._copies: dict[str, SortedDict[int, int]] = {}
        # Cached results of `next_run`, which is called at each touch.
        self._runs: dict[str, tuple[int, int]] = {}

    @property
    def num_free(self) -> int:
        """Number of unused slots."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Number of slots that hold a copy, or are reserved for a copy under way."""
        return self.num_slots - len(self._free)

    def copies(self, request_id: str) -> Mapping[int, int]:
        """Returns the session's copies as block index to slot."""
        copies: Mapping[int, int] = self._copies.get(request_id, {})
        return copies

    def has_copies(self, request_id: str) -> bool:
        """Whether the pool has any copy of the session."""
        return request_id in self._copies

    def put(self, request_id: str, first_block: int, num_blocks: int) -> tuple[int, ...]:
        """Takes free slots for these blocks of a session, and returns them in the blocks' order."""
        if not num_blocks:
            return ()
        assert num_blocks <= len(self._free), "the plan knew how many slots are free"
        slots = tuple(self._free.pop() for _ in range(num_blocks))
        copies = self._copies.setdefault(request_id, SortedDict())
        stale = [copies[i] for i in range(first_block, first_block + num_blocks) if i in copies]
        self._free.extend(stale)
        copies.update(zip(range(first_block, first_block + num_blocks), slots, strict=True))
        self._changed(request_id)
        return slots

    def take(self, request_id: str, first_block: int, num_blocks: int) -> tuple[int, ...]:
        """Passes the slots of these blocks to the caller, who returns them with `release`."""
        copies = self._copies[request_id]
        slots = tuple(copies.pop(first_block + offset) for offset in range(num_blocks))
        self._changed(request_id)
        return slots

    def release(self, slots: Iterable[int]) -> None:
        """Returns slots that the caller has had from `take`."""
        self._free.extend(slots)

    def next_run(self, request_id: str) -> tuple[int, int]:
        """Returns the session's first consecutive blocks in the pool as [start, stop)."""
        if request_id not in self._copies:
            return 0, 0
        run = self._runs.get(request_id)
        if run is None:
            run = self._runs[request_id] = self._find_run(request_id)
        return run

    def _find_run(self, request_id: str) -> tuple[int, int]:
        copies = self._copies[request_id]
        start: int = copies.peekitem(0)[0]
        stop = start
        for index in copies:
            if index != stop:
                break
            stop += 1
        return start, stop

    def drop_before(self, request_id: str, block: int) -> None:
        """Drops copies of blocks before `block`, which are computed now."""
        copies = self._copies.get(request_id)
        if copies is not None:
            before = len(copies)
            while copies and copies.peekitem(0)[0] < block:
                self._free.append(copies.popitem(0)[1])
            if len(copies) < before:
                self._changed(request_id)

    def drop_from(self, request_id: str, block: int) -> int:
        """Drops copies from `block` on, which are invalid now; returns how many there were."""
        copies = self._copies.get(request_id)
        if copies is None:
            return 0
        before = len(copies)
        while copies and copies.peekitem(-1)[0] >= block:
            self._free.append(copies.popitem(-1)[1])
        num_dropped = before - len(copies)
        self._changed(request_id)
        return num_dropped

    def lose(self, request_id: str, blocks: Sequence[tuple[int, int]]) -> int:
        """Drops (block, slot) pairs that hold no KV; returns how many were still in use."""
        copies = self._copies.get(request_id, {})
        lost = [(index, slot) for index, slot in blocks if copies.get(index) == slot]
        for index, slot in lost:
            del copies[index]
            self._free.append(slot)
        if lost:
            self._changed(request_id)
        return len(lost)

    def forget(self, request_id: str) -> None:
        """Drops everything of an ended session."""
        self._free.extend(self._copies.pop(request_id, {}).values())
        self._runs.pop(request_id, None)

    def _changed(self, request_id: str) -> None:
        """Invalidates what is cached of the session's copies."""
        self._runs.pop(request_id, None)
        if not self._copies[request_id]:
            del self._copies[request_id]

    def check_integrity(self, taken: Sequence[int]) -> None:
        """Raises AssertionError unless each slot is free, a session's, or `taken`, exactly once."""
        held = [slot for copies in self._copies.values() for slot in copies.values()]
        everything = sorted([*self._free, *held, *taken])
        assert everything == list(range(self.num_slots)), f"slots: {everything}"
        assert all(self._copies.values()), "an empty entry is kept"
        assert all(run == self._find_run(each) for each, run in self._runs.items())

    def sessions(self) -> set[str]:
        """Returns the sessions that have copies."""
        return set(self._copies)
