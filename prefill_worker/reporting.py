"""Decides when the scheduler reports: the scheduler's half of the control channel."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

from vllm.v1.engine import EngineCoreOutput

from prefill_worker.report import SchedulerCounters, SchedulerReport, SwapState
from prefill_worker.session_state import WIRE_KEY

# Long enough that reports cost nothing, short enough that a scrape is fresh.
_MAX_STEPS_BETWEEN = 16


class Reporting:
    """Collects the contents of a report, from the first command on."""

    def __init__(self) -> None:
        self._channel: tuple[str, int] | None = None
        self._last_command = 0
        # A command has arrived since the last report.
        self.is_awaited = False
        self._plan_s: list[float] = []
        self._num_short_of_blocks = 0
        self._num_steps = 0
        self._last: SchedulerReport | None = None

    def open(self, request_id: str, client_index: int, command_number: int) -> None:
        """A command has arrived: reports go to its sender."""
        self._channel = (request_id, client_index)
        self._last_command = command_number
        self.is_awaited = True

    def note_plan(self, plan_s: float) -> None:
        """Notes the duration of phase 1 of a step."""
        self._plan_s.append(plan_s)

    def note_short_of_blocks(self, num_sessions: int) -> None:
        """Notes how many sessions found no KV block in this step."""
        self._num_short_of_blocks = num_sessions

    def take_due(
        self,
        policy: str,
        counters: SchedulerCounters,
        swap: SwapState,
        *,
        is_busy: bool,
        num_with_work: int,
        num_idle: int,
        policy_failure: str = "",
    ) -> Iterator[tuple[int, EngineCoreOutput]]:
        """Returns after a step the report and its client index, if a report is due.

        It is due for every command, when the engine is about to idle and figures
        have changed, and every `_MAX_STEPS_BETWEEN` steps.
        """
        self._num_steps += 1
        if self._channel is None:
            self._plan_s.clear()
            return
        if not self.is_awaited and is_busy and self._num_steps < _MAX_STEPS_BETWEEN:
            return
        report = SchedulerReport(
            last_command=self._last_command,
            policy=policy,
            counters=copy.copy(counters),
            num_sessions_with_work=num_with_work,
            num_sessions_idle=num_idle,
            num_sessions_short_of_blocks=self._num_short_of_blocks,
            swap=swap,
            policy_failure=policy_failure,
        )
        has_news = report != self._last
        self._last = report
        if not has_news and not self.is_awaited:
            # Empty steps that only watch transfers are not reported, nor are their plans.
            self._plan_s.clear()
            return
        yield self._send(report)

    def _send(self, report: SchedulerReport) -> tuple[int, EngineCoreOutput]:
        assert self._channel is not None
        request_id, client_index = self._channel
        wire = dataclasses.replace(report, plan_s=tuple(self._plan_s)).to_wire()
        self._plan_s, self._num_steps, self.is_awaited = [], 0, False
        output = EngineCoreOutput(
            request_id=request_id, new_token_ids=[], kv_transfer_params={WIRE_KEY: wire}
        )
        return client_index, output
