"""The output half of a session: prefill's first token, then decode's steps.

The first token is sent to the client before the decode call begins. From then on the
hand-over must be read or released: `_unread` holds it as long as the session is
responsible for that.

When the KV of an answer under way is lost, with a worker or between two, the prompt and
the answer so far go to a prefill worker, whose token continues the answer; then decode
again. Tokens are taken once, so stop strings and text never notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from router.draining import leaves_decode
from router.kv_prefetch import KvPrefetch
from router.live_session import LiveSession
from router.placed_prefill import PlacedPrefill
from router.recovery import Failure, drained
from router.sealed_answer import SealedAnswer, sealed_answer
from router.status import NeverArrivedError
from router.worker import Worker
from router.worker_calls import DecodeCall
from stream2llm.api import codec
from stream2llm.api.errors import InternalError, Stream2LLMError, extended
from stream2llm.api.events import Finished, TokenDelta, Usage
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.api.session import Event
from stream2llm.api.token_step import TokenStep
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.sessions.prefix import Tokens

# Reasons with which a decode worker refuses a hand-over that others may take.
_NOT_TAKEN = frozenset({"DRAINING", "FULL"})


class _NotTakenError(Exception):
    """The decode worker has not touched the hand-over, so another one may take it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


class _LostError(Exception):
    """The call to a worker failed, and with it the answer's KV is gone."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


class SessionOutput:
    """Relays one answer."""

    def __init__(self, live: LiveSession, prefill: PlacedPrefill, prefetch: KvPrefetch) -> None:
        self._live = live
        self._prefill = prefill
        self._prefetch = prefetch
        self._num_local_tokens = 0
        self._uncomputed_at_seal_tokens = 0
        self._unread: pb.Handover | None = None
        self._sealed: SealedAnswer | None = None
        # How the answer has ended, from its last token on.
        self._ending: Finished | None = None
        # Called when the answer has ended before a worker was asked for a token.
        self._on_ended: Callable[[], object] = lambda: None
        # The decode worker that the answer was last at.
        self._decode_worker: Worker | None = None

    def sealed(self, prompt: Tokens) -> SealedAnswer:
        """Takes the sealed prompt; returns the answer, which may have ended already."""
        self._sealed = sealed_answer(self._live, prompt)
        if self._sealed.has_ended:
            self._on_ended()
        return self._sealed

    @property
    def _final(self) -> SealedAnswer:
        assert self._sealed is not None, "the life cycle allows no token before the seal"
        return self._sealed

    async def run(self) -> None:
        """Runs until the answer has ended and its end is in the outbox."""
        try:
            ending = await (self._generate() if self._live.resumed is None else self._take_up())
            await self._finish(ending)
        finally:
            self._release()

    async def _take_up(self) -> Finished:
        """Goes on behind what the client has brought, if that is not the whole answer."""
        async with asyncio.TaskGroup() as group:
            generating = group.create_task(self._generate())
            self._on_ended = generating.cancel
        if not generating.cancelled():
            return generating.result()
        unsent = self._final.unsent
        assert unsent.ending is not None, "it is cancelled for that alone"
        self._live.apply(Event.FIRST_TOKEN)
        self._live.note_first_token()
        await self._put(unsent.delta)
        return unsent.ending

    async def _generate(self) -> Finished:
        first = await self._next_of_prefill()
        self._note_first_token(first)
        await self._put(self._final.unsent.delta)
        ending = await self._take(codec.decode(TokenStep, first.step))
        while ending is None:
            try:
                ending = await self._decode(first)
            except _LostError as lost:
                first = await self._resume(lost.failure)
                self._note_step(is_after_handover=False)
                ending = await self._take(codec.decode(TokenStep, first.step))
        await self._prefill.finish()
        return ending

    # -- prefill ----------------------------------------------------------------------

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
        self._unread = first.handover if first.HasField("handover") else None
        self._live.apply(Event.FIRST_TOKEN)
        if first.HasField("progress"):
            self._report(first.progress)
        return first

    def _note_first_token(self, first: pb.FirstToken) -> None:
        timings = self._live.note_first_token()
        self._uncomputed_at_seal_tokens = first.uncomputed_at_seal_tokens
        if self._final.answer.num_tokens:  # it came from another router
            return
        self._live.parts.metrics.first_token(
            self._live.mode,
            timings.ttft_from_open_s,
            timings.ttft_from_seal_s,
            max(1 - first.uncomputed_at_seal_tokens / len(self._final.prompt), 0.0),
        )

    async def _resume(self, failure: Failure) -> pb.FirstToken:
        """Gives prompt and answer so far to a prefill worker; returns the token that follows."""
        final = self._final
        self._release()
        self._require_room(failure)
        self._live.apply(Event.RESUME)
        await self._prefill.resume(
            failure, final.tokens, final.answer.num_tokens, hand_over=final.hand_over
        )
        return await self._next_of_prefill()

    def _require_room(self, failure: Failure) -> None:
        """Raises the failure where prompt and answer so far fit into no prefill worker."""
        why = self._why_not_resumed()
        if why is not None:
            raise extended(failure.error, why, 0)

    def _why_not_resumed(self) -> str | None:
        num_tokens = len(self._final.prompt) + self._final.answer.num_tokens
        return self._live.lengths.why_not_resumed(num_tokens)

    # -- decode -----------------------------------------------------------------------

    async def _decode(self, first: pb.FirstToken) -> Finished:
        """Raises _LostError when a worker is lost that the answer needs."""
        if self._unread is None:
            raise InternalError("prefill gave no hand-over for an answer that goes on")
        request = self._decode_request(first)
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch())
                ending = await self._decode_somewhere(request)
                watch.cancel()
        except BaseExceptionGroup as raised:
            if self._ending is not None:  # a loss behind the last token is none
                return self._ending
            lost = raised.subgroup(_LostError)
            if lost is None or lost.exceptions != raised.exceptions:
                raise
            # Where both are lost, that of prefill is the cause.
            raise raised.exceptions[0] from None
        return ending

    async def _watch(self) -> None:
        failure = await self._prefill.watch()
        if failure is not None:
            raise _LostError(failure)

    async def _decode_somewhere(self, request: pb.DecodeRequest) -> Finished:
        """Decodes at the worker that has prefetched, or at another one if it refuses."""
        workers, tried = self._live.parts.workers, set(self._live.refused_by)
        worker = await self._first_choice(request)
        if worker is None:
            raise _LostError(Failure(workers.none_of("decode"), "decode", None))
        while True:
            tried.add(worker)
            others = workers.pick("decode", tried) is not None
            request.refuse_when_full = others and self._prefetch.is_on
            try:
                return await self._decode_at(worker, request)
            except _NotTakenError as not_taken:
                worker = workers.pick("decode", tried)
                if worker is None:
                    raise _LostError(not_taken.failure) from not_taken
            request.fetch_session_id = ""

    async def _first_choice(self, request: pb.DecodeRequest) -> Worker | None:
        """Returns the worker that has most of the KV, if it can be used."""
        workers, last = self._live.parts.workers, self._decode_worker
        if last is not None:
            refused_by, rather_not = self._live.refused_by, self._live.recovery.rather_not
            is_usable = last not in (*refused_by, *rather_not) and workers.is_usable(last)
            return last if is_usable else workers.pick("decode", refused_by, rather_not)
        chosen = self._prefetch.take_worker()
        if chosen is None:
            return workers.pick("decode")
        request.fetch_session_id = chosen[1]
        return chosen[0]

    async def _decode_at(self, worker: Worker, request: pb.DecodeRequest) -> Finished:
        worker_call = DecodeCall(self._live.parts.workers, worker, self._live.trace.metadata)
        self._decode_worker = worker
        self._live.record.at(worker.worker_id)
        try:
            return await self._relay(worker_call, request)
        except Stream2LLMError as error:
            has_arrived = not isinstance(error, NeverArrivedError)
            failure = Failure(error, "decode", worker, worker_call.is_accepted)
            is_free = not (worker_call.owns_handover or worker_call.is_accepted)
            if is_free and (not has_arrived or error.reason in _NOT_TAKEN):
                raise _NotTakenError(failure) from error
            raise _LostError(failure) from error
        finally:
            if worker_call.owns_handover:
                self._unread = None
            worker_call.close()

    async def _relay(self, worker_call: DecodeCall, request: pb.DecodeRequest) -> Finished:
        is_first = True
        async with aclosing(worker_call.steps(request)) as steps:
            async for step in steps:
                if is_first:
                    await self._prefill.finish()
                    self._note_first_step(worker_call)
                else:
                    since_last_s = self._note_step(is_after_handover=False)
                    worker_call.worker.took(since_last_s, len(step.token_ids))
                is_first = False
                self._live.apply(Event.STEP)
                ending = await self._take(step)
                if ending is not None:
                    return ending
                self._leave_draining(worker_call.worker)
        raise InternalError("the decode worker ended the answer without a reason")

    def _leave_draining(self, worker: Worker) -> None:
        """Between two steps: raises _LostError when the answer goes on at another worker."""
        if worker.drain_by_s is None or not self._live.recovery.may_move:
            return
        final = self._final
        left_s = worker.drain_by_s - self._live.parts.clock.monotonic_s()
        num_left = final.max_tokens - final.answer.num_tokens
        if leaves_decode(num_left, worker.token_s, left_s) and self._can_leave(worker):
            raise _LostError(drained(worker, "decode"))

    def _can_leave(self, worker: Worker) -> bool:
        """Whether workers of both roles can be used, and one of prefill has the room."""
        workers, but = self._live.parts.workers, {*self._live.refused_by, worker}
        has_both = workers.pick("decode", but) is not None and workers.pick("prefill", but)
        return bool(has_both) and self._why_not_resumed() is None

    def _note_first_step(self, worker_call: DecodeCall) -> None:
        is_resumed = self._final.answer.num_tokens > 1
        since_last_s = self._note_step(is_after_handover=not is_resumed)
        if not is_resumed:
            self._num_local_tokens = worker_call.local_tokens
            self._live.parts.metrics.exposed(since_last_s, is_streamed=self._prefetch.is_on)

    def _note_step(self, *, is_after_handover: bool) -> float:
        since_last_s = self._live.timeline.decode_step()
        self._live.parts.metrics.decode_step(since_last_s, is_first=is_after_handover)
        return since_last_s

    def _decode_request(self, first: pb.FirstToken) -> pb.DecodeRequest:
        final = self._final
        sampling = self._live.worker_sampling
        num_min = min(sampling.min_tokens, final.max_tokens)
        sampling = replace(sampling, max_tokens=final.max_tokens, min_tokens=num_min)
        return pb.DecodeRequest(
            session_id=self._live.session_id,
            prompt_token_ids=final.tokens.tolist(),
            answer_tokens=final.answer.num_tokens,
            sampling=codec.encode(sampling),
            handover=first.handover,
            cache_salt=self._live.cache_salt,
            tenant=codec.encode(self._live.share),
        )

    # -- the client -------------------------------------------------------------------

    async def _take(self, step: TokenStep) -> Finished | None:
        taken = self._final.answer.take(step)
        self._live.next_token(self._final.answer.num_tokens)
        self._live.parts.metrics.output(len(taken.delta.token_ids))
        self._ending = taken.ending
        await self._put(taken.delta)
        return taken.ending

    async def _put(self, delta: TokenDelta) -> None:
        if delta.text or delta.token_ids:
            await self._live.outbox.put(delta)

    async def _finish(self, ending: Finished) -> None:
        usage = Usage(
            prompt_tokens=len(self._final.prompt),
            completion_tokens=self._final.answer.num_tokens,
            uncomputed_at_seal_tokens=self._uncomputed_at_seal_tokens,
            prefetched_tokens=self._num_local_tokens,
            **self._live.progress.used(),
        )
        finished = replace(
            ending,
            usage=usage,
            timings=self._live.timeline.timings(),
            document_order=self._live.document_order,
            restarts=self._live.progress.restarts,
        )
        self._live.finished(finished)
        await self._live.outbox.put(finished)

    def _report(self, message: pb.PrefillProgress) -> None:
        self._prefetch.seen(message.revision)
        self._live.take_report(codec.decode(PrefillProgress, message))

    def _release(self) -> None:
        if self._unread is None:
            return
        request = pb.ReleaseHandoverRequest(session_id=self._live.session_id, handover=self._unread)
        self._live.parts.workers.release_handover(request)
        self._unread = None
