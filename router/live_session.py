"""State that the tasks of one session share: its life cycle, figures and outbox.

Owns everything that changes during a session and that several tasks use. One event
loop, so no locks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from router.lengths import LengthLimits
from router.metrics import InputMode, InputOp, Phase
from router.outbox import Outbox
from router.progress import ProgressTracker
from router.queued_work import QueuedWork
from router.recovery import Cause, Failure, Recovery
from router.resumed import FIELD
from router.router_parts import RouterParts
from router.session_log import SessionRecord, ended_line, restarted_line, resumed_line
from router.session_trace import SessionTrace
from router.sessions import SessionPlace
from router.timeline import Timeline
from router.worker import Worker
from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Finished, Timings
from stream2llm.api.options import AskedSlo, DocumentOrdering
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.api.requests import ResumedAnswer, ResumedSession
from stream2llm.api.sampling import SamplingParameters, TokenSequence
from stream2llm.api.session import Event, Session, State
from stream2llm.security.principal import ANYONE, Principal
from stream2llm.serving.observability.log_context import LogContext
from stream2llm.serving.observability.tracing import NO_TRACE, Trace
from stream2llm.serving.system.light_event import LightEvent

_logger = logging.getLogger(__name__)


_PHASES = {
    State.NEW: Phase.QUEUED,
    State.SEALED: Phase.PREFILLING,
    State.TRANSFERRING: Phase.TRANSFERRING,
    State.DECODING: Phase.DECODING,
}


class LiveSession:
    """One session while its RPC runs."""

    def __init__(
        self,
        parts: RouterParts,
        place: SessionPlace,
        caller: Principal = ANYONE,
        trace: Trace = NO_TRACE,
    ) -> None:
        self.parts = parts
        self.caller = caller
        self.tenant = caller.tenant
        # Which of the session's answers this is: 0, or that of a `FurtherAnswer`.
        self.index = 0
        # Keeps the KV of one tenant from being found by another one.
        self.cache_salt = parts.spec.security.cache_salt(caller.tenant)
        # Its rank among others, for the workers.
        self.share = parts.spec.security.tenants.share(caller.tenant)
        self.trace = SessionTrace(trace)
        self.log_context = LogContext(trace.context)
        self.record = SessionRecord(caller.tenant)
        self.sampling = SamplingParameters()
        # Its bad words, as tokens.
        self.bad_words: tuple[TokenSequence, ...] = ()
        self.ordering = DocumentOrdering.AS_GIVEN
        # Deadlines in the metadata of the call.
        self.asked_slos: tuple[AskedSlo, ...] = ()
        # Milliseconds from the seal in which the first token is due; 0: no deadline.
        self.ttft_slo_ms = 0
        # What the client has of the session, and of this answer, if it was at another router before.
        self.resumed_session: ResumedSession | None = None
        self.resumed: ResumedAnswer | None = None
        self._has_first_token = False
        self._queued = QueuedWork(parts.clock, self.share)
        # Set at the seal; see the proto.
        self.document_order: tuple[int, ...] = ()
        # Fixed at the open: later views must not lower a session's limits.
        self.lengths = LengthLimits(parts.spec.max_model_len)
        self.outbox = Outbox()
        self.timeline = Timeline(parts.clock)
        self.progress = ProgressTracker(parts.spec.limits.credit_window_tokens)
        self.recovery = Recovery(parts.spec.recovery)
        # Workers that sent the session away; their successors may take it.
        self.refused_by: set[Worker] = set()
        # Cause of the last loss.
        self._cause = Cause.PREFILL_LOST
        self._life = Session()
        self.place = place
        self._credit_changed = LightEvent()

    @property
    def session_id(self) -> str:
        return self.record.session_id

    @property
    def mode(self) -> InputMode:
        return self.record.mode

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def worker_sampling(self) -> SamplingParameters:
        """Parameters for the engines: tokens only. Text, and the prompt's length, are handled here."""
        return replace(
            self.sampling,
            stop_strings=(),
            bad_words=self.bad_words,
            include_stop_string=False,
            skip_special_tokens=True,
            truncate_prompt_tokens=None,
            n=1,
        )

    @property
    def ttft_left_ms(self) -> int:
        """Milliseconds until the first token is due, at least 1; 0: no deadline."""
        left_ms = self.ttft_slo_ms - int(1000 * self.timeline.since_seal_s)
        return max(left_ms, 1) if self.ttft_slo_ms else 0

    @property
    def num_brought_tokens(self) -> int:
        """The number of tokens of the session's answers that the client has from another router."""
        resumed = self.resumed_session
        if resumed is None:
            return 0
        return sum(len(resumed.answer(index).token_ids) for index in range(self.sampling.n))

    @property
    def resumed_field(self) -> str:
        """The field with what the client has brought of this answer, for errors."""
        return FIELD

    @property
    def is_sealed(self) -> bool:
        return self._life.state not in (State.NEW, State.OPEN)

    def apply(self, event: Event) -> None:
        """Applies an event; the only way to change the state."""
        self._life.apply(event)
        self._show_phase()

    def stepped(self) -> None:
        """Tokens behind the first one have come: `Event.STEP`, which changes nothing from its second on."""
        if self._life.state is not State.DECODING:
            self.apply(Event.STEP)

    def end(self, event: Event, outcome: str, error: Stream2LLMError | None = None) -> None:
        """Ends the session, once, and frees its place."""
        if self.is_sealed and not self._has_first_token:
            self._note_deadline(is_met=False)
        self._queued.leave()
        self._life.apply(event)
        self.place.leave(outcome)
        model = self.parts.spec.model_name
        self.trace.end(self.timeline, outcome, self.session_id, model, self.mode, error)
        self.record.computed_tokens = self.progress.used()["computed_tokens"]
        self.record.restarts = self.progress.restarts
        _logger.info("%s", ended_line(self.record, outcome, self.timeline.since_open_s, error))

    def finished(self, finished: Finished) -> None:
        """The answer has ended."""
        self.record.finished = finished
        self.trace.finished(finished)

    # -- workers ----------------------------------------------------------------------

    def placed(self, worker: Worker) -> None:
        """A prefill worker has the session; its work counts in that worker's queue."""
        self.record.at(worker.worker_id)
        self._queued.enter(worker.queue)

    def resume(self, resumed: ResumedSession) -> None:
        """The session was at another router before."""
        self.resumed_session, self.resumed = resumed, resumed.answer(0)
        self.progress.restarts = resumed.restarts
        self.place.restarted(Cause.ROUTER_LOST)
        self.record.num_answer_tokens = len(resumed.token_ids)
        if resumed.token_ids:
            self._has_first_token = True
            self._cause = Cause.ROUTER_LOST
            self.timeline.lost()
        _logger.info("%s", resumed_line(self.record, resumed))

    def lost(self, cause: Cause, failure: Failure, revision: int) -> None:
        """A worker is lost; another one begins with the sequence of that revision."""
        self._cause = cause
        if cause is Cause.REFUSED and isinstance(failure.worker, Worker):
            self.refused_by.add(failure.worker)
        self._queued.leave()
        self.progress.restarted(revision)
        if self.is_sealed:
            self.timeline.lost()
        self.send_progress()

    def placed_again(self, cause: Cause, failure: Failure, num_tokens: int) -> None:
        """The session is at another worker, which has been sent its `num_tokens` tokens."""
        self.place.restarted(cause)
        self.trace.restarted()
        self.record.restarts = self.progress.restarts
        _logger.warning(
            "%s", restarted_line(self.record, cause, failure.worker_id, num_tokens, failure.error)
        )

    def next_token(self, num_answer_tokens: int) -> None:
        """The answer has so many tokens now."""
        self.record.num_answer_tokens = num_answer_tokens
        recovery_s = self.timeline.recovered()
        if recovery_s is not None:
            self.place.recovered(self._cause, recovery_s)
            self._queued.leave()

    def note_first_token(self) -> Timings:
        """The first token from here is there.

        Counts the session in or out of its deadline, unless the answer began at another router.
        """
        self.timeline.first_token()
        self.note_work()  # what the report with the first token says was computed
        self._queued.leave()
        self.record.timings = timings = self.timeline.timings()
        if not self._has_first_token:
            self._has_first_token = True
            self.parts.metrics.tenants.first_token(self.share.name, timings.ttft_from_seal_s)
            self._note_deadline(is_met=1000 * timings.ttft_from_seal_s <= self.ttft_slo_ms)
        return timings

    def _note_deadline(self, *, is_met: bool) -> None:
        if self.ttft_slo_ms:
            self.parts.metrics.deadline(is_met=is_met)

    def note_work(self) -> None:
        """Counts in the queue what is left, and what was computed."""
        has_deadline = self.is_sealed and self.ttft_slo_ms
        left_s = self.ttft_slo_ms / 1000 - self.timeline.since_seal_s
        self._queued.note(self.progress, left_s if has_deadline else None)

    def send_progress(self) -> None:
        """Sends the client the present figures."""
        self.note_work()
        self._show_phase()
        self._credit_changed.set()
        self.outbox.put_progress(self.progress.figures())

    def take_report(self, figures: PrefillProgress) -> None:
        """Takes the prefill worker's figures."""
        self.parts.metrics.prefilled(self.progress.worker, figures, self.ordering)
        num_more = figures.computed_tokens - self.progress.worker.computed_tokens
        self.place.computed(max(num_more, 0))
        self.place.recomputed(self.progress.report(figures))

    def take_input(self, op: InputOp, num_tokens: int, held_tokens: int) -> None:
        """Counts an event's tokens, after which the context has `held_tokens`.

        Raises OverloadedError when a quota of the tenant does not allow that.
        """
        self.parts.metrics.received(op, num_tokens)
        self.record.num_tokens = held_tokens
        self.place.received(num_tokens, held_tokens, seals=op is InputOp.SEAL)

    def read_by(self, has_unhandled_content: Callable[[], bool]) -> None:
        """While that is so, the session is not silent: the router works on what it has sent."""
        self.place.has_unhandled_content = has_unhandled_content

    async def wait_for_credit(self) -> None:
        """Returns when the client may be read again."""
        while not self.progress.has_credit:
            self._credit_changed.clear()
            await self._credit_changed.wait()

    def _show_phase(self) -> None:
        waiting = Phase.WAITING_INPUT if self.progress.is_caught_up else Phase.PREFILLING
        if not self._life.has_ended:
            self.place.move(_PHASES.get(self._life.state, waiting))
