"""Gives sessions their prefix cache hits before a step is planned.

Other sessions may have computed the same documents, or this session before it lost
them.
"""

from __future__ import annotations

import logging

from vllm.v1.core.kv_cache_manager import KVCacheManager

from prefill_worker.progress_reporting import LiveSession
from prefill_worker.report import SchedulerCounters
from prefill_worker.request_tokens import announce_anew

_log = logging.getLogger(__name__)


class PrefixHits:
    """Gives sessions the blocks of hits, and counts which session had computed them."""

    def __init__(
        self, manager: KVCacheManager, counters: SchedulerCounters, hash_block_size: int
    ) -> None:
        self._manager = manager
        self._hash_block_size = hash_block_size
        self._counters = counters
        # Sessions that took a hit for the step being built, with the number of tokens
        # they had computed before.
        self._adopters: dict[str, int] = {}

    def begin_step(self) -> None:
        """Forgets earlier hits, which a step has used by now."""
        self._adopters.clear()

    def num_used_tokens(self, request_id: str) -> int | None:
        """Number of tokens whose KV a step has used, if the session took a hit since then."""
        return self._adopters.get(request_id)

    def adopt(self, live: LiveSession) -> bool:
        """Gives the session the cached blocks beyond its computed tokens; returns whether any."""
        request = live.request
        cached, num_tokens, _ = self._manager.get_computed_blocks(request)
        if num_tokens <= request.num_computed_tokens:
            # Should not happen; the session must not wait for a hit that it cannot take.
            _log.error("a hit of %s has no tokens", request.request_id)
            request.skip_reading_prefix_cache = True
            return False
        self._count(live, num_tokens)
        self._adopters.setdefault(request.request_id, request.num_computed_tokens)
        # Its own cached blocks are among the hits; its other blocks cover fewer tokens
        # than the hits.
        self._manager.free(request)
        request.num_computed_tokens = 0
        allocated = self._manager.allocate_slots(
            request, 0, num_new_computed_tokens=num_tokens, new_computed_blocks=cached
        )
        assert allocated is not None, "cached blocks need no free block"
        self._manager.record_prefix_cache_stats(request, num_tokens)
        if request.prefill_stats is not None and not request.num_preemptions:
            request.prefill_stats.set(request.num_prompt_tokens, num_tokens, 0)
        request.num_computed_tokens = num_tokens
        announce_anew(request)  # its blocks have changed
        return True

    def _count(self, live: LiveSession, num_cached_tokens: int) -> None:
        """Counts a hit by the session that had computed it."""
        request, size = live.request, self._hash_block_size
        num_gained = num_cached_tokens - request.num_computed_tokens
        first = request.num_computed_tokens // size
        found = request.block_hashes[first : num_cached_tokens // size]
        num_own = min(live.state.lost_blocks.count(found) * size, num_gained)
        live.state.reused += num_gained
        self._counters.reused_within_session_tokens += num_own
        self._counters.reused_across_sessions_tokens += num_gained - num_own
