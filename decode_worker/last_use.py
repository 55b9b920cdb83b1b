"""Records when each KV block was last used, which vLLM does not.

A block is in use while a request holds it; its last use is when the last holder
frees it. vLLM keeps free blocks in the order in which it takes them, and frees
them in one method, which is hooked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vllm.v1.core.block_pool import BlockPool


class LastUse:
    """Watches one block pool from its construction on."""

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
