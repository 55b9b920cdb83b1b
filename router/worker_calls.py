"""The two RPCs of a session: one to prefill, one to decode.

A worker call holds its place at the worker from construction until `close`, turns
transport failures into domain errors, and cancels its RPC when it is closed before its
end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import grpc

from router.splice import Splice
from router.status import WORKER_LOST, NeverArrivedError
from router.worker import Worker
from router.workers import WorkerPool
from stream2llm.api import codec
from stream2llm.api.call_metadata import Metadata
from stream2llm.api.errors import InternalError, Stream2LLMError
from stream2llm.api.handover import ACCEPTED_KEY, HELD_KEY
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.tenant import ONE_TENANT, TenantShare
from stream2llm.api.token_step import TokenStep
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.mux.call import Call
from stream2llm.serving.sessions.token_bytes import to_bytes


class PrefillCall:
    """The RPC to prefill: open, splices and seal out; progress and one first token back.

    A mixed worker sends the rest of the answer behind it.
    """

    def __init__(self, pool: WorkerPool, worker: Worker, metadata: Metadata | None = None) -> None:
        self._pool = pool
        self.worker = worker
        self._lease = worker.acquire()
        self._call: Call = worker.prefill.PrefillSession(metadata=metadata)
        self._responses = aiter(self._call)
        self._is_done_with = False
        self.is_closed = False

    async def was_held(self) -> bool:
        """Whether the worker has said that it holds the session, of a call that has failed."""
        return HELD_KEY in await self._call.initial_metadata()

    async def open(
        self,
        session_id: str,
        sampling: SamplingParameters,
        cache_salt: str = "",
        tenant: TenantShare = ONE_TENANT,
        ttft_slo_ms: int = 0,
    ) -> None:
        """Begins the session; NeverArrivedError when the worker could not be reached."""
        message = pb.OpenPrefill(
            session_id=session_id,
            sampling=codec.encode(sampling),
            cache_salt=cache_salt,
            tenant=codec.encode(tenant),
            ttft_slo_ms=ttft_slo_ms,
        )
        await self._write(pb.PrefillSessionRequest(open=message))

    async def splice(self, revision: int, splice: Splice, *, stable_tokens: int = 0) -> None:
        """Changes the sequence; KV of its first `stable_tokens` may be offered."""
        message = _splice(revision, splice, stable_tokens)
        await self._write(pb.PrefillSessionRequest(splice=message))

    async def seal(
        self,
        revision: int,
        splice: Splice,
        *,
        answer_max_tokens: int,
        stable_tokens: int = 0,
        ttft_left_ms: int = 0,
        answer_tokens: int = 0,
    ) -> None:
        """Completes the sequence, whose last `answer_tokens` tokens are the answer so far.

        The whole answer may have `answer_max_tokens`. The first token is due in
        `ttft_left_ms`, if that is not 0.
        """
        goes_on = answer_max_tokens - answer_tokens > 1
        message = pb.SealPrefill(
            splice=_splice(revision, splice, stable_tokens),
            hand_over=goes_on and not self.worker.answers,
            ttft_left_ms=ttft_left_ms,
            answer_tokens=answer_tokens,
            answer_max_tokens=answer_max_tokens if goes_on and self.worker.answers else 0,
        )
        await self._write(pb.PrefillSessionRequest(seal=message))

    async def receive(self) -> pb.PrefillSessionResponse:
        """Returns the next message; the worker must not end before the first token."""
        try:
            return await anext(self._responses)
        except StopAsyncIteration:
            raise self._ended_early() from None
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error

    async def watch(self) -> None:
        """After the first token: returns when the worker ends the RPC, raises when it is lost.

        Until decode has the KV, the loss of the prefill worker loses it; afterwards (`finish`)
        it no longer does.
        """
        try:
            async for _ in self._responses:
                pass
        except grpc.aio.AioRpcError as error:
            failure = self._failure(error)
            if not self._is_done_with:
                raise failure from error

    async def finish(self) -> None:
        """Decode has the KV, or needs none: lets the worker end the RPC normally."""
        self._is_done_with = True
        self._lease.release()
        await self._call.done_writing()

    def close(self) -> None:
        """Ends the RPC if it is still running; may be called again."""
        self.is_closed = True
        self._lease.release()
        self._call.cancel()

    async def _write(self, message: pb.PrefillSessionRequest) -> None:
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error

    def _failure(self, final: grpc.aio.AioRpcError) -> Stream2LLMError:
        if final.code() is grpc.StatusCode.OK:  # of a write that came too late
            return self._ended_early()
        return self._pool.failure(self.worker, final)

    def _ended_early(self) -> InternalError:
        return InternalError(f"worker {self.worker.worker_id} ended the session without a reason")


class DecodeCall:
    """The RPC to decode: one request out, token steps back.

    `owns_handover`: whether this worker is responsible for reading or releasing the
    hand-over. It is from the moment it may have accepted the RPC, unless it refuses
    before its first step. A worker that was lost, or not waited for, may still be
    reading: its hand-over is left to the lease. One that could not be reached does not
    have it.

    `is_accepted`: whether the worker has accepted the hand-over. Whatever it sends
    afterwards, it may have read or released it, so no other worker can read it.
    """

    def __init__(self, pool: WorkerPool, worker: Worker, metadata: Metadata | None = None) -> None:
        self._pool = pool
        self.worker = worker
        self._metadata = metadata
        self._lease = worker.acquire()
        self._decode = worker.decode
        self._call: Call | None = None
        self.owns_handover = False
        self.is_accepted = False
        # Prompt tokens that the worker had before; known with the first step.
        self.local_tokens = 0

    async def steps(self, request: pb.DecodeRequest) -> AsyncGenerator[TokenStep, None]:
        """Yields decode's steps until one has a finish reason."""
        has_stepped = False
        self._call = call = self._decode.Decode(request, metadata=self._metadata)
        try:
            self.owns_handover = True
            self.is_accepted = ACCEPTED_KEY in await call.initial_metadata()
            self.owns_handover = not call.done()
            async for response in call:
                self.owns_handover = has_stepped = True
                if response.HasField("local_tokens"):
                    self.local_tokens = response.local_tokens
                yield codec.decode(TokenStep, response.step)
        except grpc.aio.AioRpcError as error:
            failure = self._pool.failure(self.worker, error)
            is_lost = failure.reason == WORKER_LOST
            has_arrived = not isinstance(failure, NeverArrivedError)
            self.owns_handover = has_stepped or (is_lost and has_arrived)
            raise failure from error
        except asyncio.CancelledError:
            self.owns_handover = has_stepped or call.has_sent_last
            raise

    def close(self) -> None:
        """Ends the RPC if it is still running; may be called again."""
        self._lease.release()
        if self._call is not None:
            self._call.cancel()


def _splice(revision: int, splice: Splice, stable_tokens: int) -> pb.SplicePrefill:
    return pb.SplicePrefill(
        revision=revision,
        keep_tokens=splice.keep_tokens,
        token_ids=to_bytes(splice.tail),
        stable_tokens=stable_tokens,
    )
