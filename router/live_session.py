"""What the tasks of one session share: its life cycle, its figures, its outbox.

Owner of everything that changes during a session and is not the business of
one task alone. One event loop, so no locks.
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
    """What every session of a router uses."""

    spec: RouterSpec
    text: TextInput
    # Makes the detokenizer for an answer to these prompt tokens.
    make_detokenizer: Callable[[Tokens], Detokenizer]
    workers: WorkerPool
    sessions: OpenSessions
    metrics: RouterMetrics
    clock: Clock

    def lengths(self) -> LengthLimits:
        """How long a prompt and its answer may be with the workers of the present view."""
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
        # At the seal; see the proto.
        self.document_order: tuple[int, ...] = ()
        # Fixed at the open: a session is not held to less than it began with.
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
        """What the engines get: stop strings are matched here."""
        return replace(self.sampling, stop_strings=())

    @property
    def is_sealed(self) -> bool:
        return self._life.state not in (State.NEW, State.OPEN)

    def apply(self, event: Event) -> None:
        """The only way on in life."""
        self._life.apply(event)
        self._show_phase()

    def end(self, event: Event, outcome: str) -> None:
        """Ends the session, once, and gives its place free."""
        self._life.apply(event)
        self._place.leave(outcome)

    def tell_progress(self) -> None:
        """The figures have changed."""
        self._show_phase()
        self._credit_changed.set()
        self.outbox.put_progress(self.progress.figures())

    def take_report(self, figures: PrefillProgress) -> None:
        """The prefill worker's figures."""
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
