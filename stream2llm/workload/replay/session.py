"""One session of a replay: opens, sends each event when it is due, seals, reads the answer.

    due -> opened -> (each step: wait until due, send) -> sealed -> tokens -> ended

Times are taken where things happen: when an event is begun, when its sending is
over, when a message is read. An event is begun as soon as it is due and the one
before it is sent.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Final

from stream2llm.api.errors import Stream2LLMError
from stream2llm.client import (
    AsyncClient,
    AsyncSession,
    DocumentOrdering,
    Event,
    Finished,
    Progress,
    SamplingParameters,
    SessionRecovery,
    TokenDelta,
)
from stream2llm.serving.system.clock import Clock
from stream2llm.workload.records import SessionRecord
from stream2llm.workload.replay.lateness import Timetable
from stream2llm.workload.replay.plan import PlannedSession, Step

CANCELLED: Final = "CANCELLED"
DEADLINE: Final = "DEADLINE_EXCEEDED"


def error_code(error: BaseException) -> str:
    """The gRPC status and, where it says more, our reason: "UNAVAILABLE: WORKER_LOST"."""
    if isinstance(error, TimeoutError):
        return DEADLINE
    if not isinstance(error, Stream2LLMError):
        return f"INTERNAL: {type(error).__name__}"
    if error.reason in (error.status_name, CANCELLED):
        return error.reason
    return f"{error.status_name}: {error.reason}"


_logger = logging.getLogger(__name__)
# The RPC's own deadline comes first and says more.
_GRACE_S = 5.0
# What the router allows.
_MAX_ID_CHARS = 256


@dataclass(frozen=True, slots=True)
class Asking:
    """What all sessions of a run have in common."""

    sampling: SamplingParameters
    # From a session's opening to its last token.
    timeout_s: float
    model: str = ""
    ordering: DocumentOrdering = DocumentOrdering.AS_GIVEN
    # Put before the trace's ids, so that two replays at a time do not meet in logs.
    id_prefix: str = ""
    # Upper bound on recorded lengths; None replays them as they are.
    longest_answer: int | None = None
    # From the seal; None: the cluster's, which is not counted.
    ttft_slo_ms: int | None = None
    # How far a session goes on when its router is lost.
    recover: SessionRecovery | bool = True

    def sampling_of(self, planned: PlannedSession) -> SamplingParameters:
        """The run's, with the answer's recorded length where the trace has one."""
        if planned.output_tokens is None:
            return self.sampling
        limits = [planned.output_tokens, self.longest_answer or planned.output_tokens]
        return replace(self.sampling, max_tokens=min(limits))


async def send(session: AsyncSession, step: Step) -> None:
    """Sends an append or an update."""
    if step.is_update:
        await session.update(step.documents)
    else:
        await session.append(*step.documents)


class SessionReplay:
    """Runs once; `record` has what happened, also for a session that was cut off."""

    def __init__(self, planned: PlannedSession, begin_s: float, clock: Clock) -> None:
        self._planned = planned
        # All times here are relative to the begin of the run.
        self._times = Timetable(begin_s, clock)
        self._opened_s = planned.due_s
        self._sealed_s: float | None = None
        self._ended_s = planned.due_s
        self._token_times_s: list[float] = []
        # Tokens of the answer so far.
        self.token_ids: list[int] = []
        self._progress = Progress()
        self._finished: Finished | None = None
        self._error = ""
        self._ttft_slo_s: float | None = None

    @property
    def session_id(self) -> str:
        """The trace's."""
        return self._planned.session_id

    @property
    def answered(self) -> bool:
        """Whether the whole answer is here."""
        return self._finished is not None

    async def run(self, client: AsyncClient, asking: Asking) -> None:
        """The whole session. Failures are recorded; only cancellation is raised."""
        try:
            async with asyncio.timeout(asking.timeout_s + _GRACE_S):
                await self._converse(client, asking)
        except asyncio.CancelledError:
            self._error = CANCELLED
            raise
        except (Stream2LLMError, TimeoutError) as error:
            self._error = error_code(error)
        except Exception as error:
            _logger.exception("session_broke session_id=%s", self._planned.session_id)
            self._error = error_code(error)
        finally:
            if not self.answered:
                self._ended_s = self._times.now_s()

    def record(self) -> SessionRecord:
        """What has come of it."""
        usage, progress = self._finished and self._finished.usage, self._progress
        spent = usage or progress
        return SessionRecord(
            session_id=self._planned.session_id,
            due_s=self._planned.due_s,
            opened_s=self._opened_s,
            seal_due_s=self._planned.seal_due_s,
            sealed_s=self._sealed_s,
            token_times_s=tuple(self._token_times_s),
            ended_s=self._ended_s,
            num_prompt_tokens=usage.prompt_tokens if usage else progress.received_tokens,
            lateness_s=self._times.lateness_s,
            computed_tokens=spent.computed_tokens,
            reused_tokens=spent.reused_tokens,
            invalidated_tokens=spent.invalidated_tokens,
            restarts=(self._finished or progress).restarts,
            error="" if self.answered else self._error,
            ttft_slo_s=self._ttft_slo_s,
            generator_lateness_s=self._times.own_lateness_s,
        )

    async def _converse(self, client: AsyncClient, asking: Asking) -> None:
        planned, slo_ms = self._planned, asking.ttft_slo_ms
        self._ttft_slo_s = None if slo_ms is None else slo_ms / 1000
        self._opened_s = self._times.begun(planned.due_s)
        async with client.session(
            prefix=planned.prefix,
            ordering=asking.ordering,
            sampling=asking.sampling_of(planned),
            model=asking.model,
            session_id=f"{asking.id_prefix}{planned.session_id}"[:_MAX_ID_CHARS],
            ttft_slo_ms=slo_ms,
            timeout_s=asking.timeout_s,
            recover=asking.recover,
            on_event=self._on_event,
        ) as session:
            self._times.taken()
            for step in planned.steps:
                await self._send(session, step)
            self._sealed_s = await self._times.due(planned.seal_due_s)
            async for _ in session.seal(planned.suffix):
                pass  # on_event has it, and earlier

    async def _send(self, session: AsyncSession, step: Step) -> None:
        await self._times.due(step.due_s)
        await send(session, step)
        self._times.sent(step.due_s)

    def _on_event(self, event: Event) -> None:
        """Every message, when it is read and before anything else happens to it."""
        if isinstance(event, TokenDelta):
            self._token_times_s += [self._times.now_s()] * len(event.token_ids)
            self.token_ids += event.token_ids
        elif isinstance(event, Progress):
            self._progress = event
        elif isinstance(event, Finished):
            self._finished, self._ended_s = event, self._times.now_s()
