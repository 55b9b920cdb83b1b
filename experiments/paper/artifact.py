"""Preemption as the public artifact has it, for comparison with its figures.

What differs from ours, read from its scheduler on 29 November 2026, and written anew here:

- A victim loses all of its KV.
- `cost` compares computing and copying so many tokens as the request in whose favour it
  happens computes in the step, not those that the victim loses.
- A victim that is to be computed again has new tokens like any other: it competes, and may
  evict. Ours comes last and evicts no session.
- A victim that was copied stays away until it has new tokens. Ours returns when there is room.
- Of requests without new tokens, the one that was admitted last is evicted first, so one that has
  just come back goes again; under plain vLLM's order that holds for all. Ours takes the one whose
  KV is cheapest to lose.
- Copies come before the step, not beside it, and host memory never ends.

Not rebuilt: plain vLLM's waiting queue, in which the first request holds up all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cost_profiles.correction import CorrectedCostModel
from cost_profiles.decision import Mode, Reason
from cost_profiles.model import CostModel
from cost_profiles.types import Costs
from experiments.paper.h200 import TOKEN_BUDGET, Fit, profile
from experiments.paper.published import Preemptions
from experiments.paper.runs import Cell, asked, settings_of
from prefill_worker.policy import RankKey
from prefill_worker.types import Eviction, Grant, Load, RequestView, StepPlan, SwapChoice
from stream2llm.api.tenant import ONE_TENANT, TenantShare
from stream2llm.simulator.cluster import Cluster, ClusterSettings
from stream2llm.simulator.prefill import PrefillWorker
from stream2llm.simulator.prefill_settings import PrefillSettings
from stream2llm.simulator.step_time import StepSeconds
from stream2llm.simulator.steps import Range
from stream2llm.simulator.work import Change
from stream2llm.workload.records import RunRecord

# It has no guard against starvation.
NEVER = 10**9


@dataclass(frozen=True, slots=True)
class CopiesByBlock:
    """Costs with copies that take so long a block, each way, and nothing besides."""

    base: Costs
    block_s: float

    def recompute_s(self, from_token: int, to_token: int) -> float:
        return self.base.recompute_s(from_token, to_token)

    @property
    def step_fixed_s(self) -> float:
        return self.base.step_fixed_s

    def swap_out_s(self, num_blocks: int) -> float:
        return self.block_s * num_blocks

    def swap_in_s(self, num_blocks: int) -> float:
        return self.block_s * num_blocks


class ArtifactWorker(PrefillWorker):
    """A prefill worker that preempts as the module's text says."""

    def __init__(self, settings: PrefillSettings, step_s: StepSeconds, costs: Costs) -> None:
        self._mode = Mode(settings.options.preemption)
        # Every victim is copied; in mode cost, `_plan` takes the copies of some back.
        planned = Mode.RECOMPUTE if self._mode is Mode.RECOMPUTE else Mode.SWAP
        options = settings.options.model_copy(
            update={"preemption": planned, "starvation_guard_steps": NEVER}
        )
        settings = replace(settings, options=options, whole_requests=True, overlaps=False)
        super().__init__(settings, step_s, costs, CorrectedCostModel(costs))
        # Numbers of the sessions that have KV, in the order in which they got the first of it.
        self._admitted: dict[str, int] = {}
        self._num_admitted = 0
        policy = self._table.policy
        self._serve = policy.serve
        keep = self._by_admission if policy.keep else self._idle_by_admission
        self._table.set_policy(policy._replace(keep=keep))
        # Copied, and without new tokens since.
        self._away: set[str] = set()
        # Live sessions at each eviction.
        self.num_sessions_then: list[int] = []

    def _by_admission(self, view: RequestView) -> RankKey:
        return (self._admitted.get(view.request_id, 0),)

    def _idle_by_admission(self, view: RequestView) -> RankKey:
        if view.sealed or view.has_claim:
            return (not view.sealed, *self._serve(view))
        return (2, *self._by_admission(view))

    def _compute(self, grant: Grant, *, is_prompt: bool) -> Range:
        self._admit(grant.request_id)
        return super()._compute(grant, is_prompt=is_prompt)

    def _begin_load(self, load: Load) -> tuple[int, ...]:
        self._admit(load.request_id)
        return super()._begin_load(load)

    def _admit(self, name: str) -> None:
        if not self._sessions[name].blocks:
            self._num_admitted += 1
            self._admitted[name] = self._num_admitted

    def change(
        self,
        name: str,
        change: Change,
        *,
        tenant: TenantShare = ONE_TENANT,
        ttft_slo_ms: int = 0,
        num_to_sample: int = 1,
    ) -> None:
        """New tokens bring a session back."""
        self._away.discard(name)
        super().change(
            name, change, tenant=tenant, ttft_slo_ms=ttft_slo_ms, num_to_sample=num_to_sample
        )

    def _touch(self, name: str) -> None:
        if name in self._away:
            # It neither holds nor wants anything.
            self._table.update(name, 0, 0, 0)
        else:
            super()._touch(name)

    def _plan(self) -> StepPlan:
        plan = super()._plan()
        if self._mode is not Mode.COST or not plan.evictions:
            return plan
        tokens = {grant.request_id: grant.num_tokens for grant in plan.grants}
        tokens |= {load.request_id: load.num_blocks * self.block_size for load in plan.loads}
        chosen = tuple(self._chosen(each, tokens) for each in plan.evictions)
        return plan._replace(evictions=chosen)

    def _chosen(self, eviction: Eviction, tokens: Mapping[str, int]) -> Eviction:
        """The eviction, without its copy where computing the newcomer's tokens costs less."""
        num_tokens = tokens[eviction.beneficiary]
        num_blocks = -(-num_tokens // self.block_size)
        copy_s = self._time.truth.swap_out_s(num_blocks) + self._time.truth.swap_in_s(num_blocks)
        if self._time.compute_s([(0, num_tokens)]) < copy_s:
            return replace(eviction, swap=SwapChoice(Reason.CHEAPER))
        return eviction

    def _evict(self, eviction: Eviction) -> int:
        self.num_sessions_then.append(self.num_sessions)
        name = eviction.request_id
        session = self._sessions[name]
        is_idle = not self._table.has_work(name)
        num_copied = super()._evict(eviction)
        if num_copied and is_idle:
            self._away.add(name)
        elif not num_copied:
            # What is lost counts as new.
            session.state.lost_until = 0
        self._touch(name)
        return num_copied


@dataclass(frozen=True, slots=True)
class Played:
    """A run, and its preemptions."""

    run: RunRecord
    preemptions: Preemptions


def play_as_published(cell: Cell, fit: Fit, block_s: float) -> Played:
    """Runs a cell; copies take `block_s` a block, each way."""
    shape = cell.setting.shape
    costs = CopiesByBlock(CostModel(profile(fit, TOKEN_BUDGET[shape])), block_s)
    worker = ArtifactWorker(settings_of(cell), fit.law.seconds, costs)
    run = Cluster(ClusterSettings(front_s=fit.front_s), [worker]).play(
        asked(cell), cell.system, shape
    )
    counters = worker.counters
    then: Sequence[int] = worker.num_sessions_then or [0]
    p50, p95 = np.percentile(then, [50, 95]).tolist()
    return Played(run, Preemptions(counters.recomputed_victims, counters.swapped_victims, p50, p95))
