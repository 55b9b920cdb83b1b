"""Carries out the preemptions of a plan: evicts KV, copies it to the host, and restores it.

KV that an eviction copied to the host is restored in a step in which its session is
not in the base class's queues: it gets blocks, which count as computed once the
workers report that the copies are done (swapping.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.engine import EngineCoreEventType
from vllm.v1.request import Request

from prefill_worker.blocks import truncate_kv
from prefill_worker.live_sessions import LiveSessions
from prefill_worker.prefix_hits import PrefixHits
from prefill_worker.progress_reporting import LiveSession
from prefill_worker.report import SchedulerCounters
from prefill_worker.request_tokens import announce_anew
from prefill_worker.types import Eviction, Load


@dataclass(frozen=True, slots=True)
class Preempting:
    """Takes KV from sessions and gives it back."""

    sessions: LiveSessions
    manager: KVCacheManager
    hits: PrefixHits
    counters: SchedulerCounters
    # In tokens.
    block_size: int
    hash_block_size: int
    now_s: Callable[[], float]
    # Whether requests collect events for vLLM's statistics.
    records_events: bool

    def evict(self, eviction: Eviction) -> Request:
        """Evicts a session's tail, or copies it to the host; returns the session's request."""
        live = self.sessions[eviction.request_id]
        request, swapping = live.request, self.sessions.swapping
        self.sessions.table.note_eviction(
            request.request_id, self.hits.num_used_tokens(request.request_id)
        )
        num_kept_tokens = eviction.num_blocks_kept * self.block_size
        live.remember_lost(num_kept_tokens, self.hash_block_size)
        self.counters.count_preemption(eviction.swap)
        swapping.calibration.trials.note(eviction.swap)
        if eviction.swap.num_blocks:
            block_ids = self.sessions.ledger.block_ids(request.request_id)
            swapping.swap_out(request.request_id, block_ids, eviction.swap)
        truncate_kv(self.manager, request, num_kept_tokens)
        request.num_preemptions += 1
        announce_anew(request)
        if self.records_events:
            request.record_event(EngineCoreEventType.PREEMPTED, self.now_s())
        self.sessions.touch(live)
        return request

    def load(self, load: Load) -> None:
        """Starts copying KV back. The session computes nothing until that has ended."""
        live = self.sessions[load.request_id]
        self.sessions.swapping.load(live.request, load)
        self.sessions.touch(live)

    def end_jobs(self) -> None:
        """Resumes sessions whose KV was restored; KV of failed copies is computed again."""
        swapping = self.sessions.swapping
        num_pending = swapping.num_pending
        ended = swapping.take_ended()
        for request_id, num_computed_tokens in ended.restored:
            self._restore(self.sessions[request_id], num_computed_tokens)
        for request_id in ended.not_restored:
            request = self.sessions[request_id].request
            truncate_kv(self.manager, request, request.num_computed_tokens)
        for request_id in (*dict(ended.restored), *ended.not_restored, *ended.not_saved):
            self.sessions.touch(self.sessions[request_id])
        if swapping.num_pending < num_pending:
            self.sessions.table.note_freed()

    def _restore(self, live: LiveSession, num_computed_tokens: int) -> None:
        """Sets the session's computed tokens after its KV was restored."""
        request = live.request
        num_before = request.num_computed_tokens
        self.counters.restored_tokens += num_computed_tokens - num_before
        live.state.restored += num_computed_tokens - num_before
        self.sessions.digests.restored(request.request_id, num_before, num_computed_tokens)
        request.num_computed_tokens = num_computed_tokens
        self.manager.cache_blocks(request, num_computed_tokens)
        announce_anew(request)  # the worker process does not know its new blocks
