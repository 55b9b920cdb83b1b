"""Builds what `PrefillScheduler` is made of, once vLLM's scheduler has built its own parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vllm.platforms import current_platform

from prefill_worker.blocks import LiveLedger
from prefill_worker.context_events import ContextEvents
from prefill_worker.cost_calibration import CostCalibration
from prefill_worker.costs import costs_for
from prefill_worker.digest_sampling import DigestSampling
from prefill_worker.handing_over import HandingOver
from prefill_worker.inter_token import InterTokenTarget
from prefill_worker.live_sessions import LiveSessions
from prefill_worker.nixl_connector import NixlConnector
from prefill_worker.offering import Offering
from prefill_worker.offers import OfferLimits, OfferTable
from prefill_worker.policy_switch import PolicySwitch
from prefill_worker.preempting import Preempting
from prefill_worker.prefix_hits import PrefixHits
from prefill_worker.progress_reporting import ProgressReporting
from prefill_worker.report import SchedulerCounters
from prefill_worker.reporting import Reporting
from prefill_worker.runner_slots import RunnerSlots
from prefill_worker.session_table import SessionTable
from prefill_worker.step_outputs import StepOutputs
from prefill_worker.step_planning import StepPlanning
from prefill_worker.step_record import StepRecord
from prefill_worker.swap_connector import SwapConnector, find_connector
from prefill_worker.swapping import NoCopier, Swapping
from stream2llm.engine.grammar_state import take_up
from stream2llm.serving.settings.worker_options import PrefillOptions, WorkerOptions
from stream2llm.serving.system.clock import Clock

if TYPE_CHECKING:
    from prefill_worker.scheduler import PrefillScheduler


@dataclass(frozen=True, slots=True)
class SchedulerParts:
    """The parts of one scheduler, which share their sessions and counters."""

    policies: PolicySwitch
    sessions: LiveSessions
    events: ContextEvents
    planning: StepPlanning
    preempting: Preempting
    step: StepRecord
    outputs: StepOutputs
    handing_over: HandingOver


def create_parts(
    scheduler: PrefillScheduler, options: WorkerOptions, clock: Clock, counters: SchedulerCounters
) -> SchedulerParts:
    """Raises what `find_policies` and `costs_for` raise."""
    manager, sizes = scheduler.kv_cache_manager, (scheduler.block_size, scheduler.hash_block_size)
    policies = PolicySwitch(options.prefill.import_paths)
    nixl = find_connector(scheduler.connector, NixlConnector)
    sessions = _sessions(scheduler, options, policies, nixl, clock, counters)
    hits = PrefixHits(manager, counters, scheduler.hash_block_size)
    take_up_grammar = partial(take_up, scheduler.structured_output_manager)
    inter_token = InterTokenTarget(options.inter_token_target_ms)
    planning = _planning(scheduler, options.prefill, sessions, hits, inter_token)
    step = StepRecord(sessions, counters)
    return SchedulerParts(
        policies,
        sessions,
        ContextEvents(sessions, manager, counters, *sizes, scheduler.is_compiling, take_up_grammar),
        planning,
        Preempting(
            sessions, manager, hits, counters, *sizes, clock.monotonic_s, scheduler.log_stats
        ),
        step,
        StepOutputs(sessions, policies, planning, step, counters, Reporting()),
        HandingOver(nixl, sessions.offering, sessions.digests),
    )


def _sessions(
    scheduler: PrefillScheduler,
    options: WorkerOptions,
    policies: PolicySwitch,
    nixl: NixlConnector | None,
    clock: Clock,
    counters: SchedulerCounters,
) -> LiveSessions:
    ledger = LiveLedger(scheduler.kv_cache_manager, scheduler.requests)
    digests = DigestSampling(nixl, ledger, scheduler.block_size)
    swapping = _swapping(scheduler, options.prefill, counters)
    return LiveSessions(
        _table(scheduler, options.prefill, policies, swapping),
        ledger,
        swapping,
        _offering(scheduler, options.handover.min_offer_tokens, nixl, digests, clock),
        digests,
        ProgressReporting(options.prefill.progress_interval_tokens),
        RunnerSlots(scheduler.max_num_running_reqs if scheduler.use_v2_model_runner else 0),
    )


def _table(
    scheduler: PrefillScheduler, options: PrefillOptions, policies: PolicySwitch, swapping: Swapping
) -> SessionTable:
    return SessionTable(
        policies.guarded(options.policy),
        starvation_guard_steps=options.starvation_guard_steps,
        num_lost_blocks=len(scheduler.kv_cache_manager.block_pool.blocks),
        compute_s=lambda start, stop: swapping.calibration.costs.recompute_s(start, stop),
    )


def _swapping(
    scheduler: PrefillScheduler, options: PrefillOptions, counters: SchedulerCounters
) -> Swapping:
    connector = find_connector(scheduler.connector, SwapConnector)
    costs = costs_for(scheduler.vllm_config, options.cost_profile or "")
    return Swapping(
        scheduler.kv_cache_manager,
        connector or NoCopier(),
        CostCalibration(costs, counters, copies_block=current_platform.is_cpu()),
        counters,
        num_ranks=connector.num_ranks if connector else 1,
    )


def _offering(
    scheduler: PrefillScheduler,
    min_tokens: int,
    nixl: NixlConnector | None,
    digests: DigestSampling,
    clock: Clock,
) -> Offering:
    manager = scheduler.kv_cache_manager
    num_blocks = len(manager.block_pool.blocks)
    limits = OfferLimits(scheduler.block_size, min_tokens=min_tokens, max_pinned_blocks=num_blocks)
    lease_s = nixl.connector_scheduler._kv_lease_duration if nixl else 0
    return Offering(manager, nixl, OfferTable(limits, lease_s), digests, clock.monotonic_s)


def _planning(
    scheduler: PrefillScheduler,
    options: PrefillOptions,
    sessions: LiveSessions,
    hits: PrefixHits,
    inter_token: InterTokenTarget,
) -> StepPlanning:
    return StepPlanning(
        sessions,
        scheduler.kv_cache_manager,
        hits,
        options,
        scheduler.block_size,
        num_tokens=scheduler.max_num_scheduled_tokens,
        num_requests=min(scheduler.max_num_running_reqs, scheduler.max_num_active_reqs),
        mode=options.preemption,
        inter_token=inter_token,
    )
