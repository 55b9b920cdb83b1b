"""The RPC by which a session's decode worker prefetches.

`fetch` raises whatever breaks the RPC; no other call does. The `fetch` under way writes
its own abort, so that `abort` never blocks, and the next fetch follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import grpc

from router.status import WORKER_LOST
from router.worker import Worker
from router.workers import WorkerPool
from stream2llm.api import codec
from stream2llm.api.call_metadata import Metadata
from stream2llm.api.errors import InternalError, Stream2LLMError, UnavailableError
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.api.tasks import is_cancelled
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.mux.call import Call
from stream2llm.serving.sessions.prefix import Tokens, as_tokens, common_prefix_len
from stream2llm.serving.sessions.token_bytes import to_bytes

ABORT_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Prefetched:
    """What a decode worker knows of a session when its answer begins."""

    worker: Worker
    fetch_session_id: str
    # That of the newest fetch, and how many there were.
    sequence: Tokens
    num_fetches: int


class PrefetchCall:
    """Holds its place at the worker from construction until `close` or `leave`."""

    def __init__(
        self,
        pool: WorkerPool,
        worker: Worker,
        fetch_session_id: str,
        cache_salt: str = "",
        metadata: Metadata | None = None,
        structured_output: StructuredOutput | None = None,
    ) -> None:
        """`structured_output` is compiled as soon as the call is open."""
        self._pool = pool
        self.worker = worker
        self.fetch_session_id = fetch_session_id
        self._opening = pb.OpenPrefetch(fetch_session_id=fetch_session_id, cache_salt=cache_salt)
        if structured_output is not None:
            self._opening.structured_output.CopyFrom(codec.encode(structured_output))
        self._place = worker.acquire()
        self._call: Call = worker.decode.PrefetchKv(metadata=metadata)
        self._responses = aiter(self._call)
        self._is_open = False
        # Whether the worker may know of the last fetch.
        self.has_sent = False
        # The worker took no abort in time: the RPC is cancelled, which a fetch under way
        # must not mistake for the cancellation of its session.
        self._is_given_up = False
        self._call.add_done_callback(self._note_end)
        # The sequence as the worker knows it, and how many fetches it has been asked for.
        self._sequence, self._num_fetches = as_tokens([]), 0
        # One message at a time; an abort may come while a fetch is being written.
        self._writing = asyncio.Lock()
        # Set when the fetch under way is useless; each fetch has its own event.
        self._abort = asyncio.Event()

    async def open(self) -> None:
        """Opens the session at the worker ahead of its first fetch, which shows any failure."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with self._writing:
                await self._write_opening()

    async def fetch(self, tokens: Tokens, handover: pb.Handover) -> pb.PrefetchKvResponse:
        """Fetches the KV of these tokens; raises Stream2LLMError when the RPC broke."""
        self._abort = asyncio.Event()
        aborting = asyncio.create_task(self._abort_when_asked(self._abort))
        try:
            end = await self._end_of(tokens, handover)
            if self._abort.is_set():
                # Awaited, because cancelling a write ends the RPC.
                await asyncio.wait({aborting})
            return end
        finally:
            aborting.cancel()

    def abort(self) -> None:
        """Aborts the fetch under way, whose `fetch` then returns its result. Never blocks.

        The RPC to a worker that does not take the message in time is cancelled.
        """
        self._abort.set()

    async def _end_of(self, tokens: Tokens, handover: pb.Handover) -> pb.PrefetchKvResponse:
        keep = common_prefix_len(self._sequence, tokens)
        fetch = pb.FetchKv(keep_tokens=keep, token_ids=to_bytes(tokens[keep:]), handover=handover)
        # Already: an answer that begins now is opened behind the fetch.
        self._sequence, self._num_fetches = tokens, self._num_fetches + 1
        try:
            await self._send(fetch)
            return await anext(self._responses)
        except asyncio.CancelledError:
            if not self._is_given_up or is_cancelled():
                raise
            raise self._failure(self._call.final) from None
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error
        except StopAsyncIteration:
            raise self._failure(self._call.final) from None

    async def _abort_when_asked(self, asked: asyncio.Event) -> None:
        await asked.wait()
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S), self._writing:
                await self._call.write(pb.PrefetchKvRequest(abort=pb.AbortFetch()))
        except TimeoutError:
            self._is_given_up = True
            self._call.cancel()
        except grpc.aio.AioRpcError:
            pass  # the RPC has ended already, which `fetch` raises

    @property
    def has_ended(self) -> bool:
        """Whether the RPC has ended, so that the worker takes no more messages."""
        return bool(self._call.done())

    def prefetched(self) -> Prefetched:
        """What the worker knows of the session."""
        return Prefetched(self.worker, self.fetch_session_id, self._sequence, self._num_fetches)

    def leave(self) -> None:
        """Releases the place at the worker, which the session's answer takes."""
        self._place.release()

    def close(self) -> None:
        """Ends the RPC, and with it the fetch under way; may be called again."""
        self._place.release()
        self._call.cancel()

    def _note_end(self, call: Call) -> None:
        """Makes a lost worker suspect now: later it may be well again."""
        if not self._is_given_up:
            self._pool.failure(self.worker, call.final)

    def _failure(self, final: grpc.aio.AioRpcError) -> Stream2LLMError:
        if self._is_given_up:
            return UnavailableError(
                f"worker {self.worker.worker_id} took no abort for {ABORT_TIMEOUT_S:g} s",
                reason=WORKER_LOST,  # for this session: the worker may still read the last fetch
            )
        if final.code() is grpc.StatusCode.OK:
            return InternalError(f"worker {self.worker.worker_id} ended KV prefetch")
        return self._pool.failure(self.worker, final)

    async def _send(self, fetch: pb.FetchKv) -> None:
        """Writes the fetch, after the opening if it is the first, with no abort in between."""
        self.has_sent = False
        async with self._writing:
            await self._write_opening()
            try:
                await self._call.write(pb.PrefetchKvRequest(fetch=fetch))
            finally:
                self.has_sent = self._call.has_sent_last

    async def _write_opening(self) -> None:
        """For the holder of the lock."""
        if not self._is_open:
            self._is_open = True
            await self._call.write(pb.PrefetchKvRequest(open=self._opening))
