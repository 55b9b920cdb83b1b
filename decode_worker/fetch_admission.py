"""Admission of KV prefetches: `room` and `pace` decide, by vLLM's present state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import Request

from decode_worker.fetch_orders import FetchOrder
from decode_worker.pace import FetchPace
from decode_worker.room import Room, RoomView, room_for

# A fetch that cannot begin within this time is refused: prefill holds its blocks meanwhile.
MAX_WAIT_S = 1.0
# Blocks that a running answer may need while a fetch lasts.
_BLOCKS_PER_ANSWER = 2
# Share of all blocks that is kept free as well.
_RESERVED_SHARE = 1 / 32


class LastUse:
    """Watches one block pool from its construction on, and records when each block was last used.

    A block is in use while a request holds it; its last use is when the last holder
    frees it. vLLM keeps free blocks in the order in which it takes them, and frees
    them in one method, which is hooked here.
    """

    def __init__(self, pool: BlockPool, now_s: Callable[[], float]) -> None:
        self._pool = pool
        self._now_s = now_s
        # Seconds of the caller's clock, by block id.
        self._freed_s = [float("-inf")] * len(pool.blocks)
        self._free_blocks = pool.free_blocks
        pool.free_blocks = self._note_and_free

    def _note_and_free(self, ordered_blocks: Iterable[Any]) -> None:
        blocks, now_s = list(ordered_blocks), self._now_s()
        for block in blocks:
            self._freed_s[block.block_id] = now_s
        self._free_blocks(blocks)

    def num_yielding(self, since_s: float, at_most: int, leaving_out: set[int]) -> int:
        """Counts free blocks, in the order they are taken, that were not used after `since_s`.

        Counts up to the first block that was, and up to `at_most`; cached blocks
        among `leaving_out` are not taken, and not counted.
        """
        count = 0
        for block in self._in_order():
            if count >= at_most:
                break
            if block.block_id in leaving_out:
                continue
            if block.block_hash is not None and self._freed_s[block.block_id] > since_s:
                break
            count += 1
        return count

    def _in_order(self) -> Iterator[Any]:
        queue = self._pool.free_block_queue
        block = queue.fake_free_list_head.next_free_block
        while block is not None and block is not queue.fake_free_list_tail:
            yield block
            block = block.next_free_block


@dataclass(slots=True)
class Fetch:
    """A fetch that the scheduler has and that has not ended."""

    request: Request
    order: FetchOrder
    arrived_s: float
    # Set when the base class has taken it: blocks are allocated, the read is under way.
    began_s: float | None = None
    # Blocks that the prefix cache does not have.
    num_blocks: int = 0


class FetchAdmission:
    """The memory and the decode time that fetches may take."""

    def __init__(
        self, manager: KVCacheManager, max_share: float, now_s: Callable[[], float]
    ) -> None:
        """`max_share` is the share of decode time that fetches may take, 0 to 1."""
        self._manager = manager
        self._last_use = LastUse(manager.block_pool, now_s)
        self.pace = FetchPace(max_share)

    def has_time(self, now_s: float, num_decoding: int, *, is_reading: bool) -> bool:
        """Returns whether the pace allows a fetch now; one runs at a time beside answers."""
        if num_decoding and is_reading:
            return False
        return self.pace.may_begin(now_s, num_decoding)

    def room_for(self, fetch: Fetch, num_running: int, num_prefill_reserved: int) -> Room:
        """Returns whether there is room beside so many answers; sets the fetch's `num_blocks`.

        `num_prefill_reserved`: blocks that the base class keeps for prompts under way.
        """
        if not self._can_fetch:
            return Room.NO_MEMORY
        hits = self._manager.get_computed_blocks(fetch.request)[0].blocks[0]
        free_hits = {block.block_id for block in hits if not block.ref_cnt}
        pool = self._manager.block_pool
        num_reserved = num_running * _BLOCKS_PER_ANSWER + num_prefill_reserved
        num_reserved += int(len(pool.blocks) * _RESERVED_SHARE)
        fetch.num_blocks = fetch.order.num_blocks - len(hits)
        return room_for(
            RoomView(
                num_missing=fetch.num_blocks,
                num_free=pool.get_num_free_blocks(),
                num_free_hits=len(free_hits),
                num_reserved=num_reserved,
                num_yielding=self._last_use.num_yielding(
                    fetch.order.since_s, fetch.num_blocks, free_hits
                ),
            )
        )

    @property
    def _can_fetch(self) -> bool:
        """Whether the prefix cache is on and can find fetched blocks again."""
        groups = self._manager.kv_cache_config.kv_cache_groups
        is_plain = len(groups) == 1 and isinstance(groups[0].kv_cache_spec, FullAttentionSpec)
        return is_plain and self._manager.enable_caching
