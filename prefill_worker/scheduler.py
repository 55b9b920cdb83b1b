"""Phase 2 of two-phase scheduling: vLLM's scheduler, made to follow our plan.

Between steps the base class has no request in its queues. In each step, phase 1
(`SessionTable.plan`) decides who computes how much and who is evicted. The scheduler
then evicts, adds only the chosen requests to the base class's queues, caps each at its
grant, and lets the base class allocate and build the step as always; so all of vLLM
(prefix cache, connectors, sampling) keeps working, and none of its code is copied.

Life of a session's request:
 1. `add_request` with a new id: a session begins (an ordinary request is a session
    that is sealed from the start).
 2. `add_request` with a known id: a context event (context_events.py).
 3. Steps compute up to the target; the last token of an open session is held back, so
    nothing is sampled before the seal.
 4. The step that computes the last token of a sealed session samples the first token
    of the answer. The base class finishes the request and hands its blocks to the KV
    connector.
 5. A session that is sealed to be answered here (on a mixed worker) is not finished: it
    has one token to compute in each further step, the one just sampled, until vLLM ends it.

Here is what vLLM calls. What is done is in modules of their own, built by
scheduler_parts.py: events of sessions (context_events.py), the plan (step_planning.py), its
evictions and restores (preempting.py), outputs (step_outputs.py), hand-overs (handing_over.py).

Runs inside vLLM's EngineCore process. `Scheduler` is not a public interface of
vLLM: tests/integration/test_vllm_contract.py lists what is used of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from cost_profiles.correction import CorrectedCostModel
from cost_profiles.decision import Mode
from prefill_worker import blocks
from prefill_worker.report import SchedulerCommand, SchedulerCounters
from prefill_worker.request_tokens import event_or_command, num_to_sample
from prefill_worker.scheduler_parts import create_parts
from prefill_worker.session_state import ContextEvent
from prefill_worker.settings import require_settings
from stream2llm.engine.cache_events import CacheEvents
from stream2llm.engine.grammar_scheduling import StructuredOutputMixin
from stream2llm.engine.grammar_state import is_grammar_order
from stream2llm.engine.orphan_guard import exit_with_parent
from stream2llm.engine.timed_steps import TimedSteps
from stream2llm.serving.observability import logs
from stream2llm.serving.settings.worker_options import WorkerOptions
from stream2llm.serving.system.clock import SystemClock


class PrefillScheduler(StructuredOutputMixin, TimedSteps, CacheEvents, Scheduler):
    """The scheduler of a prefill worker's engine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = WorkerOptions.from_additional_config(self.vllm_config.additional_config)
        logs.configure_child(options.logs)
        exit_with_parent()
        require_settings(self.vllm_config)
        self._clock = SystemClock()
        self._counters = SchedulerCounters()
        parts = create_parts(self, options, self._clock, self._counters)
        self._policies = parts.policies
        self._sessions = parts.sessions
        self._table = parts.sessions.table
        self.swapping = parts.sessions.swapping
        self.offering = parts.sessions.offering
        self._events = parts.events
        self.planning = parts.planning
        self._preempting = parts.preempting
        self._step = parts.step
        self._outputs = parts.outputs
        self._reporting = parts.outputs.reporting
        self._handing_over = parts.handing_over

    def preempt_by(self, mode: str, costs: CorrectedCostModel | None = None) -> None:
        """Changes mode and costs from the next step on; for benchmarks and tests."""
        self.planning.mode = Mode(mode)
        if costs is not None:
            self.swapping.calibration.costs = costs

    def set_digests(self, *, are_on: bool) -> None:
        """Samples blocks from the next step on, or does not; for benchmarks."""
        self._sessions.digests.switch(are_on=are_on)

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
        live = self._sessions.by_id.get(request.request_id)
        if is_grammar_order(request):
            super().add_request(request)
        elif isinstance(event, SchedulerCommand):
            self._carry_out(request, event)
        elif live is not None:
            assert event is not None, f"duplicate request id {request.request_id}"
            request.max_tokens = num_to_sample(request, event)
            self._events.apply(live, request, event)
        elif event is None or event.begins:
            self._begin(request, event)

    def _carry_out(self, request: Request, command: SchedulerCommand) -> None:
        self._reporting.open(request.request_id, request.client_index, command.number)
        if command.set_policy is not None:
            self.set_policy(command.set_policy)

    def set_policy(self, name: str) -> None:
        """Ranks all sessions by another policy from the next step on; none is lost."""
        self._policies.set(self._table, name)

    def _begin(self, request: Request, event: ContextEvent | None) -> None:
        request.max_tokens = num_to_sample(request, event)
        super().add_request(request)
        self._empty_base_queues()
        self._events.begin(request, event)

    def grammar_compiled(self, request: Request) -> None:
        """Applies the seal that has waited for the grammar, if there is one."""
        self._events.grammar_compiled(request.request_id)

    # -- a step --------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Plans a step and makes the base class build it."""
        started_s = self._clock.monotonic_s()
        self._policies.replace_failed(self._table)
        self.take_compiled()
        self._table.begin_step(int(1000 * started_s))
        plan = self.planning.plan_after_hits()
        self._table.end_step(plan, self.planning.num_free_blocks)
        self._reporting.note_plan(self._clock.monotonic_s() - started_s)
        for eviction in plan.evictions:
            self._inflight_prefills.discard(self._preempting.evict(eviction))
        for load in plan.loads:
            self._preempting.load(load)
        self._step.plan(plan)
        self._reporting.note_short_of_blocks(self._table.num_short_of_memory(plan))
        self._show_chosen()
        self.reset_preempted_req_ids.update(self._step.take_slots())
        output = super().schedule(throttle_prefills)
        self._step.built(plan, output, started_s)
        self._empty_base_queues()
        self._step.began_s = self._clock.monotonic_s()
        return output

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """Returns no hit: sessions have taken all hits before the plan.

        While it builds the step, the base class would find blocks that the step
        itself is about to compute, and go beyond the plan.
        """
        return self.kv_cache_manager.empty_kv_cache_blocks, 0, 0, False

    def _show_chosen(self) -> None:
        for request_id in self._step.grants:
            request = self._sessions[request_id].request
            if request.status == RequestStatus.RUNNING:
                self.running.append(request)
            else:
                self._enqueue_waiting_request(request)

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """Called by the base class for every request: the place to cap it at its grant."""
        return min(num_new_tokens, self._step.grants[request.request_id])

    def _build_kv_connector_meta(self, connector: Any, scheduler_output: SchedulerOutput) -> Any:
        """Adds the blocks that the step completes, to be sampled at its end."""
        self._sessions.digests.plan(scheduler_output, self._sessions.by_id, self._table)
        return super()._build_kv_connector_meta(connector, scheduler_output)

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
        step_s = self._clock.monotonic_s() - self._step.began_s
        self._sessions.digests.take(model_runner_output.kv_connector_output)
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        self._empty_base_queues()
        self._outputs.add_final_progress(outputs)
        self._preempting.end_jobs()
        self.swapping.calibration.observe_step(
            self._step.ranges, self.max_num_scheduled_tokens, step_s
        )
        num_decoding, num_computing = len(self._step.decoding), len(self._step.grants)
        self.planning.inter_token.observe(num_decoding, num_computing, step_s)
        self._take_sampled(scheduler_output.num_scheduled_tokens)
        self._outputs.add_due(outputs)
        return outputs

    def _take_sampled(self, scheduled: Iterable[str]) -> None:
        """Forgets sessions that have ended; those that go on with an answer have a token to compute."""
        for request_id in scheduled:
            live = self._sessions.by_id.get(request_id)
            if live is None:
                continue
            if live.request.is_finished():
                self._events.forget(request_id)
            elif live.request.num_output_tokens:
                self._sessions.answered(live)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """Ends sessions from outside (cancel); their blocks are free afterwards."""
        if isinstance(request_ids, str):
            request_ids = (request_ids,)
        ids = list(self.requests if request_ids is None else request_ids)
        finished: list[Request] = super().finish_requests(ids, finished_status)
        for request in finished:
            self._events.forget(request.request_id)
        for request_id in ids:
            self._handing_over.end_lease(self.requests.get(request_id))
        return finished

    def _update_from_kv_xfer_finished(self, kv_connector_output: KVConnectorOutput) -> None:
        """Frees offers that are no longer read; the base class handles the rest."""
        if self._handing_over.end_offers(kv_connector_output):
            self._table.note_freed()
        super()._update_from_kv_xfer_finished(kv_connector_output)

    def _free_blocks(self, request: Request) -> None:
        """Frees the blocks of an ended request, which are no longer read."""
        super()._free_blocks(request)
        self._table.note_freed()

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
        if is_held and params:
            params = self._handing_over.complete(params, request.request_id)
        return is_held, params

    # -- queries by which the engine decides whether to idle ---------------------

    def get_num_unfinished_requests(self) -> int:
        """Returns the number of sessions that need a step; an idle open session does not."""
        num_to_report = self._outputs.num_awaited + self.num_ends_awaited
        return max(self.planning.num_to_step_for, num_to_report, self.swapping.num_pending)

    def has_finished_requests(self) -> bool:
        """Whether ended requests must reach the worker, or leases or offers are open."""
        if self.finished_req_ids or self.offering.table.num_offers:
            return True
        return len(self.requests) > len(self._sessions)

    def get_request_counts(self) -> tuple[int, int]:
        """Returns (chosen in this step, with work but not chosen), for vLLM's gauges."""
        num_chosen = len(self._step.grants)
        return num_chosen, max(self._table.num_with_work - num_chosen, 0)

    # -- for tests ---------------------------------------------------------------

    def check_integrity(self, pinned: Collection[int] = ()) -> None:
        """Raises AssertionError unless all blocks are accounted for and the table is correct.

        `pinned` names blocks that are held by something other than a request.
        """
        blocks.check_integrity(
            self.kv_cache_manager, [*pinned, *self.swapping.pinned, *self.offering.pinned]
        )
        assert not self._step.num_missed_plans, "the base class did not do what was planned"
        self._sessions.check_integrity()
