"""An answer's place at a decode worker, which may refuse it, drain, or be lost.

From the first token on, the hand-over must be read or released: `PlacedDecode` holds it
as long as the session is responsible for that. A worker that has not touched it may be
followed by another one; after any other failure the KV is gone, and `AnswerLostError`
says so.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

from router.answer_delivery import AnswerDelivery
from router.answer_moves import leave_draining
from router.kv_prefetch import KvPrefetch
from router.live_session import LiveSession
from router.placed_prefill import PlacedPrefill
from router.prefetch_call import Prefetched
from router.recovery import AnswerLostError, Failure
from router.status import NeverArrivedError
from router.worker import Worker
from router.worker_calls import DecodeCall
from stream2llm.api import codec
from stream2llm.api.errors import InternalError, Stream2LLMError
from stream2llm.api.events import Finished
from stream2llm.api.handover import NO_FETCHED_TOKENS
from stream2llm.api.tasks import TaskGroup
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.sessions.prefix import common_prefix_len
from stream2llm.serving.sessions.token_bytes import to_bytes

# Reasons with which a decode worker refuses a hand-over that others may take.
_NOT_TAKEN = frozenset({"DRAINING", "FULL", NO_FETCHED_TOKENS})


class _NotTakenError(Exception):
    """The decode worker has not touched the hand-over, so another one may take it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


class PlacedDecode:
    """The decode side of one session."""

    def __init__(
        self,
        live: LiveSession,
        prefill: PlacedPrefill,
        prefetch: KvPrefetch,
        delivery: AnswerDelivery,
    ) -> None:
        self._live = live
        self._prefill = prefill
        self._prefetch = prefetch
        self._delivery = delivery
        self._unread: pb.Handover | None = None
        # The worker that the answer was last at.
        self._worker: Worker | None = None
        self._beside: PlacedDecode | None = None

    def begins_beside(self, other: PlacedDecode) -> None:
        """Begins at the worker of another answer to the same prompt, if that can be used."""
        self._beside = other

    def hold(self, first: pb.FirstToken) -> None:
        """Takes the hand-over that comes with prefill's token, if there is one."""
        self._unread = first.handover if first.HasField("handover") else None

    async def run(self, first: pb.FirstToken) -> Finished:
        """Decodes until the answer has ended; raises AnswerLostError when a needed worker is lost."""
        if self._unread is None:
            raise InternalError("prefill gave no hand-over for an answer that goes on")
        request = self._request(first)
        try:
            async with TaskGroup() as group:
                watch = group.create_task(self._watch())
                ending = await self._run_somewhere(request)
                watch.cancel()
        except BaseExceptionGroup as raised:
            if self._delivery.ending is not None:  # a loss behind the last token is none
                return self._delivery.ending
            lost = raised.subgroup(AnswerLostError)
            if lost is None or lost.exceptions != raised.exceptions:
                raise
            # Where both are lost, that of prefill is the cause.
            raise raised.exceptions[0] from None
        return ending

    def release(self) -> None:
        """Lets prefill free the blocks of a hand-over that no worker has taken."""
        if self._unread is None:
            return
        request = pb.ReleaseHandoverRequest(session_id=self._live.session_id, handover=self._unread)
        self._live.parts.workers.release_handover(request)
        self._unread = None

    async def _watch(self) -> None:
        failure = await self._prefill.watch()
        if failure is not None:
            raise AnswerLostError(failure)

    async def _run_somewhere(self, request: pb.DecodeRequest) -> Finished:
        """Decodes at the worker that has prefetched, or at another one if it refuses."""
        workers, tried = self._live.parts.workers, set(self._live.refused_by)
        self._name_tokens(request, None)
        worker = await self._first_choice(request)
        if worker is None:
            raise AnswerLostError(Failure(workers.none_of("decode"), "decode", None))
        while True:
            tried.add(worker)
            others = workers.pick("decode", tried) is not None
            request.refuse_when_full = others and self._prefetch.is_on
            try:
                return await self._run_at(worker, request)
            except _NotTakenError as not_taken:
                if not (
                    request.keep_tokens and not_taken.failure.error.reason == NO_FETCHED_TOKENS
                ):
                    worker = workers.pick("decode", tried)
                    request.fetch_session_id = ""
                if worker is None:
                    raise AnswerLostError(not_taken.failure) from not_taken
            self._name_tokens(request, None)

    async def _first_choice(self, request: pb.DecodeRequest) -> Worker | None:
        """Returns the worker that has most of the KV, if it can be used."""
        workers, last = self._live.parts.workers, self._worker
        if last is not None:
            refused_by, rather_not = self._live.refused_by, self._live.recovery.rather_not
            is_usable = last not in (*refused_by, *rather_not) and workers.is_usable(last)
            return last if is_usable else workers.pick("decode", refused_by, rather_not)
        chosen = self._prefetch.take_worker()
        if chosen is None:
            beside = self._beside and self._beside._worker
            return beside if beside and workers.is_usable(beside) else workers.pick("decode")
        request.fetch_session_id = chosen.fetch_session_id
        self._name_tokens(request, chosen)
        return chosen.worker

    def _name_tokens(self, request: pb.DecodeRequest, known: Prefetched | None) -> None:
        """Says what the worker has to continue; not what it knows already."""
        tokens = self._delivery.sealed.tokens
        keep = 0 if known is None else common_prefix_len(known.sequence, tokens)
        request.keep_tokens = keep
        request.num_fetches = known.num_fetches if known is not None and keep else 0
        request.token_ids = to_bytes(tokens[keep:])

    async def _run_at(self, worker: Worker, request: pb.DecodeRequest) -> Finished:
        worker_call = DecodeCall(self._live.parts.workers, worker, self._live.trace.metadata)
        self._worker = worker
        self._live.record.at(worker.worker_id)
        try:
            return await self._relay(worker_call, request)
        except Stream2LLMError as error:
            has_arrived = not isinstance(error, NeverArrivedError)
            failure = Failure(error, "decode", worker, worker_call.is_accepted)
            is_free = not (worker_call.owns_handover or worker_call.is_accepted)
            if is_free and (not has_arrived or error.reason in _NOT_TAKEN):
                raise _NotTakenError(failure) from error
            raise AnswerLostError(failure) from error
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
                    since_last_s = self._delivery.note_step(is_after_handover=False)
                    worker_call.worker.took(since_last_s, len(step.token_ids))
                is_first = False
                self._live.stepped()
                ending = await self._delivery.take(step)
                if ending is not None:
                    return ending
                leave_draining(self._live, self._delivery.sealed, worker_call.worker)
        raise InternalError("the decode worker ended the answer without a reason")

    def _note_first_step(self, worker_call: DecodeCall) -> None:
        is_resumed = self._delivery.sealed.answer.num_tokens > 1
        since_last_s = self._delivery.note_step(is_after_handover=not is_resumed)
        if not is_resumed:
            self._delivery.num_prefetched_tokens = worker_call.local_tokens
            self._live.parts.metrics.exposed(since_last_s, is_streamed=self._prefetch.is_on)

    def _request(self, first: pb.FirstToken) -> pb.DecodeRequest:
        sealed = self._delivery.sealed
        sampling = self._live.worker_sampling
        num_min = min(sampling.min_tokens, sealed.max_tokens)
        sampling = replace(sampling, max_tokens=sealed.max_tokens, min_tokens=num_min)
        return pb.DecodeRequest(
            session_id=self._live.session_id,
            answer_tokens=sealed.answer.num_tokens,
            sampling=codec.encode(sampling),
            handover=first.handover,
            cache_salt=self._live.cache_salt,
            tenant=codec.encode(self._live.share),
        )
