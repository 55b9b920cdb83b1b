"""The input half of a session: client events become splices for prefill.

Reads at most one event beyond the credit window, so gRPC's flow control stops a client
that ignores its credit, at the cost of its own session only. A seal needs no credit: it
brings no document, and until prefill has it, the session ranks as one without a waiting
client.

Events that arrive together are sent together: a client that appends its last document
and seals sends two messages, and prefill, if it got the first one alone, would begin a
step for which the seal has to wait. So changes are held back for a moment, and for as
long as the next event is already there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from router.context import ContentDocument, ContextLimits, ContextLog, Reserve, Splice
from router.intake import Intake
from router.kv_prefetch import KvPrefetch
from router.live_session import LiveSession
from router.metrics import InputMode, InputOp
from router.placed_prefill import PlacedPrefill
from router.ranking_note import ranking_note
from router.sealed_answer import SealedAnswer
from router.stability import check_sureness, num_sure
from router.text_input import Frame
from stream2llm.api.errors import EventOrderError, IdleTimeoutError, InvalidRequestError
from stream2llm.api.requests import (
    AppendContext,
    ClientEvent,
    OpenSession,
    PlainTemplate,
    SealContext,
    UpdateContext,
)
from stream2llm.api.session import Event
from stream2llm.api.text_options import ControlTokens, OversizedDocuments
from stream2llm.serving.prefix import Tokens, as_tokens
from stream2llm.serving.silence import Silence, is_answered

_EVENTS: dict[type[ClientEvent], Event] = {
    OpenSession: Event.OPEN,
    AppendContext: Event.APPEND,
    UpdateContext: Event.UPDATE,
    SealContext: Event.SEAL,
}


# How long a change waits for the next event. No client waits for a change, only for a
# seal, and a seal within this time is answered a whole step earlier.
_LINGER_S = 0.001
# Maximum number of events that are sent as one, so that a client that sends without a
# pause is prefilled meanwhile.
_MOST_TOGETHER = 8


class EventReader:
    """The client's events in order, each checked against the life cycle.

    The creator closes it: the next event is being read while one is handled.
    """

    def __init__(self, live: LiveSession, events: AsyncIterator[ClientEvent]) -> None:
        self._live = live
        self._events = events
        self._coming: asyncio.Task[ClientEvent | None] | None = None
        # Whether the event that is being handled brings content, and the one that has come since.
        self._is_content_in_hand = False
        self._has_content_come = False

    @property
    def has_unhandled_content(self) -> bool:
        """Whether content has come, or the seal, and was not handled yet."""
        return self._is_content_in_hand or self._has_content_come

    async def next(self) -> ClientEvent | None:
        """Returns the next event; None when the client has closed its half after the seal.

        The one before has been handled.
        """
        self._is_content_in_hand = False
        if not self._live.is_sealed:
            await self._wait_for_credit()
        event = await self._read()
        self._live.apply(Event.CLOSE if event is None else _EVENTS[type(event)])
        if event is not None:
            self._is_content_in_hand, self._has_content_come = self._has_content_come, False
            self._coming = asyncio.create_task(self._pull())
        return event

    async def _wait_for_credit(self) -> None:
        """Returns when the client may be read again, or has sealed."""
        if self._live.progress.has_credit:
            return
        credit = asyncio.create_task(self._live.wait_for_credit())
        try:
            if self._coming is not None:
                await asyncio.wait({credit, self._coming}, return_when=asyncio.FIRST_COMPLETED)
            if not _is_seal(self._coming):
                await credit
        finally:
            credit.cancel()

    async def has_arrived(self, within_s: float) -> bool:
        """Whether the next event is there, or arrives within `within_s`, and may be read."""
        if self._coming is None:
            return False
        if not self._live.progress.has_credit:
            return _is_seal(self._coming)
        if not self._coming.done():
            await asyncio.wait({self._coming}, timeout=within_s)
        return self._coming.done()

    async def close(self) -> None:
        """Stops reading; drops an event that has arrived, or its error."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait({self._coming})
            if not self._coming.cancelled():
                self._coming.exception()

    async def open(self) -> OpenSession:
        """Returns the first event."""
        event = await self.next()
        assert isinstance(event, OpenSession), "the life cycle lets nothing else begin"
        return event

    async def _pull(self) -> ClientEvent | None:
        event = await anext(self._events, None)
        if isinstance(event, SealContext):
            # From here on the client waits, also while earlier events are being handled.
            self._live.timeline.sealed()
        self._has_content_come = event is not None and _brings_content(event)
        return event

    async def _read(self) -> ClientEvent | None:
        limits = self._live.parts.spec.limits
        is_to_open = self._coming is None and limits.open_timeout_s < limits.input_idle_timeout_s
        limit_s = limits.open_timeout_s if is_to_open else limits.input_idle_timeout_s
        coming = self._coming or asyncio.create_task(self._pull())
        self._coming = coming
        if self._live.is_sealed or await self._comes_within(coming, limit_s):
            # Shielded: `close` cancels it.
            return await asyncio.shield(coming)
        if is_to_open:
            raise IdleTimeoutError(
                f"no event came within {limit_s:g} s (open_timeout_s)", reason="NOT_OPENED"
            )
        raise IdleTimeoutError(
            f"no event came for {limit_s:g} s while the session was"
            f" {self._live.state} (input_idle_timeout_s)"
        )

    async def _comes_within(self, coming: asyncio.Task[Any], limit_s: float) -> bool:
        """Waits for the event; time in which this router itself stood still does not count."""
        silence = Silence(limit_s, look_every_s=limit_s)
        return await is_answered(coming, silence, self._live.parts.clock.monotonic_s)


def _brings_content(event: ClientEvent) -> bool:
    """Whether the event has text or token ids for the context, or completes it."""
    match event:
        case OpenSession(template=PlainTemplate() as template):
            return len(template.prefix) > 0
        case AppendContext() | UpdateContext():
            return any(each.content is not None and len(each.content) for each in event.documents)
        case _:
            return True  # a conversation, or the seal


def _is_seal(coming: asyncio.Task[ClientEvent | None] | None) -> bool:
    """Whether the next event has arrived and is the seal."""
    if coming is None or not coming.done() or coming.cancelled() or coming.exception():
        return False
    return isinstance(coming.result(), SealContext)


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A change of the sequence by one or several events, up to a revision."""

    revision: int
    splice: Splice
    stable_tokens: int
    num_events: int = 1


class SessionInput:
    """Applies events to the context log and sends the splices to prefill."""

    def __init__(
        self,
        live: LiveSession,
        prefill: PlacedPrefill,
        frame: Frame,
        log: ContextLog,
        on_sealed: Callable[[Tokens], SealedAnswer],
        prefetch: KvPrefetch,
        opened: OpenSession,
    ) -> None:
        self._live = live
        self._prefill = prefill
        self._prefetch = prefetch
        self._opened = opened
        self._intake = Intake(live.parts.text, log, opened, len(frame.suffix))
        self._frame = frame
        # Takes the sealed prompt; returns the answer, of which the client may have a part.
        self._on_sealed = on_sealed
        self._log = log
        # The change that has not been sent to prefill yet.
        self._held: _Held | None = None

    async def run(self, reader: EventReader) -> None:
        """Handles everything, until the client closes its half."""
        await self._begin()
        while (event := await reader.next()) is not None:
            await self._handle(event)
            if self._held and not await self._grows(self._held, reader):
                await self._send_held()

    async def _grows(self, held: _Held, reader: EventReader) -> bool:
        """Whether the held change waits for the next event."""
        return held.num_events < _MOST_TOGETHER and await reader.has_arrived(_LINGER_S)

    async def _begin(self) -> None:
        """Sends the prefix, to be prefilled before the first document arrives."""
        event = self._opened
        self._live.record.mode = InputMode.ONESHOT if event.one_shot else InputMode.APPEND
        self._prefetch.began(len(self._frame.prefix))
        num_tokens = len(self._frame.prefix)
        self._live.take_input(InputOp.OPEN, num_tokens, num_tokens)
        if event.one_shot:  # the seal follows immediately
            self._live.progress.event(event.sequence)
        else:
            splice = self._log.begin()
            stable = self._prefetch.appended(self._log.sequence)
            await self._splice(event.sequence, splice, stable)
            await self._send_held()

    async def _handle(self, event: ClientEvent) -> None:
        match event:
            case AppendContext():
                documents = await self._documents(event, InputOp.APPEND)
                splice = self._log.append(documents)
                stable = self._prefetch.appended(self._log.sequence)
                await self._changed(event, InputOp.APPEND, splice, stable)
            case UpdateContext():
                self._live.record.mode = InputMode.UPDATE
                check_sureness(each.stays for each in event.documents)
                documents = await self._documents(event, InputOp.UPDATE)
                splice = self._log.update(documents)
                num_documents = num_sure(each.stays for each in event.documents)
                sure = self._log.num_tokens_of(num_documents) if num_documents else 0
                stable = self._prefetch.updated(splice.keep_tokens, sure)
                await self._changed(event, InputOp.UPDATE, splice, stable)
            case SealContext():
                await self._seal(event)
            case OpenSession():  # pragma: no cover - the life cycle refuses it
                raise EventOrderError("a session opens once")

    async def _documents(
        self, event: AppendContext | UpdateContext, op: InputOp
    ) -> tuple[ContentDocument, ...]:
        begin_s = self._live.trace.now_s()
        taken = await self._intake.take(event)
        self._live.trace.documents_tokenized(op, begin_s, taken.documents)
        for oversized in taken.oversized:
            await self._live.outbox.put(oversized)
        return taken.documents

    async def _changed(
        self, event: ClientEvent, op: InputOp, splice: Splice, stable_tokens: int
    ) -> None:
        self._live.take_input(op, splice.num_new_tokens, len(self._log.sequence))
        await self._splice(event.sequence, splice, stable_tokens)

    async def _splice(self, sequence: int, splice: Splice, stable_tokens: int) -> None:
        # An unchanged list may make more tokens stable.
        if splice.is_empty and not stable_tokens:
            self._live.progress.event(sequence)
        else:
            revision = self._revise(sequence, splice)
            self._prefetch.spliced(revision, splice)
            self._hold(revision, splice, stable_tokens)
        self._live.send_progress()

    def _hold(self, revision: int, splice: Splice, stable_tokens: int) -> _Held:
        """Joins the held change and this one into one."""
        num_events = 1
        if self._held is not None:
            num_events += self._held.num_events
            splice = self._held.splice.then(splice)
        self._held = _Held(revision, splice, stable_tokens, num_events)
        return self._held

    async def _send_held(self) -> None:
        """Sends the held change to prefill, if there is one."""
        if self._held is not None:
            held, self._held = self._held, None
            await self._prefill.splice(held.revision, held.splice, stable_tokens=held.stable_tokens)

    async def _seal(self, event: SealContext) -> None:
        begin_s = self._live.trace.now_s()
        suffix = await self._suffix(event)
        note = await self._ranking_note()
        self._live.trace.tokenized(InputOp.SEAL, begin_s, len(suffix) + len(note))
        if not self._has_room_for(note, suffix):
            note = as_tokens([])
        splice = self._log.seal(np.concatenate([note, suffix]), self._frame.num_bos_tokens)
        num_brought = self._live.num_brought_tokens
        self._live.take_input(InputOp.SEAL, len(suffix) + num_brought, len(splice.sequence))
        self._live.document_order = self._log.arrangement.order
        final = self._on_sealed(splice.sequence)
        if final.has_ended:
            return
        if num_brought:
            splice = replace(splice, sequence=final.tokens)
        await self._send_seal(event, splice, final)

    async def _send_seal(self, event: SealContext, splice: Splice, final: SealedAnswer) -> None:
        revision = self._revise(event.sequence, splice)
        stable = self._prefetch.sealed(splice.sequence) if final.hand_over else 0
        self._prefetch.spliced(revision, splice)
        splice = self._hold(revision, splice, stable).splice
        self._held = None
        self._live.note_work()  # the first token may be here when it is sent
        await self._prefill.seal(
            revision,
            splice,
            hand_over=final.hand_over,
            stable_tokens=stable,
            answer_tokens=final.answer.num_tokens,
        )
        self._live.timeline.seal_sent()
        self._live.send_progress()

    def _has_room_for(self, note: Tokens, suffix: Tokens) -> bool:
        """Whether the note fits; where documents are refused or cut it must not fail the seal."""
        if self._opened.oversized_documents is OversizedDocuments.FAIL:
            return True
        return len(note) <= self._log.room("append", Reserve(len(suffix))).num_tokens

    async def _suffix(self, event: SealContext) -> Tokens:
        if event.suffix is None:
            return self._frame.suffix
        if self._frame.is_chat:
            raise InvalidRequestError(
                "seal.suffix cannot be used with a chat template, which has its own",
                reason="SUFFIX_WITH_CHAT",
                field="seal.suffix",
            )
        return await self._live.parts.text.content(
            event.suffix,
            "seal.suffix",
            with_control_tokens=self._opened.control_tokens is not ControlTokens.NONE,
        )

    async def _ranking_note(self) -> Tokens:
        """Tokenizes the note on its own, because the suffix may be token ids."""
        text = ranking_note(self._opened.ranking_note, self._log.arrangement)
        if not text:
            return as_tokens([])
        return await self._live.parts.text.content(text, "open.ranking_note")

    def _revise(self, sequence: int, splice: Splice) -> int:
        return self._live.progress.splice(sequence, splice.keep_tokens, len(splice.sequence))


def limits_of(live: LiveSession) -> ContextLimits:
    """Returns the limits on what one session may send to this router."""
    spec = live.parts.spec
    return ContextLimits(
        length=live.lengths,
        max_total_tokens=spec.limits.max_session_tokens,
        max_documents_per_event=spec.limits.max_documents_per_event,
        max_documents=spec.limits.max_session_documents,
    )
