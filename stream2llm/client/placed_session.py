"""A session's place at a router, which changes when the router is lost.

    _run: the next router -> open, what was sent, seal -> its events into the inbox
          its failure     -> `recovery.py` decides: again after a pause, or the end

One task runs that and reads; a lock orders the writes. What is written is kept first, so
that it is either written to the present router or sent to the next one. The failure that
ends the session, if any, is raised by later calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stream2llm.api.errors import EventOrderError, Stream2LLMError
from stream2llm.api.events import Accepted
from stream2llm.api.tasks import TaskGroup, single_error
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.inbox import Inbox, OnEvent
from stream2llm.client.recovery import SessionRecovery
from stream2llm.client.routers import Routers
from stream2llm.client.rpc import END_GRACE_S, RpcFailedError, SessionRpc, ended_early
from stream2llm.client.sent_context import SentContext, parted
from stream2llm.client.status import cancelled_error
from stream2llm.client.translate import check_size
from stream2llm.client.tries import Tries


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What a session needs beside its opening."""

    max_message_bytes: int
    recovery: SessionRecovery
    # Whether the context depends on each event, and not only on the present documents.
    keeps_events: bool = False
    on_event: OnEvent | None = None
    # For the whole session.
    timeout_s: float | None = None


class PlacedSession:
    """Starts at once; `close` ends it, whatever state it is in."""

    def __init__(
        self,
        start_call: Callable[[int, float | None], Any],
        routers: Routers,
        opening: pb.OpenSession,
        options: SessionOptions,
    ) -> None:
        """`start_call` begins the RPC at a router, by its number, with a time limit in seconds."""
        self.inbox = Inbox(options.on_event, max(opening.sampling.n, 1))
        self._start_call = start_call
        self._opening = opening
        self._options = options
        self._tries = Tries(routers, options.recovery, options.timeout_s)
        self._kept = SentContext(options.recovery.max_kept_bytes, keeps_events=options.keeps_events)
        self._seal: pb.StreamGenerateRequest | None = None
        # Whether the present router takes a change with the seal.
        self._takes_change = False
        self._sequence = 1  # the open
        self._writing = asyncio.Lock()
        # The RPC that has been sent everything; None while the session is placed.
        self._rpc: SessionRpc | None = None
        self._changed = asyncio.Event()
        self._has_ended = False
        self._failure: BaseException | None = None
        self._running = asyncio.create_task(self._run(), name="stream2llm-session-reader")

    # -- writing -----------------------------------------------------------------

    async def opened(self) -> None:
        """Returns when the session is admitted."""
        await self._until(lambda: self.inbox.accepted is not None)

    async def append(self, message: pb.AppendContext) -> None:
        """Sends an append."""
        await self._send(lambda: [pb.StreamGenerateRequest(append=message)])

    async def update(self, message: pb.UpdateContext) -> None:
        """Sends an update."""
        await self._send(lambda: [pb.StreamGenerateRequest(update=self._kept.completed(message))])

    def check_seal(self, message: pb.SealContext) -> None:
        """Raises when the seal is too large to be sent."""
        check_size(pb.StreamGenerateRequest(seal=message), self._options.max_message_bytes)

    async def seal(self, message: pb.SealContext) -> None:
        """Sends the seal, and closes this side of the RPC."""
        self.inbox.seal()
        await self._send(lambda: self._sealing(message))

    async def close(self) -> None:
        """Ends the RPC; afterwards no task of this session is left."""
        if self.inbox.is_finished:
            await asyncio.wait({self._running}, timeout=END_GRACE_S)
        self._running.cancel()
        await asyncio.wait({self._running})

    async def _send(self, make_requests: Callable[[], list[pb.StreamGenerateRequest]]) -> None:
        """Writes what the session's present router takes."""
        async with self._writing:
            await self._until(lambda: self._rpc is not None)
            for request in make_requests():
                await self._send_one(request)

    async def _send_one(self, request: pb.StreamGenerateRequest) -> None:
        await self._until(lambda: self._rpc is not None)
        rpc = self._rpc
        assert rpc is not None, "that was waited for"
        request.sequence = self._sequence + 1
        check_size(request, self._options.max_message_bytes)
        self._sequence += 1
        self._keep(request)
        if not await _write(rpc, request):
            await self._until(lambda: self._rpc not in (None, rpc))

    def _sealing(self, message: pb.SealContext) -> list[pb.StreamGenerateRequest]:
        """The seal, after its change where the router does not take that with it."""
        if message.HasField("update"):
            message.update.CopyFrom(self._kept.completed(message.update))
        change, bare = parted(message)
        if change is None or self._takes_change:
            return [pb.StreamGenerateRequest(seal=message)]
        return [change, pb.StreamGenerateRequest(seal=bare)]

    def _keep(self, request: pb.StreamGenerateRequest) -> None:
        if not request.HasField("seal"):
            self._kept.sent(request)
            return
        change, bare = parted(request.seal)
        if change is not None:
            change.sequence = request.sequence
            self._kept.sent(change)
        self._seal = pb.StreamGenerateRequest(sequence=request.sequence, seal=bare)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Waits for a change of this session; raises what has ended it meanwhile."""
        while not is_so():
            if self._has_ended:
                raise self._failure or EventOrderError("the session has ended")
            self._changed.clear()
            await self._changed.wait()

    # -- the place -----------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not await self._served_by(self._tries.next_router()):
                pass
            self._end(None)
        except asyncio.CancelledError:
            self._end(cancelled_error())
            raise
        except Exception as error:  # final, or from the caller's on_event
            self._end(error)

    def _end(self, failure: BaseException | None) -> None:
        self._has_ended, self._failure = True, failure
        self._kept.drop()
        self.inbox.end(failure)
        self._changed.set()

    async def _served_by(self, router: int) -> bool:
        """Runs the session at a router; returns whether it has ended well, or goes on elsewhere."""
        rpc = SessionRpc(self._start_call(router, self._tries.left_s(self._waited_for())))
        is_admitted, error = False, None
        try:
            await self._open_at(rpc)
            is_admitted = True
            self._tries.admitted(router)
            await self._relay(rpc)
        except RpcFailedError as failed:
            error = failed.error
        finally:
            self._rpc = None
            rpc.cancel()
        if error is not None and not self.inbox.is_finished:
            await self._go_on(error, router, was_admitted=is_admitted)
        return self.inbox.is_finished

    async def _go_on(self, error: Stream2LLMError, router: int, *, was_admitted: bool) -> None:
        """Returns when the next router may be asked; raises the error that is final."""
        again = self._tries.failed(
            router, error, was_admitted=was_admitted, is_kept=self._kept.is_kept
        )
        if again.is_restart:
            await self.inbox.router_lost()
        await self._tries.pause(again, self._waited_for())

    # -- one router ----------------------------------------------------------------

    async def _open_at(self, rpc: SessionRpc) -> None:
        """Returns when the router has admitted the session."""
        async with self._tries.answer(is_first=self.inbox.accepted is None):
            await rpc.write(pb.StreamGenerateRequest(sequence=1, open=self._present_opening()))
            await rpc.answered()
        while not await self._is_accepted_by(rpc):
            pass
        self._changed.set()

    def _present_opening(self) -> pb.OpenSession:
        accepted = self.inbox.accepted
        if accepted is None:
            return self._opening
        opening = pb.OpenSession()
        opening.CopyFrom(self._opening)
        opening.session_id = accepted.session_id
        opening.resumed.CopyFrom(self.inbox.resumed)
        return opening

    async def _is_accepted_by(self, rpc: SessionRpc) -> bool:
        event = await rpc.read(self._options.timeout_s, self._waited_for)
        if event is None:
            raise ended_early()
        await self.inbox.take(event)
        if not isinstance(event, Accepted):
            return False
        self._takes_change = event.seal_takes_change
        return True

    async def _relay(self, rpc: SessionRpc) -> None:
        """Sends what was sent before, and reads to the end."""
        before = self._kept.again(self._options.max_message_bytes)
        before += [self._seal] if self._seal is not None else []
        if not before:
            self._is_at(rpc)
            await self._read_to_end(rpc)
            return
        with single_error():
            async with TaskGroup() as group:
                sending = group.create_task(self._send_again(rpc, before))
                await self._read_to_end(rpc)
                sending.cancel()

    async def _send_again(self, rpc: SessionRpc, requests: list[pb.StreamGenerateRequest]) -> None:
        for request in requests:
            if not request.HasField("seal"):
                await self.inbox.credit.wait()
            if not await _write(rpc, request):
                return  # who reads gets the reason
        self._is_at(rpc)

    def _is_at(self, rpc: SessionRpc) -> None:
        self._rpc = rpc
        self._changed.set()

    async def _read_to_end(self, rpc: SessionRpc) -> None:
        while (event := await rpc.read(self._options.timeout_s, self._waited_for)) is not None:
            await self.inbox.take(event)
        if not self.inbox.is_finished:
            raise ended_early()

    def _waited_for(self) -> str:
        """Returns what had not happened when a session ran out of time."""
        if self.inbox.accepted is None:
            return "the session was not admitted"
        if not self.inbox.before_seal.closed:
            return "the session was not sealed"
        return "the answer did not end"


async def _write(rpc: SessionRpc, request: pb.StreamGenerateRequest) -> bool:
    return await rpc.write(request, last=request.HasField("seal"))
