"""What the step under way computes, and what a step that was built means for its sessions."""

from __future__ import annotations

import logging

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import RequestStatus

from prefill_worker.live_sessions import LiveSessions
from prefill_worker.report import SchedulerCounters
from prefill_worker.types import StepPlan, StopReason

_log = logging.getLogger(__name__)


class StepRecord:
    """Follows one step from its plan to what the base class made of it."""

    def __init__(self, sessions: LiveSessions, counters: SchedulerCounters) -> None:
        self._sessions = sessions
        self._counters = counters
        # Tokens granted, by request id.
        self.grants: dict[str, int] = {}
        # The tokens that each session computes, [start, stop).
        self.ranges: list[tuple[int, int]] = []
        # Those that have only the next token of an answer to compute.
        self.decoding: frozenset[str] = frozenset()
        # When the workers could begin.
        self.began_s = 0.0
        # The plan ended for lack of blocks.
        self.is_short_of_blocks = False
        # Steps in which the base class did something else than was planned.
        self.num_missed_plans = 0

    def plan(self, plan: StepPlan) -> None:
        """Takes the grants, and notes which sessions lack memory."""
        self.grants = {grant.request_id: grant.num_tokens for grant in plan.grants}
        view = self._sessions.table.view
        self.decoding = frozenset(each for each in self.grants if view(each).is_decoding)
        self.is_short_of_blocks = bool(plan.short_of_memory)
        self._note_delay(plan)

    def _note_delay(self, plan: StepPlan) -> None:
        """A change of a session's delay is reported to the client."""
        is_leased = plan.stop is StopReason.KV_LEASED
        delay = StopReason.KV_LEASED if is_leased else StopReason.KV_MEMORY
        for request_id in plan.short_of_memory:
            state = self._sessions[request_id].state
            state.delay = delay.value
            if not state.is_answering:
                self._sessions.progress_reporting.touch(request_id)
        for request_id in self.grants:
            self._sessions[request_id].state.delay = ""

    def take_slots(self) -> list[str]:
        """Gives the step's sessions slots of the model runner; returns those that lose theirs.

        The model runner has to forget these: they will be announced to it anew.
        """
        lost = self._sessions.slots.choose(self.grants)
        for request_id in lost:
            self._sessions[request_id].request.status = RequestStatus.WAITING
        return lost

    def built(self, plan: StepPlan, output: SchedulerOutput, started_s: float) -> None:
        """The base class has built the step, whose planning began at `started_s`."""
        if output.num_scheduled_tokens != self.grants:
            # Should not happen with accepted settings. The base class's own decision is
            # as sound as in stock vLLM.
            self.num_missed_plans += 1
            _log.error("the step has %s, planned was %s", output.num_scheduled_tokens, plan)
        self.ranges.clear()
        for request_id in self.grants:
            self._sessions[request_id].state.note_step(started_s)
            self._note_computed(request_id, output.num_scheduled_tokens.get(request_id, 0))

    def _note_computed(self, request_id: str, num_tokens: int) -> None:
        live = self._sessions[request_id]
        # The base class has already advanced num_computed_tokens.
        start = live.request.num_computed_tokens - num_tokens
        self.ranges.append((start, start + num_tokens))
        if request_id not in self.decoding:
            self._counters.computed_tokens += num_tokens
            self._counters.recomputed_tokens += live.state.record_computed(start, num_tokens)
        self._sessions.touch(live)
