"""Cutting a session's KV back to a prefix, and reading who holds which block.

An adapter over vLLM's KVCacheManager for models with one KV cache group of
full attention; `require_single_group` refuses others at start-up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request

from prefill_worker.types import BlockLedger


def require_single_group(manager: KVCacheManager) -> FullAttentionManager:
    """The manager of the only KV cache group; raises ValueError if there are others."""
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
    if num_kept == 0:
        # Takes the num_cached_block entry along: left behind, the next prefix
        # hit of this request would trip an assertion of vLLM's.
        manager.free(request)
        return
    manager.block_pool.free_blocks(reversed(blocks[num_kept:]))
    del blocks[num_kept:]
    cached = group.num_cached_block
    cached[request.request_id] = min(cached.get(request.request_id, 0), num_full)


def num_blocks_held(manager: KVCacheManager, request: Request) -> int:
    """Blocks in the request's table."""
    return len(require_single_group(manager).req_to_blocks.get(request.request_id, ()))


def ledger(manager: KVCacheManager, requests: Iterable[Request]) -> BlockLedger:
    """Who of these requests holds which blocks, and all holders of each."""
    group = require_single_group(manager)
    held: dict[str, tuple[int, ...]] = {}
    ref_counts: dict[int, int] = {}
    for request in requests:
        blocks: list[Any] = group.req_to_blocks.get(request.request_id, [])
        held[request.request_id] = tuple(block.block_id for block in blocks)
        ref_counts.update((block.block_id, block.ref_cnt) for block in blocks)
    return BlockLedger(held, ref_counts)
