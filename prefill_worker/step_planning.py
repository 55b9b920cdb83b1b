"""Phase 1 on vLLM: what a step may use, the prefix cache hits ahead of its plan, and the plan."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.v1.core.kv_cache_manager import KVCacheManager

from cost_profiles.decision import Mode
from prefill_worker.inter_token import InterTokenTarget
from prefill_worker.live_sessions import LiveSessions
from prefill_worker.preemption import Preemption
from prefill_worker.prefix_hits import PrefixHits
from prefill_worker.types import StepLimits, StepPlan
from stream2llm.serving.settings.worker_options import PrefillOptions


@dataclass(slots=True)
class StepPlanning:
    """Has the session table plan steps within the engine's present limits."""

    sessions: LiveSessions
    manager: KVCacheManager
    hits: PrefixHits
    options: PrefillOptions
    # In tokens.
    block_size: int
    # The most that one step may compute, and of how many sessions.
    num_tokens: int
    num_requests: int
    mode: Mode
    inter_token: InterTokenTarget
    # The baseline of benchmarks.
    evicts_whole_requests: bool = False

    def plan_after_hits(self) -> StepPlan:
        """Returns the plan, after the first sessions in rank have taken their prefix cache hits.

        A hit can leave a session nothing to compute, and such a request must not enter
        the base class's queues: it would block all behind it. So hits are taken before
        the plan; a session that still has one is left out of the step.
        """
        self.hits.begin_step()
        sessions = self.sessions
        for request_id in sessions.table.hits_in_turn(self._limits(), sessions.ledger):
            live = sessions[request_id]
            if self.hits.adopt(live):
                sessions.digests.touch(request_id, 0)  # its blocks may be others now
                sessions.touch(live)
        return self.plan()

    def plan(self) -> StepPlan:
        """Returns the plan for the sessions as they are."""
        calibration = self.sessions.swapping.calibration
        preemption = Preemption(
            self.mode, calibration.costs, self.block_size, tries_swap=calibration.trials.is_due
        )
        return self.sessions.table.plan(self._limits(), self.sessions.ledger, preemption)

    @property
    def num_free_blocks(self) -> int:
        """The number of KV blocks that nothing holds."""
        count: int = self.manager.block_pool.get_num_free_blocks()
        return count

    @property
    def num_to_step_for(self) -> int:
        """The number of sessions for which another step would do something."""
        return self.sessions.table.num_to_step_for(self.num_free_blocks)

    def _limits(self) -> StepLimits:
        return StepLimits(
            num_tokens=self.num_tokens,
            num_requests=self.num_requests,
            num_free_blocks=self.num_free_blocks,
            block_size=self.block_size,
            evicts_whole_requests=self.evicts_whole_requests,
            num_host_slots=self.sessions.swapping.host.num_free,
            num_shared_tokens=self.options.shared_token_budget,
            prefill_s=self.inter_token.prefill_s,
            open_step_s=self.options.open_step_s,
        )
