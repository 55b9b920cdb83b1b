"""What the scheduler adds to the outputs of a step: progress, offers, and reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from prefill_worker.live_sessions import LiveSessions
from prefill_worker.policy_switch import PolicySwitch
from prefill_worker.report import SchedulerCounters
from prefill_worker.reporting import Reporting
from prefill_worker.step_planning import StepPlanning
from prefill_worker.step_record import StepRecord


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """Collects what is due after each step."""

    sessions: LiveSessions
    policies: PolicySwitch
    planning: StepPlanning
    step: StepRecord
    counters: SchedulerCounters
    reporting: Reporting

    @property
    def num_awaited(self) -> int:
        """The number of sessions and commands that a step has to be made for, to report."""
        return len(self.sessions.progress_reporting) + self.reporting.is_awaited

    def add_final_progress(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Adds a session's last progress to its first token."""
        for output in [each for client in outputs.values() for each in client.outputs]:
            live = self.sessions.by_id.get(output.request_id)
            if live is not None and not live.state.is_answering:
                live.add_final_progress(output)

    def add_due(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Adds the outputs that are due after the step, each to its client's."""
        for client, output in self._due():
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(output)

    def _due(self) -> Iterator[tuple[int, EngineCoreOutput]]:
        table, live = self.sessions.table, self.sessions.by_id
        yield from self.sessions.progress_reporting.take_due(live, table.has_work)
        is_short = self.step.is_short_of_blocks
        yield from self.sessions.offering.take_due(live, table.has_work, is_short=is_short)
        self.counters.guarded_sessions = table.num_guarded_in_all
        num_with_work = table.num_with_work
        yield from self.reporting.take_due(
            table.policy.name,
            self.counters,
            self.sessions.swapping.state,
            is_busy=self.planning.num_to_step_for > 0,
            num_with_work=num_with_work,
            num_idle=table.num_sessions - num_with_work,
            policy_failure=self.policies.failure,
        )
