"""The output half of a session: prefill's first token, then decode's steps.

The first token is sent to the client before the decode call begins. From then on the
hand-over must be read or released: `_unread` holds it as long as the session is
responsible for that.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace

from router.answer import Answer
from router.kv_prefetch import KvPrefetch
from router.live_session import LiveSession
from router.status import NeverArrivedError
from router.worker_calls import DecodeCall, PrefillCall
from router.workers import Worker
from stream2llm.api import codec
from stream2llm.api.errors import InternalError, UnavailableError
from stream2llm.api.events import Finished, Usage
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.api.session import Event
from stream2llm.api.token_step import TokenStep
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.prefix import Tokens

# Reasons with which a decode worker refuses a hand-over that others may take.
_NOT_TAKEN = frozenset({"DRAINING", "FULL"})


class _NotTakenError(Exception):
    """The decode worker has not touched the hand-over, so another one may take it."""

    def __init__(self, why: UnavailableError) -> None:
        super().__init__(why.message)
        self.why = why


@dataclass(frozen=True, slots=True)
class _Sealed:
    """What the seal determines."""

    prompt: Tokens
    # Maximum tokens of the answer.
    max_tokens: int
    answer: Answer


class SessionOutput:
    """Relays one answer."""

    def __init__(self, live: LiveSession, worker_call: PrefillCall, prefetch: KvPrefetch) -> None:
        self._live = live
        self._worker_call = worker_call
        self._prefetch = prefetch
        self._num_local_tokens = 0
        self._unread: pb.Handover | None = None
        self._sealed: _Sealed | None = None

    def sealed(self, prompt: Tokens) -> int:
        """Takes the sealed prompt; returns the maximum tokens of the answer."""
        parts, sampling = self._live.parts, self._live.sampling
        room = self._live.lengths.max_total_tokens - len(prompt)
        max_tokens = min(sampling.max_tokens or room, room)
        answer = Answer(
            parts.make_detokenizer(prompt),
            sampling.stop_strings,
            max_tokens,
            parts.text.tokenizer.token_text,
        )
        self._sealed = _Sealed(prompt, max_tokens, answer)
        return max_tokens

    @property
    def _final(self) -> _Sealed:
        assert self._sealed is not None, "the life cycle allows no token before the seal"
        return self._sealed

    async def run(self) -> None:
        """Runs until the answer has ended and its end is in the outbox."""
        try:
            first = await self._first_token()
            ending = await self._take(codec.decode(TokenStep, first.step))
            if ending is None:
                ending = await self._decode(first)
            await self._worker_call.finish()
            await self._finish(ending, first)
        finally:
            self._release()

    async def _first_token(self) -> pb.FirstToken:
        while True:
            message = await self._worker_call.receive()
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
        self._note_first_token(first)
        return first

    def _note_first_token(self, first: pb.FirstToken) -> None:
        self._live.timeline.first_token()
        timings = self._live.timeline.timings()
        self._live.parts.metrics.first_token(
            self._live.mode,
            timings.ttft_from_open_s,
            timings.ttft_from_seal_s,
            max(1 - first.uncomputed_at_seal_tokens / len(self._final.prompt), 0.0),
        )

    async def _decode(self, first: pb.FirstToken) -> Finished:
        if self._unread is None:
            raise InternalError("prefill gave no hand-over for an answer that goes on")
        request = self._decode_request(first)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._worker_call.watch())
            ending = await self._decode_somewhere(request)
            watch.cancel()
        return ending

    async def _decode_somewhere(self, request: pb.DecodeRequest) -> Finished:
        """Decodes at the worker that has prefetched, or at another one if it refuses."""
        workers, tried = self._live.parts.workers, set[str]()
        chosen = await self._prefetch.take_worker()
        worker = chosen[0] if chosen else workers.pick("decode")
        if worker is None:
            raise UnavailableError("no decode worker can be used now", reason="NO_DECODE_WORKER")
        request.fetch_session_id = chosen[1] if chosen else ""
        while True:
            tried.add(worker.worker_id)
            others = workers.pick_but("decode", tried) is not None
            request.refuse_when_full = others and self._prefetch.is_on
            try:
                return await self._decode_at(worker, request)
            except _NotTakenError as not_taken:
                worker = workers.pick_but("decode", tried)
                if worker is None:
                    raise not_taken.why from not_taken
            request.fetch_session_id = ""

    async def _decode_at(self, worker: Worker, request: pb.DecodeRequest) -> Finished:
        worker_call = DecodeCall(self._live.parts.workers, worker)
        try:
            return await self._relay(worker_call, request)
        except UnavailableError as error:
            is_free = not (worker_call.owns_handover or worker_call.is_accepted)
            if is_free and (isinstance(error, NeverArrivedError) or error.reason in _NOT_TAKEN):
                raise _NotTakenError(error) from error
            raise
        finally:
            if worker_call.owns_handover:
                self._unread = None
            worker_call.close()

    async def _relay(self, worker_call: DecodeCall, request: pb.DecodeRequest) -> Finished:
        is_first = True
        async with aclosing(worker_call.steps(request)) as steps:
            async for step in steps:
                if is_first:
                    self._num_local_tokens = worker_call.local_tokens
                    await self._worker_call.finish()
                since_last_s = self._live.timeline.decode_step()
                self._live.parts.metrics.decode_step(since_last_s, is_first=is_first)
                if is_first:
                    self._live.parts.metrics.exposed(since_last_s, is_streamed=self._prefetch.is_on)
                is_first = False
                self._live.apply(Event.STEP)
                ending = await self._take(step)
                if ending is not None:
                    return ending
        raise InternalError("the decode worker ended the answer without a reason")

    def _decode_request(self, first: pb.FirstToken) -> pb.DecodeRequest:
        sampling = replace(self._live.worker_sampling, max_tokens=self._final.max_tokens)
        return pb.DecodeRequest(
            session_id=self._live.session_id,
            prompt_token_ids=[*self._final.prompt.tolist(), *first.step.token_ids],
            sampling=codec.encode(sampling),
            handover=first.handover,
        )

    async def _take(self, step: TokenStep) -> Finished | None:
        taken = self._final.answer.take(step)
        self._live.parts.metrics.output(len(taken.delta.token_ids))
        if taken.delta.text or taken.delta.token_ids:
            await self._live.outbox.put(taken.delta)
        return taken.ending

    async def _finish(self, ending: Finished, first: pb.FirstToken) -> None:
        usage = Usage(
            prompt_tokens=len(self._final.prompt),
            completion_tokens=self._final.answer.num_tokens,
            uncomputed_at_seal_tokens=first.uncomputed_at_seal_tokens,
            prefetched_tokens=self._num_local_tokens,
            **self._live.progress.worker.used(),
        )
        finished = replace(
            ending,
            usage=usage,
            timings=self._live.timeline.timings(),
            document_order=self._live.document_order,
        )
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
