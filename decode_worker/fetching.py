"""KV prefetch in a decode engine's scheduler: a mixin over vLLM's scheduler.

Life of a fetch:
 1. `add_request` keeps it back until memory and pace allow it (room.py, pace.py).
    A fetch that they do not allow is refused, and prefill is notified at once.
 2. The base class receives it like any answer with remote KV: it allocates blocks,
    and the connector reads into them.
 3. When the read has ended, and its digest agrees, the blocks enter the prefix cache
    and the request ends. It never computes a token, so a fetch takes no step from
    decoding requests.

 The blocks of a fetch that is aborted in step 2 become free when the read has ended,
 as in vLLM, and never enter the cache. An answer waits for its session's fetch while
 that is being read: all that it reads is part of the answer's prompt, and reading it
 twice takes longer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from decode_worker.bad_reads import BadReads
from decode_worker.connector import FirstTokenNixlConnector
from decode_worker.fetch_admission import MAX_WAIT_S, Fetch, FetchAdmission
from decode_worker.fetch_orders import (
    FetchEnd,
    FetchOrder,
    FetchResult,
    FinalOrder,
    LocalTokens,
    order_from_wire,
)
from decode_worker.handover_check import check_keys
from decode_worker.room import Room
from stream2llm.engine.grammar_scheduling import StructuredOutputMixin
from stream2llm.serving.settings.worker_options import WorkerOptions
from stream2llm.serving.system.clock import SystemClock

_log = logging.getLogger(__name__)


class KvPrefetchMixin(StructuredOutputMixin):
    """Precedes vLLM's `Scheduler` or `AsyncScheduler` among a class's bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = SystemClock()
        self.options = WorkerOptions.from_additional_config(self.vllm_config.additional_config)
        self._admission = FetchAdmission(
            self.kv_cache_manager, self.options.handover.max_fetch_share, self._clock.monotonic_s
        )
        # By request id: fetches that have not begun, oldest first, and fetches being read.
        self._waiting_fetches: dict[str, Fetch] = {}
        self._reading: dict[str, Fetch] = {}
        # Fetches without anything to read, for which the base class computes a token.
        self._computing: set[str] = set()
        # Answers that wait for their session's fetch, by the fetch's request id.
        self._held_finals: dict[str, Request] = {}
        # Answers whose number of local tokens the front end waits for, each with the instant
        # when its KV was read; 0: not yet, or there was nothing to read.
        self._finals: dict[str, float] = {}
        self._fetch_outputs: list[tuple[int, EngineCoreOutput]] = []
        sizes = sum(tensor.size for tensor in self.kv_cache_config.kv_cache_tensors)
        num_ranks = self.vllm_config.parallel_config.world_size
        self._bytes_per_block = sizes // self.kv_cache_config.num_blocks * num_ranks
        self._bad_reads = BadReads(num_ranks)
        # A request waited for memory or was preempted in the last step.
        self._is_short = False
        self._step_began_s = 0.0

    # -- requests ------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Adds a fetch, an answer that follows fetches, or any other request.

        A request that cannot be handled fails alone.
        """
        try:
            self._add(request)
        except Exception as error:
            self.end_failed(request, error)

    def _add(self, request: Request) -> None:
        if request.kv_transfer_params is not None:
            check_keys(request.kv_transfer_params)
        params = request.sampling_params
        order = order_from_wire(params.extra_args if params else None)
        if isinstance(order, FetchOrder):
            fetch = Fetch(request, order, self._clock.monotonic_s())
            self._waiting_fetches[request.request_id] = fetch
        elif isinstance(order, FinalOrder):
            self._add_final(request, order.session_id)
        else:
            super().add_request(request)

    def _add_final(self, request: Request, session_id: str) -> None:
        self._finals[request.request_id] = 0.0
        for fetch in list(self._waiting_fetches.values()):
            if fetch.order.session_id == session_id:
                self._refuse(fetch, "sealed")
        for fetch_id, fetch in self._reading.items():
            if fetch.order.session_id == session_id and not fetch.request.is_finished():
                self._held_finals[fetch_id] = request
                # Renews the lease meanwhile.
                self.connector.on_new_request(request)
                return
        super().add_request(request)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """Also ends requests that the base class does not have yet, and notifies prefill."""
        if request_ids is None:
            ids = [*self.requests, *self._waiting_fetches]
            ids += [request.request_id for request in self._held_finals.values()]
        else:
            ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        for request_id in ids:
            self._let_base_know(request_id)
        finished: list[Request] = super().finish_requests(ids, finished_status)
        self._computing.difference_update(ids)
        for request_id in ids:
            self._finals.pop(request_id, None)
            self._release_final(request_id)
        return finished

    def _release_final(self, fetch_id: str) -> None:
        """Adds the answer that waits for a fetch, if there is one."""
        final = self._held_finals.pop(fetch_id, None)
        if final is not None:
            super().add_request(final)

    def _let_base_know(self, request_id: str) -> None:
        """Adds a request so that ending it makes the connector notify prefill."""
        fetch = self._waiting_fetches.pop(request_id, None)
        if fetch is not None:
            self._add_to_end(fetch.request)
        for fetch_id, request in list(self._held_finals.items()):
            if request.request_id == request_id:
                del self._held_finals[fetch_id]
                self._add_to_end(request)

    def _add_to_end(self, request: Request) -> None:
        """Adds a request that ends at once; a failure here must not fail the engine."""
        if request.request_id in self.requests:
            return  # it failed while the base class added it
        try:
            super().add_request(request)
        except Exception:
            # The base class has it, but its connector, which is called last, failed.
            _log.exception("request_not_added request_id=%s", request.request_id)

    # -- a step ----------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Runs the base class's step, after admitting one fetch if that is possible."""
        self._step_began_s = self._clock.monotonic_s()
        self.take_compiled()
        # One per step: the next one then sees the blocks that it takes.
        waiting = list(self._waiting_fetches.values())
        shown = next((fetch for fetch in waiting if self._admit_or_fail(fetch)), None)
        output = super().schedule(*args, **kwargs)
        if shown is not None:
            self._after_schedule(shown)
        self._is_short = len(self.waiting) > self.num_waiting_for_grammar
        return output

    def _admit_or_fail(self, fetch: Fetch) -> bool:
        try:
            return self._admit(fetch)
        except Exception as error:
            self.end_failed(fetch.request, error)
            return False

    def _admit(self, fetch: Fetch) -> bool:
        """Adds a fetch to the base class if it may begin now; refuses it if it never may."""
        now_s = self._clock.monotonic_s()
        waited_s = now_s - fetch.arrived_s
        num_running = len(self.running)
        has_time = self._admission.has_time(now_s, num_running, is_reading=bool(self._reading))
        if self._is_short or not has_time:
            if waited_s > MAX_WAIT_S:
                self._refuse(fetch, "busy")
            return False
        num_reserved = self._inflight_prefill_reserved_blocks()
        room = self._admission.room_for(fetch, num_running, num_reserved)
        if room is Room.YES:
            super().add_request(fetch.request)
        elif room is Room.NOTHING_TO_FETCH:
            self._end_unread(fetch, FetchResult(FetchEnd.FETCHED))
        else:
            self._refuse(fetch, room.value)
        return room is Room.YES

    def _after_schedule(self, fetch: Fetch) -> None:
        """Notes that the read has begun; a fetch that the base class did not take keeps waiting."""
        request = fetch.request
        if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
            del self._waiting_fetches[request.request_id]
            fetch.began_s = self._clock.monotonic_s()
            self._reading[request.request_id] = fetch
        elif request.status == RequestStatus.RUNNING:
            # An answer of this very step brought every missing block, so the base class
            # found nothing to read and computes the token behind them. Prefill is notified
            # that nothing will be read.
            del self._waiting_fetches[request.request_id]
            self._computing.add(request.request_id)
        elif request.request_id in self.requests:
            # It queues behind a request without room, and must not block those that
            # come later.
            self.waiting.remove_requests([request])
            self.deferred_waiting.discard(request)
            del self.requests[request.request_id]

    def _refuse(self, fetch: Fetch, reason: str) -> None:
        self._end_unread(fetch, FetchResult(FetchEnd.REFUSED, reason))

    def _end_unread(self, fetch: Fetch, result: FetchResult) -> None:
        """Ends a fetch before its read; the connector notifies prefill."""
        self._report(fetch, result)
        self.finish_requests([fetch.request.request_id], RequestStatus.FINISHED_ABORTED)

    def _report(self, fetch: Fetch, result: FetchResult) -> None:
        request = fetch.request
        output = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=FinishReason.STOP,
            kv_transfer_params=result.to_wire(),
        )
        self._fetch_outputs.append((request.client_index, output))

    # -- after a step ------------------------------------------------------------------

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Returns the base class's outputs, with the results of fetches added."""
        if self.running and scheduler_output.total_num_scheduled_tokens:
            step_s = self._clock.monotonic_s() - self._step_began_s
            self._admission.pace.note_step(
                step_s, len(self.running), is_fetching=bool(self._reading)
            )
        reads = model_runner_output.kv_connector_output
        if reads is not None and self._has_digests:
            self._bad_reads.check(reads, self.requests)
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        for output in [each for client in outputs.values() for each in client.outputs]:
            self._report_local(output)
            bad = self._bad_reads.pop(output.request_id)
            if bad is not None:
                output.kv_transfer_params = bad.to_wire()
            if output.request_id in self._computing and output.finish_reason is not None:
                self._computing.discard(output.request_id)
                output.kv_transfer_params = FetchResult(FetchEnd.FETCHED).to_wire()
        for client, output in self._fetch_outputs:
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(output)
        self._fetch_outputs.clear()
        self._bad_reads.clear()
        return outputs

    @property
    def _has_digests(self) -> bool:
        return isinstance(self.connector, FirstTokenNixlConnector) and self.connector.has_digests

    def _report_local(self, output: EngineCoreOutput) -> None:
        stats = output.prefill_stats
        if stats is not None and output.request_id in self._finals:
            read_s = self._finals.pop(output.request_id)
            local = LocalTokens(stats.num_local_cached_tokens, self._bytes_per_block, read_s)
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), **local.to_wire()}

    def _update_from_kv_xfer_finished(self, kv_connector_output: KVConnectorOutput) -> None:
        """Ends fetches whose read has ended, without a step of their own."""
        super()._update_from_kv_xfer_finished(kv_connector_output)
        for request_id in kv_connector_output.finished_recving or ():
            fetch = self._reading.pop(request_id, None)
            if fetch is not None:
                self._end_read(fetch)
            elif request_id in self._finals:
                self._finals[request_id] = self._clock.monotonic_s()

    def _end_read(self, fetch: Fetch) -> None:
        now_s, request = self._clock.monotonic_s(), fetch.request
        assert fetch.began_s is not None
        self._admission.pace.note_fetch(fetch.began_s, now_s)
        if request.request_id in self.finished_recving_kv_req_ids:
            self._keep(request)
            seconds = now_s - fetch.began_s
            result = FetchResult(
                FetchEnd.FETCHED,
                num_blocks=fetch.num_blocks,
                seconds=seconds,
                bytes_per_block=self._bytes_per_block,
            )
            self._report(fetch, result)
        # Otherwise it was aborted, or the read failed: the base class has freed its blocks.
        self._release_final(request.request_id)

    def _keep(self, request: Request) -> None:
        """Puts the blocks that were read into the prefix cache, and frees them."""
        self.finished_recving_kv_req_ids.discard(request.request_id)
        self.kv_cache_manager.cache_blocks(request, request.num_computed_tokens)
        # No read is under way any more, so freeing is immediate.
        request.status = RequestStatus.WAITING
        super().finish_requests([request.request_id], RequestStatus.FINISHED_STOPPED)

    # -- queries by which the engine decides whether to idle -----------------------------

    def get_num_unfinished_requests(self) -> int:
        """Counts the base class's requests, and those that it does not have yet."""
        num_ours = len(self._waiting_fetches) + len(self._held_finals) + len(self._fetch_outputs)
        return int(super().get_num_unfinished_requests()) + num_ours

    # -- for tests -----------------------------------------------------------------------

    def fetches(self) -> Iterator[str]:
        """Yields the ids of fetches that have not ended."""
        yield from self._waiting_fetches
        yield from self._reading
