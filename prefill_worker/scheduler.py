"""Phase 2: vLLM's scheduler, made to follow our plan.

One idea: between steps the base class knows of no request in its queues. Each
step, phase 1 (`planner.plan_step`) says who computes how much and who is
evicted. We evict, show the base class only the chosen requests, cap each at
its grant, and let it allocate and build the step as it always does; so all of
vLLM (prefix cache, connectors, sampling) keeps working and no code of it is
repeated here.

Life of a session's request:
 1. `add_request` with an id that is new: a session begins (an ordinary request
    is a session that is sealed from the start).
 2. `add_request` with a known id: a context event. The sequence is spliced, KV
    behind the common prefix is dropped, and the request goes back to WAITING,
    because only a request that is announced anew brings the worker process its
    new tokens. It keeps its blocks.
 3. Steps compute up to the target; the last token of an open session is held
    back, so nothing is sampled before the seal.
 4. The step that computes the last token of a sealed session samples the first
    token of the answer. The base class finishes the request and hands its
    blocks to the KV connector.

Runs inside vLLM's EngineCore process. `Scheduler` is not a public interface of
vLLM: tests/integration/test_vllm_contract.py names what is used of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from prefill_worker import blocks
from prefill_worker.planner import plan_step
from prefill_worker.policy import POLICIES
from prefill_worker.session_state import WIRE_KEY, ContextEvent, SessionState
from prefill_worker.types import DeferralReason, Eviction, RequestView, StepLimits, StepPlan
from stream2llm.clock import SystemClock
from stream2llm.orphan_guard import exit_with_parent
from stream2llm.prefix import common_prefix_len


@dataclass(slots=True)
class _Live:
    """A session that has not ended: vLLM's request and our counters."""

    request: Request
    state: SessionState


class PrefillScheduler(Scheduler):
    """The scheduler of a prefill worker's engine. Needs `async_scheduling=False`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        exit_with_parent()
        _require_settings(self)
        options = self.vllm_config.additional_config.get(WIRE_KEY, {})
        self._rank = POLICIES[options.get("policy", "fcfs")]
        self._progress_interval = int(options.get("progress_interval_tokens", 256))
        self._live: dict[str, _Live] = {}
        self._clock = SystemClock()
        self._num_arrivals = 0
        self._num_events = 0
        # Sessions that have work, and sessions whose progress may be due.
        self._active: set[str] = set()
        self._to_tell: set[str] = set()
        # Tokens granted in the step that is being built.
        self._grants: dict[str, int] = {}

    # -- requests and context events ---------------------------------------

    def add_request(self, request: Request) -> None:
        """A new session, or an event of one that is known."""
        event = _event_of(request)
        live = self._live.get(request.request_id)
        if live is not None:
            assert event is not None, f"duplicate request id {request.request_id}"
            self._apply_event(live, request, event)
        elif event is None or event.begins:
            self._begin(request, event)

    def _begin(self, request: Request, event: ContextEvent | None) -> None:
        super().add_request(request)
        self._empty_base_queues()
        self._num_arrivals += 1
        state = SessionState(
            arrival=self._num_arrivals,
            last_event=self._next_event(),
            revision=event.revision if event else 1,
            sealed=event.seal if event else True,
            uncomputed_at_seal=request.num_tokens,
        )
        live = _Live(request, state)
        self._live[request.request_id] = live
        self._touch(live)

    def _apply_event(self, live: _Live, update: Request, event: ContextEvent) -> None:
        self._splice(live, update.prompt_token_ids or [], event.keep_tokens)
        live.state.revision = event.revision
        live.state.last_event = self._next_event()
        live.state.lookup_due = True
        if event.seal:
            self._seal(live, update)
        # Only a request that is announced as new brings the worker process its
        # new tokens, so it has to be WAITING, whatever it was.
        live.request.status = RequestStatus.WAITING
        self._touch(live)

    def _splice(self, live: _Live, tail: list[int], keep_tokens: int) -> None:
        """Makes the sequence `old[:keep_tokens] + tail`, keeping valid KV."""
        request, state = live.request, live.state
        old = request._all_token_ids
        assert keep_tokens <= len(old)
        num_same = keep_tokens + common_prefix_len(old[keep_tokens:], tail)
        _replace_tail(request, num_same, tail[num_same - keep_tokens :], self.hash_block_size)
        computed = request.num_computed_tokens
        state.invalidated += max(computed - num_same, 0)
        state.lost_until = min(state.lost_until, num_same)
        # At least one token stays uncomputed, or the seal could not sample.
        valid = min(num_same, max(request.num_tokens - 1, 0))
        if computed > valid:
            blocks.truncate_kv(self.kv_cache_manager, request, valid)

    def _seal(self, live: _Live, update: Request) -> None:
        request = live.request
        live.state.sealed = True
        live.state.uncomputed_at_seal = request.num_tokens - request.num_computed_tokens
        request.sampling_params = update.sampling_params
        request.max_tokens = update.max_tokens
        request.kv_transfer_params = update.kv_transfer_params

    def _next_event(self) -> int:
        self._num_events += 1
        return self._num_events

    def _touch(self, live: _Live) -> None:
        """Brings the index of sessions with work up to date."""
        request_id = live.request.request_id
        self._to_tell.add(request_id)
        if self._view(live).num_wanted_tokens:
            self._active.add(request_id)
        else:
            self._active.discard(request_id)

    def _view(self, live: _Live) -> RequestView:
        request, state = live.request, live.state
        return RequestView(
            request_id=request.request_id,
            sealed=state.sealed,
            arrival=state.arrival,
            last_event=state.last_event,
            num_known_tokens=request.num_tokens,
            num_computed_tokens=request.num_computed_tokens,
            num_blocks=blocks.num_blocks_held(self.kv_cache_manager, request),
        )

    # -- a step --------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Plans a step and has the base class build it."""
        plan = self._plan()
        for eviction in plan.evictions:
            self._evict(eviction)
        self._show_chosen(plan)
        output = super().schedule(throttle_prefills)
        self._record_scheduled(output)
        self._empty_base_queues()
        return output

    def _plan(self) -> StepPlan:
        """The plan, after the chosen sessions took what the prefix cache has of them.

        A hit can leave a session nothing to compute, and such a request must
        not be shown to the base class: it would stop all behind it. So hits
        are taken first, and whoever took one is planned for again.
        """
        while True:
            plan = self._plan_once()
            chosen = [self._live[grant.request_id] for grant in plan.grants]
            changed = [live for live in chosen if live.state.lookup_due]
            if not sum(self._adopt_cached_prefix(live) for live in changed):
                return plan

    def _plan_once(self) -> StepPlan:
        limits = StepLimits(
            num_tokens=self.max_num_scheduled_tokens,
            num_requests=self.max_num_running_reqs,
            num_free_blocks=self.kv_cache_manager.block_pool.get_num_free_blocks(),
            block_size=self.block_size,
        )
        with_work = [self._view(self._live[request_id]) for request_id in self._active]
        plan = plan_step(with_work, self._rank, limits)
        if not any(d.reason is DeferralReason.NO_BLOCKS for d in plan.deferrals):
            return plan
        # Memory is short: plan again with everybody in sight, idle ones too.
        views = [self._view(live) for live in self._live.values()]
        requests = [live.request for live in self._live.values()]
        ledger = blocks.ledger(self.kv_cache_manager, requests)
        return plan_step(views, self._rank, limits, ledger)

    def _adopt_cached_prefix(self, live: _Live) -> int:
        """Takes what the prefix cache has beyond the computed tokens; how many tokens that is.

        Other sessions may have computed the same documents. Only a session
        that is announced anew may be asked for: its blocks change.
        """
        request = live.request
        live.state.lookup_due = False
        cached, num_tokens, _ = self.kv_cache_manager.get_computed_blocks(request)
        num_gained: int = num_tokens - request.num_computed_tokens
        if num_gained <= 0:
            return 0
        # Its own blocks that the cache knows are among the found ones; the
        # others hold less than was found.
        self.kv_cache_manager.free(request)
        request.num_computed_tokens = 0
        allocated = self.kv_cache_manager.allocate_slots(
            request, 0, num_new_computed_tokens=num_tokens, new_computed_blocks=cached
        )
        assert allocated is not None, "cached blocks need no free block"
        self.kv_cache_manager.record_prefix_cache_stats(request, num_tokens)
        if request.prefill_stats is not None and not request.num_preemptions:
            request.prefill_stats.set(request.num_prompt_tokens, num_tokens, 0)
        request.num_computed_tokens = num_tokens
        live.state.reused += num_gained
        self._touch(live)
        return num_gained

    def _evict(self, eviction: Eviction) -> None:
        live = self._live[eviction.request_id]
        request, state = live.request, live.state
        state.lost_until = max(state.lost_until, request.num_computed_tokens)
        self.kv_cache_manager.free(request)
        self._inflight_prefills.discard(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        request.status = RequestStatus.WAITING
        state.lookup_due = True
        if self.log_stats:
            request.record_event(EngineCoreEventType.PREEMPTED, self._clock.monotonic_s())
        self._touch(live)

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
        """The base class asks this for every request: the place to cap it at its grant."""
        return min(num_new_tokens, self._grants[request.request_id])

    def _record_scheduled(self, output: SchedulerOutput) -> None:
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            live = self._live[request_id]
            # The base class has moved num_computed_tokens on already.
            start = live.request.num_computed_tokens - num_tokens
            live.state.record_computed(start, num_tokens)
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
        """The base class's outputs, with the sessions' progress added."""
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        self._empty_base_queues()
        for client_outputs in outputs.values():
            for output in client_outputs.outputs:
                self._attach_final_progress(output)
        self._forget_finished()
        self._tell_progress(outputs)
        return outputs

    def _attach_final_progress(self, output: EngineCoreOutput) -> None:
        live = self._live.get(output.request_id)
        if live is None:
            return
        num_prompt_tokens = live.request.num_prompt_tokens
        progress = live.state.progress(num_prompt_tokens, num_prompt_tokens)
        output.kv_transfer_params = {**(output.kv_transfer_params or {}), WIRE_KEY: progress}

    def _tell_progress(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        for request_id in self._to_tell:
            live = self._live[request_id]
            has_work = request_id in self._active
            if not live.state.is_worth_telling(self._progress_interval, has_work=has_work):
                continue
            live.state.mark_told()
            client = live.request.client_index
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(_progress_of(live))
        self._to_tell.clear()

    def _forget_finished(self) -> None:
        finished = [i for i, live in self._live.items() if live.request.is_finished()]
        self._forget(finished)

    def _forget(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._live.pop(request_id, None)
            self._active.discard(request_id)
            self._to_tell.discard(request_id)

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

    def _end_lease(self, request_id: str) -> None:
        """Frees a hand-over that nobody will read any more.

        The router's RPC lasts until decode has read, so its end says so. The
        connector takes a deadline that has passed, and reports the blocks as
        sent with its next step.
        """
        request = self.requests.get(request_id)
        if request is not None and request.is_finished() and self.connector is not None:
            self.connector.connector_scheduler._reqs_need_send[request_id] = 0.0

    def _connector_finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        """An answer that its first token ended needs no decode: its blocks are free at once.

        The connector would keep them for a reader, as it does when the one
        token it was asked for was reached; told that the request was aborted,
        it lets go.
        """
        status = request.status
        if status == RequestStatus.FINISHED_STOPPED:
            request.status = RequestStatus.FINISHED_ABORTED
        kept: tuple[bool, dict[str, Any] | None] = super()._connector_finished(request)
        request.status = status
        return kept

    # -- what the engine asks to know whether it may sleep ---------------------

    def get_num_unfinished_requests(self) -> int:
        """Sessions that need a step; an idle open session needs none."""
        return len(self._active | self._to_tell)

    def has_finished_requests(self) -> bool:
        """Whether the worker must hear of ended requests, or leases are open."""
        return bool(self.finished_req_ids) or len(self.requests) > len(self._live)

    def get_request_counts(self) -> tuple[int, int]:
        """(chosen in this step, with work but not chosen); for vLLM's gauges."""
        num_chosen = len(self.running)
        return num_chosen, max(len(self._active) - num_chosen, 0)


def _event_of(request: Request) -> ContextEvent | None:
    raw = (request.sampling_params.extra_args or {}).get(WIRE_KEY)
    return ContextEvent.from_wire(raw) if raw else None


def _replace_tail(request: Request, num_kept: int, tail: list[int], hash_block_size: int) -> None:
    """Makes the request's prompt its first `num_kept` tokens and `tail`."""
    for tokens in (request._all_token_ids, request.prompt_token_ids):
        del tokens[num_kept:]
        tokens.extend(tail)
    request.num_prompt_tokens = len(request.prompt_token_ids)
    del request.block_hashes[num_kept // hash_block_size :]
    request.update_block_hashes()


def _progress_of(live: _Live) -> EngineCoreOutput:
    request = live.request
    progress = live.state.progress(request.num_tokens, request.num_computed_tokens)
    return EngineCoreOutput(
        request_id=request.request_id, new_token_ids=[], kv_transfer_params={WIRE_KEY: progress}
    )


def _require_settings(scheduler: Scheduler) -> None:
    """Refuses, at start-up, settings under which streaming would break."""
    config = scheduler.vllm_config
    if config.scheduler_config.async_scheduling:
        raise ValueError("a prefill worker needs async_scheduling=False")
    if scheduler.use_v2_model_runner:
        raise ValueError("a prefill worker needs VLLM_USE_V2_MODEL_RUNNER=0")
    if config.scheduler_config.scheduler_reserve_full_isl:
        raise ValueError("a prefill worker needs scheduler_reserve_full_isl=False")
    if config.scheduler_config.watermark:
        raise ValueError("a prefill worker needs watermark=0: the plan counts every block")
    blocks.require_single_group(scheduler.kv_cache_manager)
