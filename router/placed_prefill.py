"""A session's place at a prefill worker, which changes when the worker is lost.

The session's input and output use it as they would use one `PrefillCall`. It keeps what
another worker needs to go on: the sequence as it was sent, or, after the first token, the
prompt and the answer so far. One write or one change of place at a time (`_lock`); what a
former worker still says is not read.

    splice, seal, receive -> the worker fails -> place again: open, the whole sequence, seal
    leave_draining        -> the same, before a drain ends the session
    resume                -> the same, with the answer so far, when its KV is lost

`recovery.py` decides; an error that it does not accept ends the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from router.draining import leaves_prefill
from router.live_session import LiveSession
from router.prefill_state import PrefillState
from router.recovery import AnswerLostError, Failure, GiveUp, Restart, drained, final_error
from router.splice import Splice
from router.status import WORKER_LOST, NeverArrivedError
from router.worker import Worker
from router.worker_calls import PrefillCall
from stream2llm.api import codec
from stream2llm.api.errors import Stream2LLMError, UnavailableError
from stream2llm.api.session import State
from stream2llm.api.tasks import is_cancelled
from stream2llm.api.token_step import TokenStep
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.sessions.prefix import Tokens
from stream2llm.serving.settings.worker_spec import Role


class PlacedPrefill:
    """The prefill side of one session; `open` it first."""

    def __init__(self, live: LiveSession) -> None:
        self._live = live
        self._workers = live.parts.workers
        self._present = PrefillState()
        self._lock = asyncio.Lock()
        self._is_closed = False
        self._given_up: Stream2LLMError | None = None
        self._call: PrefillCall
        # Called when the worker is lost, before another one gets the session.
        self.on_lost: Callable[[], object] = lambda: None

    @property
    def worker(self) -> Worker:
        """The worker that has the session, or had it last."""
        return self._call.worker

    async def open(self, num_prompt_tokens: int, rather: Worker | None = None) -> None:
        """Begins as soon as a worker can be used, at `rather` if possible; tries another if one is away.

        So many tokens of the prompt are known.

        Raises UnavailableError when none comes within `recovery.max_wait_s`, and at once where
        sessions are not placed again.
        """
        live, failure = self._live, None
        wait_s = live.parts.spec.recovery.max_wait_s if live.recovery.may_move else 0.0
        by_s = live.parts.clock.monotonic_s() + wait_s
        while True:
            left_s = by_s - live.parts.clock.monotonic_s()
            worker = await self._workers.usable(
                "prefill", left_s, first=rather, num_prompt_tokens=num_prompt_tokens
            )
            if worker is None:
                raise failure or self._workers.none_of("prefill")
            try:
                await self._begin(PrefillCall(self._workers, worker, live.trace.metadata))
                return
            except UnavailableError as error:
                if error.reason != WORKER_LOST:
                    raise
                failure = error  # it is suspect now, and has computed nothing

    async def splice(self, revision: int, splice: Splice, *, stable_tokens: int = 0) -> None:
        """Changes the sequence; KV of its first `stable_tokens` may be offered."""
        present = PrefillState(revision, splice.sequence, stable_tokens)
        await self._write(present, splice)

    async def seal(
        self,
        revision: int,
        splice: Splice,
        *,
        answer_max_tokens: int,
        stable_tokens: int = 0,
        answer_tokens: int = 0,
    ) -> None:
        """Completes the sequence, whose last tokens are the answer so far; see PrefillState."""
        present = PrefillState(
            revision, splice.sequence, stable_tokens, True, answer_max_tokens, answer_tokens
        )
        await self._write(present, splice)

    async def receive(self) -> pb.PrefillSessionResponse:
        """Returns the next message of the worker that holds the session."""
        while True:
            call = self._call
            try:
                message = await call.receive()
                if not self._is_left(call):
                    return message
                self._drop(message)
                await self._recover(call, None)
            except Stream2LLMError as error:
                await self._recover(call, error)
            except asyncio.CancelledError:
                if not self._has_moved_from(call):
                    raise
                await self._recover(call, None)

    async def leave_draining(self) -> None:
        """Places the session elsewhere, when workers have begun to drain and its own is one.

        It leaves as soon as another worker can be used; until then it stays.
        """
        left: Worker | None = None
        while self._live.recovery.may_move and self._call.worker is not left:
            left = self._call.worker
            if self._wants_to_leave(left):
                await self._leave(left)

    async def resume(self, failure: Failure, tokens: Tokens, num_answer_tokens: int) -> None:
        """Goes on behind `tokens`, which end with the answer so far, after such a failure.

        The next token that is received continues the answer. Raises the error for the client
        when the session is not placed again.
        """
        async with self._lock:
            self._present = replace(
                self._present,
                sequence=tokens,
                stable_tokens=0,
                answer_tokens=num_answer_tokens,
            )
            await self._place_again(failure)

    @property
    def answering(self) -> Worker | None:
        """The worker, where it goes on with the answer; None where decode does."""
        worker = self._call.worker
        return worker if worker.answers else None

    async def receive_step(self) -> TokenStep:
        """Returns the next step of an answer that goes on here; AnswerLostError when it is lost."""
        call = self._call
        try:
            return codec.decode(TokenStep, (await call.receive()).step)
        except Stream2LLMError as error:
            raise AnswerLostError(await _failure(call, error)) from error

    async def watch(self) -> Failure | None:
        """After the first token: returns the worker's failure if decode does not have the KV yet."""
        call = self._call
        try:
            await call.watch()
        except Stream2LLMError as error:
            return await _failure(call, error)
        return None

    async def finish(self) -> None:
        """Decode has the KV, or needs none: lets the worker end its RPC normally."""
        await self._call.finish()

    def close(self) -> None:
        """Ends the RPC if it is still running; may be called again."""
        self._is_closed = True
        self._call.close()

    # -- drains ---------------------------------------------------------------------

    def _wants_to_leave(self, worker: Worker) -> bool:
        """Whether the session, before its next token, does not end in time at a worker that drains."""
        live = self._live
        if worker.drain_by_s is None or live.state not in (State.OPEN, State.SEALED):
            return False
        now_s = live.parts.clock.monotonic_s()
        rate = worker.queue.tokens_per_s(now_s)
        return leaves_prefill(
            live.progress.work(rate, is_sealed=live.is_sealed), worker.drain_by_s - now_s
        )

    async def _leave(self, worker: Worker) -> None:
        """Returns when the session has left, or when that worker's time is over."""
        by_s = worker.drain_by_s or 0.0
        left_s = by_s - self._live.parts.clock.monotonic_s()
        but, num_tokens = {*self._live.refused_by, worker}, len(self._present.sequence)
        other = await self._workers.usable("prefill", left_s, but, num_prompt_tokens=num_tokens)
        async with self._lock:
            is_there = self._given_up is None and self._call.worker is worker
            if other is not None and is_there and self._wants_to_leave(worker):
                await self._place_again(drained(worker, worker.address.role))

    def _is_left(self, call: PrefillCall) -> bool:
        """Whether that call was closed to place the session elsewhere, not with the session."""
        return call.is_closed and not self._is_closed

    def _drop(self, message: pb.PrefillSessionResponse) -> None:
        """Frees the KV that a message names which came as its worker was left."""
        event = message.WhichOneof("event")
        if event == "offer" or (
            event == "first_token" and message.first_token.HasField("handover")
        ):
            handover = getattr(message, event).handover
            request = pb.ReleaseHandoverRequest(session_id=self._live.session_id, handover=handover)
            self._workers.release_handover(request)

    # -- losses ---------------------------------------------------------------------

    def _has_moved_from(self, call: PrefillCall) -> bool:
        """Whether a cancelled read of that call means that the session is elsewhere now."""
        return self._is_left(call) and not is_cancelled()

    async def _write(self, present: PrefillState, splice: Splice) -> None:
        """Sends a splice that leads to that state; the session moves if its worker has failed."""
        async with self._lock:
            if self._given_up is not None:
                raise self._given_up
            self._present = present
            try:
                await present.send(self._call, splice, self._live.ttft_left_ms)
            except Stream2LLMError as error:
                await self._place_again(await _failure(self._call, error))

    async def _recover(self, call: PrefillCall, error: Stream2LLMError | None) -> None:
        """Returns when another call has taken the place of a failed one."""
        async with self._lock:
            if self._given_up is not None:
                raise self._given_up
            if self._call is call and error is not None:
                await self._place_again(await _failure(call, error))

    async def _place_again(self, failure: Failure) -> None:
        """Places the session at another worker; for the holder of the lock."""
        while True:
            now_s = self._live.parts.clock.monotonic_s()
            verdict = self._live.recovery.lost(failure, now_s, self._call.worker)
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
            worker = await self._usable("prefill", by_s)
            if worker is not None and self._present.is_resumed and not worker.answers:
                # KV of an answer that waits for a decode worker would take memory for nothing.
                if await self._usable("decode", by_s) is None:
                    raise self._give_up(failure, self._live.recovery.no_worker("decode", verdict))
                worker = await self._usable("prefill", by_s)
            if worker is None:
                raise self._give_up(failure, self._live.recovery.no_worker("prefill", verdict))
            call = PrefillCall(self._workers, worker, self._live.trace.metadata)
            try:
                await self._begin(call)
                return None
            except NeverArrivedError:
                continue  # it is suspect now
            except Stream2LLMError as error:
                return await _failure(call, error)

    async def _usable(self, role: Role, by_s: float) -> Worker | None:
        """Returns a worker of the role, the present one if possible; None if none comes in time."""
        live, left_s = self._live, by_s - self._live.parts.clock.monotonic_s()
        rather_not = live.recovery.rather_not
        num_tokens = len(self._present.sequence)
        return await self._workers.usable(
            role, left_s, live.refused_by, self._call.worker, rather_not, num_tokens
        )

    def _give_up(self, failure: Failure, verdict: GiveUp) -> Stream2LLMError:
        retry_after_s = self._workers.retry_after_s(failure.role)
        restarts = self._live.recovery.num_restarts
        self._given_up = final_error(failure, verdict, restarts, retry_after_s)
        return self._given_up

    # -- one worker -------------------------------------------------------------------

    async def _begin(self, call: PrefillCall) -> None:
        """Gives the call's worker all that there is of the session; closes the call if that fails."""
        live = self._live
        try:
            await call.open(
                live.session_id,
                live.worker_sampling,
                live.cache_salt,
                live.share,
                ttft_slo_ms=live.ttft_slo_ms,
            )
            await self._present.send_all(call, live.ttft_left_ms)
        except BaseException:
            call.close()
            raise
        self._call = call
        live.placed(call.worker)


async def _failure(call: PrefillCall, error: Stream2LLMError) -> Failure:
    return Failure(error, call.worker.address.role, call.worker, await call.was_held())
