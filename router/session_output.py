"""The output half of a session: prefill's first token, then decode's steps, or its own.

The first token is sent to the client before the decode call begins.

When the KV of an answer under way is lost, with a worker or between two, the prompt and
the answer so far go to a prefill worker, whose token continues the answer; then decode
again. Tokens are taken once, so stop strings and text never notice.
"""

from __future__ import annotations

from collections.abc import Callable

from router.answer_delivery import AnswerDelivery
from router.kv_prefetch import KvPrefetch
from router.live_session import LiveSession
from router.mixed_answer import run_at_mixed_worker
from router.placed_decode import PlacedDecode
from router.placed_prefill import PlacedPrefill
from router.recovery import AnswerLostError, Failure
from router.sealed_answer import SealedAnswer
from stream2llm.api import codec
from stream2llm.api.errors import extended
from stream2llm.api.events import Finished
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.api.session import Event
from stream2llm.api.tasks import TaskGroup
from stream2llm.api.token_step import TokenStep
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.sessions.prefix import Tokens
from stream2llm.serving.system.light_event import LightEvent


class SessionOutput:
    """Relays one answer."""

    def __init__(self, live: LiveSession, prefill: PlacedPrefill, prefetch: KvPrefetch) -> None:
        self._live = live
        self._prefill = prefill
        self._prefetch = prefetch
        self._delivery = AnswerDelivery(live)
        self._decode = PlacedDecode(live, prefill, prefetch, self._delivery)
        # Called when the answer has ended before a worker was asked for a token.
        self._on_ended: Callable[[], object] = lambda: None
        # Set by the first token from here, or by the end of an answer without one.
        self.begun = LightEvent()

    @property
    def prompt(self) -> Tokens:
        """The sealed prompt, from `begun` on."""
        return self._delivery.sealed.prompt

    def begins_beside(self, other: SessionOutput) -> None:
        """Decode begins at the worker of the other answer, which has the same prompt."""
        self._decode.begins_beside(other._decode)

    def sealed(self, prompt: Tokens) -> SealedAnswer:
        """Takes the sealed prompt; returns the answer, which may have ended already."""
        sealed = self._delivery.begin(prompt)
        if sealed.has_ended:
            self._on_ended()
        return sealed

    async def run(self) -> None:
        """Runs until the answer has ended and its end is in the outbox."""
        try:
            ending = await (self._generate() if self._live.resumed is None else self._take_up())
            await self._delivery.finish(ending)
        finally:
            self._decode.release()

    async def _take_up(self) -> Finished:
        """Goes on behind what the client has brought, if that is not the whole answer."""
        async with TaskGroup() as group:
            generating = group.create_task(self._generate())
            self._on_ended = generating.cancel
        if not generating.cancelled():
            return generating.result()
        unsent = self._delivery.sealed.unsent
        assert unsent.ending is not None, "it is cancelled for that alone"
        self._live.apply(Event.FIRST_TOKEN)
        self._live.note_first_token()
        self.begun.set()
        await self._delivery.put(unsent.delta)
        return unsent.ending

    async def _generate(self) -> Finished:
        first = await self._next_of_prefill()
        self._delivery.note_first_token(first)
        self.begun.set()
        await self._delivery.put(self._delivery.sealed.unsent.delta)
        ending = await self._delivery.take(codec.decode(TokenStep, first.step))
        while ending is None:
            try:
                ending = await self._go_on(first)
            except AnswerLostError as lost:
                first = await self._resume(lost.failure)
                self._delivery.note_step(is_after_handover=False)
                ending = await self._delivery.take(codec.decode(TokenStep, first.step))
        await self._prefill.finish()
        return ending

    async def _go_on(self, first: pb.FirstToken) -> Finished:
        """Relays what follows that token; raises AnswerLostError when a needed worker is lost."""
        worker = self._prefill.answering
        if worker is None:
            return await self._decode.run(first)
        return await run_at_mixed_worker(self._live, self._prefill, self._delivery, worker)

    async def _next_of_prefill(self) -> pb.FirstToken:
        """Returns the token that begins the answer, or continues it."""
        while True:
            message = await self._prefill.receive()
            match message.WhichOneof("event"):
                case "first_token":
                    break
                case "offer":
                    self._prefetch.offered(message.offer)
                    continue
            self._report(message.progress)
            self._live.send_progress()
        first = message.first_token
        self._decode.hold(first)
        self._live.apply(Event.FIRST_TOKEN)
        if first.HasField("progress"):
            self._report(first.progress)
        return first

    def _report(self, message: pb.PrefillProgress) -> None:
        self._prefetch.seen(message.revision)
        self._live.take_report(codec.decode(PrefillProgress, message))

    async def _resume(self, failure: Failure) -> pb.FirstToken:
        """Gives prompt and answer so far to a prefill worker; returns the token that follows."""
        sealed = self._delivery.sealed
        self._decode.release()
        why_not = self._live.lengths.why_not_resumed(sealed.num_tokens)
        if why_not is not None:
            raise extended(failure.error, why_not, 0)
        self._live.apply(Event.RESUME)
        await self._prefill.resume(failure, sealed.tokens, sealed.answer.num_tokens)
        return await self._next_of_prefill()
