"""Truncates a session's KV to a prefix, and counts the holders of blocks.

An adapter over vLLM's KVCacheManager for models with one KV cache group of
full attention; `require_single_group` refuses others at start-up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request


def require_single_group(manager: KVCacheManager) -> FullAttentionManager:
    """Returns the manager of the only KV cache group; raises ValueError if there are others."""
    managers = manager.coordinator.single_type_managers
    if len(managers) != 1 or not isinstance(managers[0], FullAttentionManager):
        kinds = ", ".join(type(m).__name__ for m in managers)
        raise ValueError(
            "streaming prefill needs a model with full attention in every layer; "
            f"this one has KV cache groups of {kinds}"
        )
    return managers[0]


def truncate_kv(manager: KVCacheManager, request: Request, num_tokens: int) -> None:
    """Drops the KV behind the first `num_tokens` tokens of the request.

    A partly valid last block stays only if it is private and was never hashed:
    a shared or cached block must keep its content. Otherwise whole blocks only.
    Sets `num_computed_tokens` to what is left, at most `num_tokens`.
    """
    group = require_single_group(manager)
    blocks = group.req_to_blocks.get(request.request_id, [])
    num_full, partial = divmod(num_tokens, group.block_size)
    num_kept = num_full
    if (
        partial
        and num_full < len(blocks)
        and manager.block_pool.is_block_writable(blocks[num_full])
    ):
        num_kept += 1
    else:
        num_tokens = num_full * group.block_size
    request.num_computed_tokens = num_tokens
    drop_blocks(manager, request, num_kept)


def drop_blocks(manager: KVCacheManager, request: Request, num_kept: int) -> None:
    """Frees the request's blocks behind the first `num_kept`."""
    if num_kept == 0:
        # Also removes the num_cached_block entry: left behind, it would trip an assertion
        # of vLLM's at the next prefix hit of this request.
        manager.free(request)
        return
    group = require_single_group(manager)
    blocks = group.req_to_blocks.get(request.request_id, [])
    manager.block_pool.free_blocks(reversed(blocks[num_kept:]))
    del blocks[num_kept:]
    cached = group.num_cached_block
    num_full = request.num_computed_tokens // group.block_size
    cached[request.request_id] = min(cached.get(request.request_id, 0), num_full)


class LiveLedger:
    """Which requests hold which blocks, read from vLLM's tables on demand."""

    def __init__(self, manager: KVCacheManager, requests: Mapping[str, Request]) -> None:
        self._group = require_single_group(manager)
        self._pool = manager.block_pool
        self._requests = requests
        self._manager = manager

    def block_ids(
        self, request_id: str, first: int | None = None, stop: int | None = None
    ) -> list[int]:
        """Returns the blocks [first, stop) of a request, or all; shared ones included."""
        blocks = self._group.req_to_blocks.get(request_id, [])
        return [block.block_id for block in blocks[first:stop]]

    def num_holders(self, block_id: int) -> int:
        """Returns the number of references to a block: requests, leases and all others."""
        count: int = self._pool.blocks[block_id].ref_cnt
        return count

    def num_blocks(self, request_id: str) -> int:
        """Returns the number of blocks that a request holds."""
        return len(self._group.req_to_blocks.get(request_id, ()))

    def block_keys(self, request_id: str, first: int, stop: int) -> list[bytes]:
        """Returns the keys of the request's full blocks [first, stop); none without prefix cache."""
        request = self._requests[request_id]
        # vLLM also hashes blocks for a connector.
        if not self._manager.prefix_cache_lookup_enabled(request):
            return []
        hashes: list[bytes] = request.block_hashes[first:stop]
        return hashes

    def has_hit(self, request_id: str) -> bool:
        """Whether the prefix cache has the block that the request computes next.

        The block of its last token does not count: that token is always computed,
        because nothing could be sampled otherwise.
        """
        request = self._requests[request_id]
        index = request.num_computed_tokens // self._group.block_size
        if (index + 1) * self._group.block_size >= request.num_tokens:
            return False
        keys = self.block_keys(request_id, index, index + 1)
        return bool(keys) and self._pool.get_cached_block(keys[0], [0]) is not None


def check_integrity(manager: KVCacheManager, pinned: Collection[int] = ()) -> None:
    """Raises AssertionError unless every block is accounted for.

    A block has one reference per request that holds it (live, or finished with its
    blocks under a lease), plus one if it is among `pinned`. Blocks without references
    are exactly the free list; the null block is neither.
    """
    pool = manager.block_pool
    holders = Counter(pinned)
    for blocks in require_single_group(manager).req_to_blocks.values():
        holders.update(block.block_id for block in blocks if not block.is_null)
    free = {block.block_id for block in pool.free_block_queue.get_all_free_blocks()}
    assert len(free) == pool.get_num_free_blocks(), "the free list miscounts itself"
    for block in pool.blocks:
        if block.is_null:
            continue
        number, references = block.block_id, block.ref_cnt
        assert references == holders[number], (
            f"block {number} has {references} references and {holders[number]} holders"
        )
        assert (references == 0) == (number in free), f"block {number} is both held and free"
