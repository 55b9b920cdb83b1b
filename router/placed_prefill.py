"""A session's place at a prefill worker, which changes when the worker is lost.

The session's input and output use it as they would use one `PrefillCall`. It keeps what
another worker needs to go on: the sequence as it was sent, or, after the first token, the
prompt and the answer so far. One write or one change of place at a time (`_lock`); what a
former worker still says is not read.

    splice, seal, receive -> the worker fails -> place again: open, the whole sequence, seal
    resume                -> the same, with the answer so far, when its KV is lost

`recovery.py` decides; an error that it does not accept ends the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from router.context import Splice
from router.live_session import LiveSession
from router.recovery import Failure, GiveUp, Restart, final_error
from router.status import NeverArrivedError
from router.worker_calls import PrefillCall
from router.workers import Worker
from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.prefix import Tokens, as_tokens
from stream2llm.serving.worker_spec import Role


@dataclass(frozen=True, slots=True, eq=False)
class _Present:
    """The state of the session at its prefill worker, as another worker has to be sent it."""

    # 0: nothing but the open.
    revision: int = 0
    sequence: Tokens = field(default_factory=lambda: as_tokens([]))
    stable_tokens: int = 0
    is_sealed: bool = False
    hand_over: bool = False
    # The last tokens of the sequence that are the answer's.
    answer_tokens: int = 0

    @property
    def needs(self) -> tuple[Role, ...]:
        """The roles of which a worker must be there before the session is placed again.

        KV of an answer that waits for a decode worker would take memory for nothing.
        """
        is_resumed = self.answer_tokens > 0 and self.hand_over
        return ("decode", "prefill") if is_resumed else ("prefill",)


class PlacedPrefill:
    """The prefill side of one session; `open` it first."""

    def __init__(self, live: LiveSession) -> None:
        self._live = live
        self._workers = live.parts.workers
        self._present = _Present()
        self._lock = asyncio.Lock()
        self._is_closed = False
        self._given_up: Stream2LLMError | None = None
        self._call: PrefillCall
        # Called when the worker is lost, before another one gets the session.
        self.on_lost: Callable[[], object] = lambda: None

    async def open(self) -> None:
        """Begins the session; tries another worker if one cannot be reached."""
        tried = set[Worker]()
        worker = self._workers.pick("prefill")
        if worker is None:
            raise self._workers.none_of("prefill")
        while True:
            tried.add(worker)
            try:
                await self._begin_at(worker)
                return
            except NeverArrivedError:
                worker = self._workers.pick("prefill", tried)
                if worker is None:
                    raise

    async def splice(self, revision: int, splice: Splice, *, stable_tokens: int = 0) -> None:
        """Changes the sequence; KV of its first `stable_tokens` may be offered."""
        present = _Present(revision, splice.sequence, stable_tokens)
        await self._write(present, lambda call: _splice(call, present, splice))

    async def seal(
        self, revision: int, splice: Splice, *, hand_over: bool, stable_tokens: int = 0
    ) -> None:
        """Completes the sequence."""
        present = _Present(revision, splice.sequence, stable_tokens, True, hand_over)
        await self._write(present, lambda call: self._seal(call, present, splice))

    async def receive(self) -> pb.PrefillSessionResponse:
        """Returns the next message of the worker that holds the session."""
        while True:
            call = self._call
            try:
                return await call.receive()
            except Stream2LLMError as error:
                await self._recover(call, error)
            except asyncio.CancelledError:
                if not self._has_moved_from(call):
                    raise
                await self._recover(call, None)

    async def resume(
        self, failure: Failure, tokens: Tokens, num_answer_tokens: int, *, hand_over: bool
    ) -> None:
        """Goes on behind `tokens`, which end with the answer so far, after such a failure.

        The next token that is received continues the answer. Raises the error for the client
        when the session is not placed again.
        """
        async with self._lock:
            self._present = replace(
                self._present,
                sequence=tokens,
                stable_tokens=0,
                hand_over=hand_over,
                answer_tokens=num_answer_tokens,
            )
            await self._place_again(failure)

    async def watch(self) -> Failure | None:
        """After the first token: returns the worker's failure if decode does not have the KV yet."""
        call = self._call
        try:
            await call.watch()
        except Stream2LLMError as error:
            return _failure(call.worker, error)
        return None

    async def finish(self) -> None:
        """Decode has the KV, or needs none: lets the worker end its RPC normally."""
        await self._call.finish()

    def close(self) -> None:
        """Ends the RPC if it is still running; may be called again."""
        self._is_closed = True
        self._call.close()

    # -- losses ---------------------------------------------------------------------

    def _has_moved_from(self, call: PrefillCall) -> bool:
        """Whether that call was closed to place the session elsewhere, not with the session."""
        task = asyncio.current_task()
        is_ending = self._is_closed or (task is not None and task.cancelling() > 0)
        return call.is_closed and not is_ending

    async def _write(
        self, present: _Present, write: Callable[[PrefillCall], Awaitable[None]]
    ) -> None:
        async with self._lock:
            if self._given_up is not None:
                raise self._given_up
            self._present = present
            try:
                await write(self._call)
            except Stream2LLMError as error:
                await self._place_again(_failure(self._call.worker, error))

    async def _recover(self, call: PrefillCall, error: Stream2LLMError | None) -> None:
        """Returns when another call has taken the place of a failed one."""
        async with self._lock:
            if self._given_up is not None:
                raise self._given_up
            if self._call is call and error is not None:
                await self._place_again(_failure(call.worker, error))

    async def _place_again(self, failure: Failure) -> None:
        """Places the session at another worker; for the holder of the lock."""
        while True:
            verdict = self._live.recovery.lost(failure, self._call.worker)
            if isinstance(verdict, GiveUp):
                raise self._give_up(failure, verdict) from failure.error
            self._call.close()
            self._live.lost(verdict.cause, failure, self._present.revision)
            self.on_lost()
            again = await self._placed(failure, verdict)
            if again is None:
                self._live.placed_again(verdict.cause, failure, len(self._present.sequence))
                return
            failure = again

    async def _placed(self, failure: Failure, verdict: Restart) -> Failure | None:
        """Places the session after a pause; returns the failure of a worker that took it."""
        await asyncio.sleep(verdict.pause_s)
        by_s = self._live.parts.clock.monotonic_s() + self._live.parts.spec.recovery.max_wait_s
        while True:
            for role in self._present.needs:
                worker = await self._usable(role, by_s)
                if worker is None:
                    raise self._give_up(failure, self._live.recovery.no_worker(role))
            assert worker is not None, "prefill is the last of the roles"
            try:
                await self._begin_at(worker)
                return None
            except NeverArrivedError:
                continue  # it is suspect now
            except Stream2LLMError as error:
                return _failure(worker, error)

    async def _usable(self, role: Role, by_s: float) -> Worker | None:
        """Returns a worker of the role, the present one if possible; None if none comes in time."""
        live, left_s = self._live, by_s - self._live.parts.clock.monotonic_s()
        rather_not = live.recovery.rather_not
        return await self._workers.usable(
            role, left_s, live.refused_by, self._call.worker, rather_not
        )

    def _give_up(self, failure: Failure, verdict: GiveUp) -> Stream2LLMError:
        retry_after_s = self._workers.retry_after_s(failure.role)
        restarts = self._live.recovery.num_restarts
        self._given_up = final_error(failure, verdict, restarts, retry_after_s)
        return self._given_up

    # -- one worker -------------------------------------------------------------------

    async def _begin_at(self, worker: Worker) -> None:
        """Gives a worker all that there is of the session."""
        live = self._live
        call = PrefillCall(self._workers, worker, live.trace.metadata)
        try:
            await call.open(
                live.session_id,
                live.worker_sampling,
                live.cache_salt,
                live.share,
                ttft_slo_ms=live.ttft_slo_ms,
            )
            await self._send_all(call)
        except BaseException:
            call.close()
            raise
        self._call = call
        live.placed(worker)

    async def _send_all(self, call: PrefillCall) -> None:
        present = self._present
        everything = Splice(0, present.sequence, len(present.sequence), is_empty=False)
        if present.is_sealed:
            await self._seal(call, present, everything)
        elif present.revision:
            await _splice(call, present, everything)

    async def _seal(self, call: PrefillCall, present: _Present, splice: Splice) -> None:
        await call.seal(
            present.revision,
            splice,
            hand_over=present.hand_over,
            stable_tokens=present.stable_tokens,
            ttft_left_ms=self._live.ttft_left_ms,
            answer_tokens=present.answer_tokens,
        )


async def _splice(call: PrefillCall, present: _Present, splice: Splice) -> None:
    await call.splice(present.revision, splice, stable_tokens=present.stable_tokens)


def _failure(worker: Worker, error: Stream2LLMError) -> Failure:
    return Failure(error, "prefill", worker, not isinstance(error, NeverArrivedError))
