"""State that the tasks of one session share: its life cycle, figures and outbox.

Owns everything that changes during a session and that several tasks use. One event
loop, so no locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from router.detokenizer import Detokenizer
from router.lengths import LengthLimits, limits_with
from router.metrics import InputMode, Phase, RouterMetrics
from router.outbox import Outbox
from router.progress import ProgressTracker
from router.sessions import OpenSessions, SessionPlace
from router.text_input import TextInput
from router.timeline import Timeline
from router.workers import WorkerPool
from stream2llm.api.ordering import DocumentOrdering
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.session import Event, Session, State
from stream2llm.serving.clock import Clock
from stream2llm.serving.prefix import Tokens
from stream2llm.serving.router_spec import RouterSpec


@dataclass(frozen=True, slots=True)
class RouterParts:
    """What all sessions of a router use."""

    spec: RouterSpec
    text: TextInput
    # Makes the detokenizer of an answer to these prompt tokens.
    make_detokenizer: Callable[[Tokens], Detokenizer]
    workers: WorkerPool
    sessions: OpenSessions
    metrics: RouterMetrics
    clock: Clock

    def lengths(self) -> LengthLimits:
        """The limits on prompt and answer with the present workers."""
        addresses = (worker.address for worker in self.workers)
        return limits_with(self.spec.max_model_len, addresses)


_PHASES = {
    State.NEW: Phase.QUEUED,
    State.SEALED: Phase.PREFILLING,
    State.TRANSFERRING: Phase.TRANSFERRING,
    State.DECODING: Phase.DECODING,
}


class LiveSession:
    """One session while its RPC runs."""

    def __init__(self, parts: RouterParts, place: SessionPlace) -> None:
        self.parts = parts
        self.session_id = ""
        self.sampling = SamplingParameters()
        self.ordering = DocumentOrdering.AS_GIVEN
        # Set at the seal; see the proto.
        self.document_order: tuple[int, ...] = ()
        # Fixed at the open: later views must not lower a session's limits.
        self.lengths = LengthLimits(parts.spec.max_model_len)
        self.mode = InputMode.ONESHOT
        self.outbox = Outbox()
        self.timeline = Timeline(parts.clock)
        self.progress = ProgressTracker(parts.spec.limits.credit_window_tokens)
        self._life = Session()
        self._place = place
        self._credit_changed = asyncio.Event()

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def worker_sampling(self) -> SamplingParameters:
        """Sampling parameters for the engines: without stop strings, which are matched here."""
        return replace(self.sampling, stop_strings=())

    @property
    def is_sealed(self) -> bool:
        return self._life.state not in (State.NEW, State.OPEN)

    def apply(self, event: Event) -> None:
        """Applies an event; the only way to change the state."""
        self._life.apply(event)
        self._show_phase()

    def end(self, event: Event, outcome: str) -> None:
        """Ends the session, once, and frees its place."""
        self._life.apply(event)
        self._place.leave(outcome)

    def send_progress(self) -> None:
        """Sends the client the present figures."""
        self._show_phase()
        self._credit_changed.set()
        self.outbox.put_progress(self.progress.figures())

    def take_report(self, figures: PrefillProgress) -> None:
        """Takes the prefill worker's figures."""
        self.parts.metrics.prefilled(self.progress.worker, figures, self.ordering)
        self.progress.report(figures)

    async def wait_for_credit(self) -> None:
        """Returns when the client may be read again."""
        while not self.progress.has_credit:
            self._credit_changed.clear()
            await self._credit_changed.wait()

    def _show_phase(self) -> None:
        waiting = Phase.WAITING_INPUT if self.progress.is_caught_up else Phase.PREFILLING
        if not self._life.has_ended:
            self._place.move(_PHASES.get(self._life.state, waiting))
