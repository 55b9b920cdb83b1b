"""The state of an answer other than that of index 0: its own, beside what it shares with its session.

It has a life cycle, workers, losses, text and figures of its own, and seals the prompt that its
session has sealed. The place at the router, the trace, the quotas and the deadline are the
session's, which counts as one.
"""

from __future__ import annotations

import logging

from router.live_session import LiveSession
from router.resumed import other_field
from router.session_log import answer_ended_line
from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Finished
from stream2llm.api.session import Event

_logger = logging.getLogger(__name__)


class FurtherAnswer(LiveSession):
    """One of the answers of a sealed session."""

    def __init__(self, session: LiveSession, index: int) -> None:
        super().__init__(session.parts, session.place, session.caller)
        self.index = index
        self.record.session_id = f"{session.session_id}-{index}"
        self.record.mode = session.mode
        self.record.num_tokens = session.record.num_tokens
        self.trace = session.trace
        self.sampling = session.sampling.of_answer(index)
        self.bad_words = session.bad_words
        self.lengths = session.lengths
        self.ttft_slo_ms = session.ttft_slo_ms
        self.document_order = session.document_order
        self.outbox = session.outbox
        self.timeline = session.timeline.of_answer()
        # The deadline, and the time to the first token, are those of the first answer.
        self._has_first_token = True
        if session.resumed_session is not None:
            self.progress.restarts = session.resumed_session.restarts
            self.resumed = session.resumed_session.answer(index)
        self.apply(Event.OPEN)
        self.apply(Event.SEAL)

    @property
    def resumed_field(self) -> str:
        return other_field(self.index)

    def end(self, event: Event, outcome: str, error: Stream2LLMError | None = None) -> None:
        """Ends the answer, once; the session ends with all of them."""
        self._queued.leave()
        self._life.apply(event)
        self.record.computed_tokens = self.progress.used()["computed_tokens"]
        self.record.restarts = self.progress.restarts
        since_seal_s = self.timeline.since_seal_s
        _logger.info("%s", answer_ended_line(self.record, outcome, since_seal_s, error))

    def finished(self, finished: Finished) -> None:
        self.record.finished = finished

    def send_progress(self) -> None:
        """The client has the progress of the session's context, which is complete."""
        self.note_work()

    def _show_phase(self) -> None:
        """The session shows that of its first answer."""
