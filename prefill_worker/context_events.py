"""Carries out context events on vLLM's requests: begins, splices and seals sessions.

The sequence is spliced, KV behind the longest common prefix (LCP) is dropped, and the request
returns to WAITING, because only a request that is announced anew brings the worker process its
new tokens. It keeps its blocks. The seal of a session with a structured output waits for its
grammar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.request import Request, RequestStatus

from prefill_worker.blocks import truncate_kv
from prefill_worker.live_sessions import LiveSessions
from prefill_worker.progress_reporting import LiveSession
from prefill_worker.report import SchedulerCounters
from prefill_worker.request_tokens import replace_tail
from prefill_worker.session_state import ContextEvent
from stream2llm.api.tenant import ONE_TENANT
from stream2llm.serving.sessions.prefix import common_prefix_len


@dataclass(slots=True)
class ContextEvents:
    """Changes sessions as their events say, and holds back seals."""

    sessions: LiveSessions
    manager: KVCacheManager
    counters: SchedulerCounters
    # In tokens.
    block_size: int
    hash_block_size: int
    # Whether the request's grammar is still being compiled.
    is_compiling: Callable[[str], bool]
    # Gives the request's automaton the grammar, which is there.
    take_up_grammar: Callable[[Request], None]
    # By request id: seals of sessions whose grammar is still being compiled, and the
    # deadline of each first token.
    _held_seals: dict[str, tuple[Request, int]] = field(default_factory=dict)

    def begin(self, request: Request, event: ContextEvent | None) -> None:
        """Begins a session; an ordinary request is one that is sealed from the start."""
        is_sealed = event.seal if event else True
        deadline_ms = event.deadline_ms if event else 0
        is_held = is_sealed and self.is_compiling(request.request_id)
        if is_held:
            self._held_seals[request.request_id] = request, deadline_ms
        # It may be computed without its grammar.
        request.status = RequestStatus.WAITING
        state = self.sessions.table.open(
            request.request_id,
            revision=event.revision if event else 1,
            sealed=is_sealed and not is_held,
            ttft_slo_ms=event.ttft_slo_ms if event else 0,
            deadline_ms=deadline_ms,
            tenant=event.tenant if event else ONE_TENANT,
        )
        state.uncomputed_at_seal = request.num_tokens
        self.sessions.begin(request, state, event.stable_tokens if event else 0)

    def apply(self, live: LiveSession, update: Request, event: ContextEvent) -> None:
        """Applies an event of a live session, whose new tokens are the prompt of `update`."""
        num_same = self._splice(live, update.prompt_token_ids or [], event.keep_tokens)
        self.sessions.offering.spliced(live.request.request_id, num_same, event.stable_tokens)
        live.state.revision = event.revision
        if event.seal:
            self._seal_or_hold(live, update, event.deadline_ms)
        # Only a request that is announced as new brings the worker process its new
        # tokens, so it has to be WAITING, whatever its status was.
        live.request.status = RequestStatus.WAITING
        self.sessions.touch(live)

    def _splice(self, live: LiveSession, tail: list[int], keep_tokens: int) -> int:
        """Makes the sequence `old[:keep_tokens] + tail`; returns the common prefix's length."""
        request = live.request
        old = request._all_token_ids
        assert keep_tokens <= len(old)
        num_same = keep_tokens + common_prefix_len(old, tail, old_start=keep_tokens)
        is_replaced = num_same < len(old)
        self.sessions.table.note_event(request.request_id, num_same)
        if num_same < request.num_computed_tokens:
            self._invalidate(live, num_same)
        replace_tail(request, num_same, tail[num_same - keep_tokens :], self.hash_block_size)
        # At least one token stays uncomputed, because the seal could not sample otherwise.
        valid = min(num_same, max(request.num_tokens - 1, 0))
        self._cut_copies(live, valid)
        if request.num_computed_tokens > valid:
            truncate_kv(self.manager, request, valid)
        if is_replaced:
            self.counters.reused_within_session_tokens += request.num_computed_tokens
        return num_same

    def _cut_copies(self, live: LiveSession, num_valid_tokens: int) -> None:
        """Drops KV on the host behind the first `num_valid_tokens` tokens."""
        num_blocks = self.sessions.swapping.cut(live.request, num_valid_tokens)
        self.counters.invalidated_tokens += num_blocks * self.block_size
        live.state.invalidated += num_blocks * self.block_size

    def _invalidate(self, live: LiveSession, num_same: int) -> None:
        """Counts the computed tokens that an event invalidates."""
        num_lost = live.request.num_computed_tokens - num_same
        self.counters.invalidated_tokens += num_lost
        live.state.invalidated += num_lost
        live.remember_lost(num_same, self.hash_block_size)

    def _seal_or_hold(self, live: LiveSession, update: Request, deadline_ms: int) -> None:
        """Seals the session, once its grammar is there: the seal lets it sample.

        Until then all but its last token is computed, as of an open session.
        """
        request = live.request
        live.state.uncomputed_at_seal = request.num_tokens - request.num_computed_tokens
        if self.is_compiling(request.request_id):
            self._held_seals[request.request_id] = update, deadline_ms
        else:
            self._seal(live, update, deadline_ms)

    def _seal(self, live: LiveSession, update: Request, deadline_ms: int) -> None:
        request = live.request
        request.sampling_params = update.sampling_params
        request.kv_transfer_params = update.kv_transfer_params
        request.max_tokens = update.max_tokens
        if request.use_structured_output:
            self.take_up_grammar(request)
        self.sessions.table.seal(live.state, request.num_tokens, deadline_ms)

    def grammar_compiled(self, request_id: str) -> None:
        """Applies the seal that has waited for the grammar, if there is one."""
        held = self._held_seals.pop(request_id, None)
        if held is not None:
            live = self.sessions[request_id]
            self._seal(live, *held)
            live.request.status = RequestStatus.WAITING  # to be announced anew, as after an event
            self.sessions.touch(live)

    def forget(self, request_id: str) -> None:
        """Removes a session that has ended, and the seal that it waits for."""
        self._held_seals.pop(request_id, None)
        self.sessions.forget(request_id)
