"""Phase 2 of two-phase scheduling: vLLM's scheduler, made to follow our plan.

Between steps the base class has no request in its queues. In each step, phase 1
(`SessionTable.plan`) decides who computes how much and who is evicted. The scheduler
then evicts, adds only the chosen requests to the base class's queues, caps each at its
grant, and lets the base class allocate and build the step as always; so all of vLLM
(prefix cache, connectors, sampling) keeps working, and none of its code is copied.

Life of a session's request:
 1. `add_request` with a new id: a session begins (an ordinary request is a session
    that is sealed from the start).
 2. `add_request` with a known id: a context event. The sequence is spliced, KV behind
    the longest common prefix (LCP) is dropped, and the request returns to WAITING, because only a
    request that is announced anew brings the worker process its new tokens. It keeps
    its blocks.
 3. Steps compute up to the target; the last token of an open session is held back, so
    nothing is sampled before the seal.
 4. The step that computes the last token of a sealed session samples the first token
    of the answer. The base class finishes the request and hands its blocks to the KV
    connector. The seal of a session with a structured output waits for its grammar.

KV that an eviction copied to the host is restored in a step in which its session is
not in the base class's queues: it gets blocks, which count as computed once the
workers report that the copies are done (swapping.py).

Every change to a session ends in `_touch`, which updates the session table: a step
costs in proportion to what it touches, not to the number of sessions.

Runs inside vLLM's EngineCore process. `Scheduler` is not a public interface of
vLLM: tests/integration/test_vllm_contract.py lists what is used of it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from cost_profiles.correction import CorrectedCostModel
from cost_profiles.decision import Mode
from prefill_worker import blocks
from prefill_worker.blocks import truncate_kv
from prefill_worker.costs import costs_for
from prefill_worker.digests import BlockDigests, Written
from prefill_worker.nixl_connector import STEP, NixlConnector
from prefill_worker.offering import Offering, with_deadline
from prefill_worker.offers import OfferLimits, OfferTable
from prefill_worker.policy import POLICIES, Policy
from prefill_worker.policy_loading import Guard, find_policies
from prefill_worker.preemption import Preemption
from prefill_worker.prefix_hits import PrefixHits
from prefill_worker.progress_reporting import LiveSession, ProgressReporting
from prefill_worker.report import SchedulerCommand, SchedulerCounters
from prefill_worker.reporting import Reporting
from prefill_worker.request_tokens import event_or_command, replace_tail
from prefill_worker.session_state import ContextEvent
from prefill_worker.session_table import SessionTable
from prefill_worker.settings import require_settings
from prefill_worker.swap_connector import SwapConnector, find_connector
from prefill_worker.swapping import NoCopier, Swapping
from prefill_worker.types import Eviction, Load, StepLimits, StepPlan, StopReason
from stream2llm.api.errors import describe
from stream2llm.api.tenant import ONE_TENANT
from stream2llm.engine.grammar_scheduling import StructuredOutputMixin
from stream2llm.engine.grammar_state import is_grammar_order, take_up
from stream2llm.engine.kv_digest import DIGEST_KEY, combine
from stream2llm.engine.kv_sampling import find_samples
from stream2llm.engine.orphan_guard import exit_with_parent
from stream2llm.engine.timed_steps import TimedSteps
from stream2llm.serving.observability import logs
from stream2llm.serving.sessions.prefix import common_prefix_len
from stream2llm.serving.settings.worker_options import DEFAULT_POLICY, WorkerOptions
from stream2llm.serving.system.clock import SystemClock

_log = logging.getLogger(__name__)

_STAND_IN = POLICIES[DEFAULT_POLICY]
# Longest part of foreign code's error message in reports.
_MAX_FAILURE_CHARS = 500


class PrefillScheduler(StructuredOutputMixin, TimedSteps, Scheduler):
    """The scheduler of a prefill worker's engine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = WorkerOptions.from_additional_config(self.vllm_config.additional_config)
        logs.configure_child(options.logs)
        exit_with_parent()
        require_settings(self.vllm_config)
        self._options = options.prefill
        self._clock = SystemClock()
        self._ledger = blocks.LiveLedger(self.kv_cache_manager, self.requests)
        self._policies = find_policies(self._options.import_paths)
        self._policy_guard = Guard()
        # What the policy raised that was replaced; "" while the chosen one ranks.
        self._policy_failure = ""
        self._table = SessionTable(
            self._guarded(self._options.policy),
            starvation_guard_steps=self._options.starvation_guard_steps,
            num_lost_blocks=len(self.kv_cache_manager.block_pool.blocks),
            compute_s=lambda start, stop: self.swapping.costs.recompute_s(start, stop),
        )
        # The baseline of benchmarks.
        self._evicts_whole_requests = False
        self._counters = SchedulerCounters()
        self._mode = self._options.preemption
        self.swapping = self._create_swapping()
        self._nixl = find_connector(self.connector, NixlConnector)
        # None: hand-overs have no digests.
        self._digests = self._create_digests()
        # Start of the step under way, and the tokens that it computes.
        self._step_began_s = 0.0
        self._step_ranges: list[tuple[int, int]] = []
        self.offering = self._create_offering(options.handover.min_offer_tokens)
        self._reporting = Reporting()
        self._progress_reporting = ProgressReporting(self._options.progress_interval_tokens)
        self._live: dict[str, LiveSession] = {}
        # By request id: seals of sessions whose grammar is still being compiled, and the
        # deadline of each first token.
        self._held_seals: dict[str, tuple[Request, int]] = {}
        # Tokens granted in the step being built.
        self._grants: dict[str, int] = {}
        self._hits = PrefixHits(self.kv_cache_manager, self._counters, self.hash_block_size)
        self._num_missed_plans = 0
        # The last plan ended for lack of blocks.
        self._is_short_of_blocks = False

    def _create_swapping(self) -> Swapping:
        connector = find_connector(self.connector, SwapConnector)
        return Swapping(
            self.kv_cache_manager,
            connector or NoCopier(),
            costs_for(self.vllm_config, self._options.cost_profile or ""),
            self._counters,
            num_ranks=connector.num_ranks if connector else 1,
            copies_block=current_platform.is_cpu(),
        )

    def _create_offering(self, min_tokens: int) -> Offering:
        num_blocks = len(self.kv_cache_manager.block_pool.blocks)
        limits = OfferLimits(self.block_size, min_tokens=min_tokens, max_pinned_blocks=num_blocks)
        nixl = self._nixl
        lease_s = nixl.connector_scheduler._kv_lease_duration if nixl else 0
        return Offering(
            self.kv_cache_manager,
            nixl,
            OfferTable(limits, lease_s),
            self._digests,
            self._clock.monotonic_s,
        )

    def _create_digests(self) -> BlockDigests | None:
        if self._nixl is None:
            return None
        return BlockDigests(self.block_size) if self._nixl.has_digests else None

    def preempt_by(self, mode: str, costs: CorrectedCostModel | None = None) -> None:
        """Changes mode and costs from the next step on; for benchmarks and tests."""
        self._mode = Mode(mode)
        if costs is not None:
            self.swapping.costs = costs

    def set_digests(self, *, are_on: bool) -> None:
        """Samples blocks from the next step on, or does not; for benchmarks."""
        self._digests = self._create_digests() if are_on else None

    @property
    def counters(self) -> SchedulerCounters:
        """Counts since the engine started."""
        return self._counters

    def has_work(self, request_id: str) -> bool:
        """Whether a live session has tokens to compute."""
        return self._table.has_work(request_id)

    # -- requests, context events and commands --------------------------------

    def add_request(self, request: Request) -> None:
        """Takes a new session, an event of a known one, or a command.

        A request that cannot be handled ends its own session only.
        """
        try:
            self._add(request)
        except Exception as error:
            self.end_failed(request, error)

    def _add(self, request: Request) -> None:
        event = event_or_command(request)
        live = self._live.get(request.request_id)
        if is_grammar_order(request):
            super().add_request(request)
        elif isinstance(event, SchedulerCommand):
            self._carry_out(request, event)
        elif live is not None:
            assert event is not None, f"duplicate request id {request.request_id}"
            self._apply_event(live, request, event)
        elif event is None or event.begins:
            self._begin(request, event)

    def _carry_out(self, request: Request, command: SchedulerCommand) -> None:
        self._reporting.open(request.request_id, request.client_index, command.number)
        if command.set_policy is not None:
            self.set_policy(command.set_policy)

    def set_policy(self, name: str) -> None:
        """Ranks all sessions by another policy from the next step on; none is lost."""
        if name not in self._policies:
            # The sender has checked the name; an unknown one is not worth ending the engine.
            _log.error("unknown policy %r; %s stays", name, self._table.policy.name)
            return
        self._table.set_policy(self._guarded(name))
        self._policy_failure = ""

    def _guarded(self, name: str) -> Policy:
        """The policy; one that is not built in gets a guard, as it may raise anything."""
        self._policy_guard = Guard()
        policy = self._policies[name]
        return policy if name in POLICIES else self._policy_guard.around(policy, _STAND_IN)

    def _replace_failed_policy(self) -> None:
        """Follows the default from now on, if the policy has raised."""
        error = self._policy_guard.error
        if error is not None:
            failed, stand_in = self._table.policy.name, _STAND_IN.name
            _log.error("policy_failed policy=%s now=%s", failed, stand_in, exc_info=error)
            self.set_policy(stand_in)
            self._policy_failure = f"{failed} raised {describe(error)}"[:_MAX_FAILURE_CHARS]

    def _begin(self, request: Request, event: ContextEvent | None) -> None:
        # A prefill engine samples only the first token, whatever is requested.
        request.max_tokens = 1
        super().add_request(request)
        self._empty_base_queues()
        is_sealed = event.seal if event else True
        deadline_ms = event.deadline_ms if event else 0
        is_held = is_sealed and self.is_compiling(request.request_id)
        if is_held:
            self._held_seals[request.request_id] = request, deadline_ms
        # It may be computed without its grammar.
        request.status = RequestStatus.WAITING
        state = self._table.open(
            request.request_id,
            revision=event.revision if event else 1,
            sealed=is_sealed and not is_held,
            ttft_slo_ms=event.ttft_slo_ms if event else 0,
            deadline_ms=deadline_ms,
            tenant=event.tenant if event else ONE_TENANT,
        )
        state.uncomputed_at_seal = request.num_tokens
        live = LiveSession(request, state)
        self._live[request.request_id] = live
        self.offering.spliced(request.request_id, 0, event.stable_tokens if event else 0)
        self._touch(live)

    def _apply_event(self, live: LiveSession, update: Request, event: ContextEvent) -> None:
        num_same = self._splice(live, update.prompt_token_ids or [], event.keep_tokens)
        self.offering.spliced(live.request.request_id, num_same, event.stable_tokens)
        live.state.revision = event.revision
        if event.seal:
            self._seal_or_hold(live, update, event.deadline_ms)
        # Only a request that is announced as new brings the worker process its new
        # tokens, so it has to be WAITING, whatever its status was.
        live.request.status = RequestStatus.WAITING
        self._touch(live)

    def _splice(self, live: LiveSession, tail: list[int], keep_tokens: int) -> int:
        """Makes the sequence `old[:keep_tokens] + tail`; returns the common prefix's length."""
        request = live.request
        old = request._all_token_ids
        assert keep_tokens <= len(old)
        num_same = keep_tokens + common_prefix_len(old, tail, old_start=keep_tokens)
        is_replaced = num_same < len(old)
        self._table.note_event(request.request_id, num_same)
        if num_same < request.num_computed_tokens:
            self._invalidate(live, num_same)
        replace_tail(request, num_same, tail[num_same - keep_tokens :], self.hash_block_size)
        # At least one token stays uncomputed, because the seal could not sample otherwise.
        valid = min(num_same, max(request.num_tokens - 1, 0))
        self._cut_copies(live, valid)
        if request.num_computed_tokens > valid:
            truncate_kv(self.kv_cache_manager, request, valid)
        if is_replaced:
            self._counters.reused_within_session_tokens += request.num_computed_tokens
        return num_same

    def _cut_copies(self, live: LiveSession, num_valid_tokens: int) -> None:
        """Drops KV on the host behind the first `num_valid_tokens` tokens."""
        num_blocks = self.swapping.cut(live.request, num_valid_tokens)
        self._counters.invalidated_tokens += num_blocks * self.block_size
        live.state.invalidated += num_blocks * self.block_size

    def _invalidate(self, live: LiveSession, num_same: int) -> None:
        """Counts the computed tokens that an event invalidates."""
        num_lost = live.request.num_computed_tokens - num_same
        self._counters.invalidated_tokens += num_lost
        live.state.invalidated += num_lost
        self._remember_lost(live, num_same)

    def _remember_lost(self, live: LiveSession, num_kept_tokens: int) -> None:
        """Notes that the session loses its computed KV behind `num_kept_tokens` tokens."""
        request, size = live.request, self.hash_block_size
        first, last = num_kept_tokens // size, request.num_computed_tokens // size
        live.state.lost_blocks.add(request.block_hashes[first:last])

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
        if request.use_structured_output:
            take_up(self.structured_output_manager, request)
        self._table.seal(live.state, request.num_tokens, deadline_ms)

    def grammar_compiled(self, request: Request) -> None:
        """Applies the seal that has waited for the grammar, if there is one."""
        held = self._held_seals.pop(request.request_id, None)
        if held is not None:
            live = self._live[request.request_id]
            self._seal(live, *held)
            live.request.status = RequestStatus.WAITING  # to be announced anew, as after an event
            self._touch(live)

    def _touch(self, live: LiveSession) -> None:
        """Updates the session table."""
        request = live.request
        request_id, swapping = request.request_id, self.swapping
        self._progress_reporting.touch(request_id)
        self.offering.touch(request_id)
        if self._digests is not None:
            self._digests.touch(request_id, request.num_computed_tokens)
        swapping.drop_computed(request_id, request.num_computed_tokens)
        self._table.update(
            request_id,
            request.num_tokens,
            request.num_computed_tokens,
            self._ledger.num_blocks(request_id),
            host_blocks=swapping.host.next_run(request_id),
            is_loading=swapping.is_loading(request_id),
        )
        if not self._table.has_work(request_id):
            live.state.delay = ""

    # -- a step --------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Plans a step and makes the base class build it."""
        started_s = self._clock.monotonic_s()
        self._replace_failed_policy()
        self.take_compiled()
        self._table.begin_step(int(1000 * started_s))
        plan = self._plan()
        self._table.end_step(plan, self._num_free_blocks)
        self._reporting.note_plan(self._clock.monotonic_s() - started_s)
        for eviction in plan.evictions:
            self._evict(eviction)
        for load in plan.loads:
            self._load(load)
        self._show_chosen(plan)
        self._note_delay(plan)
        output = super().schedule(throttle_prefills)
        self._record_scheduled(plan, output, started_s)
        self._empty_base_queues()
        self._step_began_s = self._clock.monotonic_s()
        return output

    def _plan(self) -> StepPlan:
        """Returns the plan, after the first sessions in rank have taken their prefix cache hits.

        A hit can leave a session nothing to compute, and such a request must not enter
        the base class's queues: it would block all behind it. So hits are taken before
        the plan; a session that still has one is left out of the step.
        """
        self._hits.begin_step()
        for request_id in self._table.hits_in_turn(self._limits(), self._ledger):
            if self._hits.adopt(self._live[request_id]):
                if self._digests is not None:
                    self._digests.touch(request_id, 0)  # its blocks may be others now
                self._touch(self._live[request_id])
        return self._plan_from(self._limits())

    def _plan_from(self, limits: StepLimits) -> StepPlan:
        swapping = self.swapping
        preemption = Preemption(
            self._mode, swapping.costs, self.block_size, tries_swap=swapping.trials.is_due
        )
        return self._table.plan(limits, self._ledger, preemption)

    @property
    def _num_free_blocks(self) -> int:
        count: int = self.kv_cache_manager.block_pool.get_num_free_blocks()
        return count

    def _limits(self) -> StepLimits:
        return StepLimits(
            num_tokens=self.max_num_scheduled_tokens,
            num_requests=min(self.max_num_running_reqs, self.max_num_active_reqs),
            num_free_blocks=self._num_free_blocks,
            block_size=self.block_size,
            evicts_whole_requests=self._evicts_whole_requests,
            num_host_slots=self.swapping.host.num_free,
            num_open_tokens=self._options.open_token_budget,
            num_shared_tokens=self._options.shared_token_budget,
        )

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """Returns no hit: sessions have taken all hits before the plan.

        While it builds the step, the base class would find blocks that the step
        itself is about to compute, and go beyond the plan.
        """
        return self.kv_cache_manager.empty_kv_cache_blocks, 0, 0, False

    def _evict(self, eviction: Eviction) -> None:
        live = self._live[eviction.request_id]
        request = live.request
        self._table.note_eviction(
            request.request_id, self._hits.num_used_tokens(request.request_id)
        )
        num_kept_tokens = eviction.num_blocks_kept * self.block_size
        self._remember_lost(live, num_kept_tokens)
        self._counters.count_preemption(eviction.swap)
        self.swapping.trials.note(eviction.swap)
        if eviction.swap.num_blocks:
            block_ids = self._ledger.block_ids(request.request_id)
            self.swapping.swap_out(request.request_id, block_ids, eviction.swap)
        truncate_kv(self.kv_cache_manager, request, num_kept_tokens)
        self._inflight_prefills.discard(request)
        request.num_preemptions += 1
        request.status = RequestStatus.WAITING
        if self.log_stats:
            request.record_event(EngineCoreEventType.PREEMPTED, self._clock.monotonic_s())
        self._touch(live)

    def _load(self, load: Load) -> None:
        """Starts copying KV back. The session computes nothing until that has ended."""
        live = self._live[load.request_id]
        self.swapping.load(live.request, load)
        self._touch(live)

    def _end_jobs(self) -> None:
        """Resumes sessions whose KV was restored; KV of failed copies is computed again."""
        num_pending = self.swapping.num_pending
        ended = self.swapping.take_ended()
        for request_id, num_computed_tokens in ended.restored:
            self._restore(self._live[request_id], num_computed_tokens)
        for request_id in ended.not_restored:
            request = self._live[request_id].request
            truncate_kv(self.kv_cache_manager, request, request.num_computed_tokens)
        for request_id in (*dict(ended.restored), *ended.not_restored, *ended.not_saved):
            self._touch(self._live[request_id])
        if self.swapping.num_pending < num_pending:
            self._table.note_freed()

    def _restore(self, live: LiveSession, num_computed_tokens: int) -> None:
        """Sets the session's computed tokens after its KV was restored."""
        request = live.request
        num_restored = num_computed_tokens - request.num_computed_tokens
        self._counters.restored_tokens += num_restored
        live.state.restored += num_restored
        if self._digests is not None:
            first, stop = (
                tokens // self.block_size
                for tokens in (request.num_computed_tokens, num_computed_tokens)
            )
            written = self._ledger.block_ids(request.request_id, first, stop)
            self._digests.overwritten(written)
        request.num_computed_tokens = num_computed_tokens
        self.kv_cache_manager.cache_blocks(request, num_computed_tokens)
        # It has to be announced to the worker process anew, which does not know its
        # new blocks.
        request.status = RequestStatus.WAITING

    def _note_delay(self, plan: StepPlan) -> None:
        """Notes which sessions lack memory; a change is reported to the client."""
        is_leased = plan.stop is StopReason.KV_LEASED
        delay = StopReason.KV_LEASED if is_leased else StopReason.KV_MEMORY
        for request_id in plan.short_of_memory:
            self._live[request_id].state.delay = delay.value
            self._progress_reporting.touch(request_id)
        for request_id in self._grants:
            self._live[request_id].state.delay = ""
        self._is_short_of_blocks = bool(plan.short_of_memory)
        self._reporting.note_short_of_blocks(self._table.num_short_of_memory(plan))

    def _show_chosen(self, plan: StepPlan) -> None:
        self._grants = {grant.request_id: grant.num_tokens for grant in plan.grants}
        for request_id in self._grants:
            request = self._live[request_id].request
            if request.status == RequestStatus.RUNNING:
                self.running.append(request)
            else:
                self._enqueue_waiting_request(request)

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """Called by the base class for every request: the place to cap it at its grant."""
        return min(num_new_tokens, self._grants[request.request_id])

    def _build_kv_connector_meta(self, connector: Any, scheduler_output: SchedulerOutput) -> Any:
        """Adds the blocks that the step completes, to be sampled at its end."""
        if self._digests is not None and self._nixl is not None:
            self._nixl.sample(self._digests.plan(self._written(scheduler_output)))
        return super()._build_kv_connector_meta(connector, scheduler_output)

    def _written(self, output: SchedulerOutput) -> Iterator[Written]:
        """Yields what the step does to each session; the base class has not counted it yet."""
        assert self._digests is not None
        for request_id in {*output.num_scheduled_tokens, *self._digests.behind}:
            live = self._live[request_id]
            num_before = live.request.num_computed_tokens
            yield Written(
                request_id,
                live.request._all_token_ids,
                partial(self._ledger.block_ids, request_id),
                num_before,
                num_before + output.num_scheduled_tokens.get(request_id, 0),
                is_sealed=self._table.view(request_id).sealed,
            )

    def _take_samples(self, output: KVConnectorOutput | None) -> None:
        """Keeps the samples of the step's blocks, which its hand-overs carry."""
        samples = find_samples(output.kv_connector_worker_meta) if output is not None else None
        if samples is not None:
            assert self._digests is not None
            self._digests.take(combine(samples.taken()[STEP]).rows)

    def _record_scheduled(self, plan: StepPlan, output: SchedulerOutput, started_s: float) -> None:
        if output.num_scheduled_tokens != self._grants:
            # Should not happen with accepted settings. The base class's own decision is
            # as sound as in stock vLLM.
            self._num_missed_plans += 1
            _log.error("the step has %s, planned was %s", output.num_scheduled_tokens, plan)
        self._step_ranges.clear()
        for request_id in self._grants:
            self._live[request_id].state.note_step(started_s)
            self._record_computed(request_id, output.num_scheduled_tokens.get(request_id, 0))

    def _record_computed(self, request_id: str, num_tokens: int) -> None:
        live = self._live[request_id]
        # The base class has already advanced num_computed_tokens.
        start = live.request.num_computed_tokens - num_tokens
        self._step_ranges.append((start, start + num_tokens))
        self._counters.computed_tokens += num_tokens
        self._counters.recomputed_tokens += live.state.record_computed(start, num_tokens)
        self._touch(live)

    def _empty_base_queues(self) -> None:
        self.running: list[Request] = []
        for queue in (self.waiting, self.kv_holding_waiting):
            while queue:
                queue.pop_request()
        self.deferred_waiting.clear()

    # -- after a step ----------------------------------------------------------

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Returns the base class's outputs, with progress and reports added."""
        step_s = self._clock.monotonic_s() - self._step_began_s
        self._take_samples(model_runner_output.kv_connector_output)
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        self._empty_base_queues()
        for output in [each for client in outputs.values() for each in client.outputs]:
            if output.request_id in self._live:
                self._live[output.request_id].add_final_progress(output)
        self._end_jobs()
        self.swapping.observe_step(self._step_ranges, self.max_num_scheduled_tokens, step_s)
        self._forget_finished(scheduler_output.num_scheduled_tokens)
        for client, output in self._take_due():
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(output)
        return outputs

    def _take_due(self) -> Iterator[tuple[int, EngineCoreOutput]]:
        """Yields progress and report that are due after this step, each with its client index."""
        yield from self._progress_reporting.take_due(self._live, self._table.has_work)
        yield from self.offering.take_due(
            self._live, self._table.has_work, is_short=self._is_short_of_blocks
        )
        self._counters.guarded_sessions = self._table.num_guarded_in_all
        num_with_work = self._table.num_with_work
        yield from self._reporting.take_due(
            self._table.policy.name,
            self._counters,
            self.swapping.state,
            is_busy=self._num_to_step_for > 0,
            num_with_work=num_with_work,
            num_idle=self._table.num_sessions - num_with_work,
            policy_failure=self._policy_failure,
        )

    def _forget_finished(self, scheduled: Iterable[str]) -> None:
        live = (self._live.get(request_id) for request_id in scheduled)
        self._forget([x.request.request_id for x in live if x and x.request.is_finished()])

    def _forget(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._held_seals.pop(request_id, None)
            if self._live.pop(request_id, None) is not None:
                self._table.close(request_id)
                self._progress_reporting.forget(request_id)
                self.offering.forget(request_id)
                if self._digests is not None:
                    self._digests.forget(request_id)
                self.swapping.forget(request_id)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """Ends sessions from outside (cancel); their blocks are free afterwards."""
        if isinstance(request_ids, str):
            request_ids = (request_ids,)
        ids = list(self.requests if request_ids is None else request_ids)
        finished: list[Request] = super().finish_requests(ids, finished_status)
        self._forget([request.request_id for request in finished])
        for request_id in ids:
            self._end_lease(request_id)
        return finished

    def _update_from_kv_xfer_finished(self, kv_connector_output: KVConnectorOutput) -> None:
        """Frees offers that are no longer read; the base class handles the rest."""
        sent = kv_connector_output.finished_sending
        ended = {name for name in sent or () if self.offering.end(name)}
        if ended:
            # Offers only: the base class looks up requests by these names.
            kv_connector_output.finished_sending = sent - ended
            self._table.note_freed()
        super()._update_from_kv_xfer_finished(kv_connector_output)

    def _free_blocks(self, request: Request) -> None:
        """Frees the blocks of an ended request, which are no longer read."""
        super()._free_blocks(request)
        self._table.note_freed()

    def _end_lease(self, request_id: str) -> None:
        """Frees a hand-over that will not be read any more.

        The router closes its half when decode has read; an RPC that breaks after the
        first token does not reach the engine. The connector accepts a deadline that has
        passed, and reports the blocks as sent with its next step.
        """
        request = self.requests.get(request_id)
        if self._nixl is not None and request is not None and request.is_finished():
            self._nixl.connector_scheduler._reqs_need_send[request_id] = 0.0

    def _connector_finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        """Frees the blocks of an answer that its first token ended: it needs no decode.

        The connector would keep them for a reader, since the request reached its one
        token; with the status of an aborted request it frees them.
        """
        status = request.status
        if status == RequestStatus.FINISHED_STOPPED:
            request.status = RequestStatus.FINISHED_ABORTED
        kept: tuple[bool, dict[str, Any] | None] = super()._connector_finished(request)
        request.status = status
        is_held, params = kept
        if self._nixl is not None and is_held and params:
            params = with_deadline(params, self._nixl.connector_scheduler)
            if self._digests is not None:
                block_ids = params["remote_block_ids"][0]
                params[DIGEST_KEY] = self._digests.digest(request.request_id, block_ids)
        return is_held, params

    # -- queries by which the engine decides whether to idle ---------------------

    def get_num_unfinished_requests(self) -> int:
        """Returns the number of sessions that need a step; an idle open session does not."""
        num_to_report = (
            len(self._progress_reporting) + self._reporting.is_awaited + self.num_ends_awaited
        )
        return max(self._num_to_step_for, num_to_report, self.swapping.num_pending)

    @property
    def _num_to_step_for(self) -> int:
        return self._table.num_to_step_for(self._num_free_blocks)

    def has_finished_requests(self) -> bool:
        """Whether ended requests must reach the worker, or leases or offers are open."""
        if self.finished_req_ids or self.offering.table.num_offers:
            return True
        return len(self.requests) > len(self._live)

    def get_request_counts(self) -> tuple[int, int]:
        """Returns (chosen in this step, with work but not chosen), for vLLM's gauges."""
        num_chosen = len(self._grants)
        return num_chosen, max(self._table.num_with_work - num_chosen, 0)

    # -- for tests ---------------------------------------------------------------

    def check_integrity(self, pinned: Collection[int] = ()) -> None:
        """Raises AssertionError unless all blocks are accounted for and the table is correct.

        `pinned` names blocks that are held by something other than a request.
        """
        blocks.check_integrity(
            self.kv_cache_manager, [*pinned, *self.swapping.pinned, *self.offering.pinned]
        )
        self.swapping.check_integrity(set(self._live))
        assert not self._num_missed_plans, "the base class did not do what was planned"
        assert self._table.num_sessions == len(self._live)
        for request_id, live in self._live.items():
            request, view = live.request, self._table.view(request_id)
            held = self._ledger.num_blocks(request_id)
            computed = request.num_computed_tokens
            assert view.is_loading == self.swapping.is_loading(request_id)
            assert (view.host_start, view.host_stop) == self.swapping.host.next_run(request_id)
            assert (view.num_known_tokens, view.num_computed_tokens, view.num_blocks) == (
                request.num_tokens,
                computed,
                held,
            ), (
                f"the session table has {view} of a request with {computed} tokens computed, {held} blocks"
            )
            assert computed <= view.num_target_tokens or not request.num_tokens
