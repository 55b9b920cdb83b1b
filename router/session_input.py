"""The input half of a session: client events become splices for prefill.

Events that arrive together are sent together: a client that appends its last document
and seals in two messages would have prefill, if it got the first one alone, begin a step
for which the seal has to wait. So changes are held back for a moment, and for as long as
the next event is already there. A change that comes with the seal needs no such luck.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from router.answers import PlacedAnswer
from router.context import ContextLimits, ContextLog, Reserve
from router.documents import ContentDocument
from router.event_reader import EventReader
from router.intake import Intake
from router.live_session import LiveSession
from router.metrics import InputMode, InputOp
from router.ranking_note import ranking_note
from router.sealed_answer import SealedAnswer
from router.splice import Splice
from router.stability import check_sureness, num_sure
from router.text_input import Frame
from stream2llm.api.errors import EventOrderError, InvalidRequestError, Stream2LLMError
from stream2llm.api.options import ControlTokens, OversizedDocuments
from stream2llm.api.requests import (
    AppendContext,
    ClientEvent,
    OpenSession,
    SealContext,
    UpdateContext,
)
from stream2llm.serving.sessions.prefix import Tokens, as_tokens

# How long a change waits for the next event. No client waits for a change, only for a
# seal, and a seal within this time is answered a whole step earlier.
_LINGER_S = 0.001
# Maximum number of events that are sent as one, so that a client that sends without a
# pause is prefilled meanwhile.
_MOST_TOGETHER = 8


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
        answer: PlacedAnswer,
        frame: Frame,
        log: ContextLog,
        opened: OpenSession,
    ) -> None:
        self._live = live
        self._prefill = answer.prefill
        self._prefetch = answer.prefetch
        self._opened = opened
        self._intake = Intake(live.parts.text, log, opened, len(frame.suffix))
        self._frame = frame
        # Takes the sealed prompt; returns the answer, of which the client may have a part.
        self._on_sealed = answer.output.sealed
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
            self._splice(event.sequence, splice, stable)
            self._live.send_progress()
            await self._send_held()

    async def _handle(self, event: ClientEvent) -> None:
        match event:
            case AppendContext() | UpdateContext():
                await self._change(event)
                self._live.send_progress()
            case SealContext():
                if event.change is not None:
                    await self._change_of_seal(event.change, event.sequence)
                await self._seal(event)
            case OpenSession():  # pragma: no cover - the life cycle refuses it
                raise EventOrderError("a session opens once")

    async def _change(self, event: AppendContext | UpdateContext) -> None:
        """Applies an event, which is held until `_send_held` or the seal."""
        if isinstance(event, AppendContext):
            op = InputOp.APPEND
            splice = self._log.append(await self._documents(event, op))
            stable = self._prefetch.appended(self._log.sequence)
        else:
            op = InputOp.UPDATE
            self._live.record.mode = InputMode.UPDATE
            check_sureness(each.stays for each in event.documents)
            splice = self._log.update(await self._documents(event, op))
            num_documents = num_sure(each.stays for each in event.documents)
            sure = self._log.num_tokens_of(num_documents) if num_documents else 0
            stable = self._prefetch.updated(splice.keep_tokens, sure)
        self._live.take_input(op, splice.num_new_tokens, len(self._log.sequence))
        self._splice(event.sequence, splice, stable)

    async def _change_of_seal(self, change: AppendContext | UpdateContext, sequence: int) -> None:
        """Applies what came with the seal; prefill gets it with the seal."""
        try:
            await self._change(replace(change, sequence=sequence))
        except Stream2LLMError as error:
            if error.field:
                error.field = f"seal.{error.field}"
            raise

    async def _documents(
        self, event: AppendContext | UpdateContext, op: InputOp
    ) -> tuple[ContentDocument, ...]:
        begin_s = self._live.trace.now_s()
        taken = await self._intake.take(event)
        self._live.trace.documents_tokenized(op, begin_s, taken.documents)
        for oversized in taken.oversized:
            await self._live.outbox.put(oversized)
        return taken.documents

    def _splice(self, sequence: int, splice: Splice, stable_tokens: int) -> None:
        # An unchanged list may make more tokens stable.
        if splice.is_empty and not stable_tokens:
            self._live.progress.event(sequence)
            return
        revision = self._revise(sequence, splice)
        self._prefetch.spliced(revision, splice)
        self._hold(revision, splice, stable_tokens)

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
            answer_max_tokens=final.max_tokens,
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
