"""One streaming session, asynchronously.

    async with client.session(prefix=...) as s:     opens; returns when it is admitted
        await s.append(...); await s.update(...)    wait for credit, then send
        async for event in s.seal(): ...            the answer

Leaving the block ends the session in any state. The next call, or one that waits,
raises a failure. The table in `stream2llm.api.session` defines the allowed order of
events.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any, Self

from stream2llm.api.errors import EventOrderError
from stream2llm.api.events import Answer, Event, Finished, OversizedDocument, Progress
from stream2llm.api.requests import AppendContext, Content, SealContext, UpdateContext
from stream2llm.api.session import Event as SessionEvent
from stream2llm.api.session import Session as LifeCycle
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.inputs import DocumentLike, appended, content_of, updated
from stream2llm.client.rpc import OnEvent, SessionRpc
from stream2llm.client.stream import AnswerStream
from stream2llm.client.translate import message_of

_FORGOTTEN = (
    "seal() of this session was called, and its answer never read, so that nothing was sealed:"
    " iterate what seal() returns, or call answer()"
)


class AsyncSession:
    """Created by `AsyncClient.session`; use it in `async with`, in one event loop."""

    def __init__(
        self,
        start_call: Callable[[], Any],
        open_message: pb.OpenSession,
        max_message_bytes: int,
        on_event: OnEvent | None,
        timeout_s: float | None = None,
    ) -> None:
        self._start_call = start_call
        self._open_message = open_message
        self._max_message_bytes = max_message_bytes
        self._on_event = on_event
        self._timeout_s = timeout_s
        self._rpc: SessionRpc | None = None
        self._life = LifeCycle()
        # `seal` was called, and the iteration that sends it has not begun.
        self._answer_is_forgotten = False

    @property
    def session_id(self) -> str:
        """The id under which the server logs this session."""
        accepted = self._rpc.accepted if self._rpc else None
        return accepted.session_id if accepted else self._open_message.session_id

    @property
    def model(self) -> str:
        """The served model's name."""
        accepted = self._rpc.accepted if self._rpc else None
        return accepted.model if accepted else self._open_message.model

    @property
    def progress(self) -> Progress:
        """The server's newest progress; never waits."""
        return self._rpc.progress if self._rpc else Progress()

    @property
    def oversized_documents(self) -> tuple[OversizedDocument, ...]:
        """Documents that were refused or cut so far; all of them once the answer begins."""
        return tuple(self._rpc.oversized) if self._rpc else ()

    async def __aenter__(self) -> Self:
        """Opens the session; raises when the server refuses it."""
        self._life.apply(SessionEvent.OPEN)
        self._rpc = SessionRpc(
            self._start_call(), self._max_message_bytes, self._on_event, self._timeout_s
        )
        try:
            await self._rpc.open(self._open_message)
        except BaseException:
            await self._rpc.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        await self.close()
        if kind is None:
            self.warn_of_forgotten_answer(stacklevel=3)

    async def close(self) -> None:
        """Ends the session, whatever state it is in, as leaving the block does."""
        if self._rpc is not None:
            await self._rpc.close()

    def warn_of_forgotten_answer(self, stacklevel: int) -> None:
        """Warns where `seal` was called for nothing; `stacklevel` as that of `warnings.warn`."""
        if self._answer_is_forgotten:
            warnings.warn(_FORGOTTEN, RuntimeWarning, stacklevel=stacklevel)

    async def append(self, *documents: DocumentLike) -> None:
        """Sends documents that follow those sent before, in one event.

        A document is text, a list of token ids, or a Document. Waits while the server
        grants no credit.
        """
        rpc = self._rpc_for(SessionEvent.APPEND)
        message = message_of(AppendContext(appended(documents)), "append")
        await rpc.credit.wait()
        await rpc.append(message)

    async def update(self, documents: Iterable[DocumentLike]) -> None:
        """Replaces the document list; DocumentRef("id") names one sent before.

        The common beginning of the old and the new list stays prefilled; with the
        ordering "stable", everything before the first document that the new list leaves
        out. Waits for credit when it carries content.
        """
        rpc = self._rpc_for(SessionEvent.UPDATE)
        new_list = updated(documents)
        message = message_of(UpdateContext(new_list), "update")
        if any(document.content is not None for document in new_list):
            await rpc.credit.wait()
        await rpc.update(message)

    def seal(self, suffix: Content | None = None) -> AnswerStream:
        """Completes the context; iterate the answer's events, of which Finished is the last.

        The seal is sent when the iteration begins. `suffix` replaces the one given at
        the open.
        """
        if suffix is not None:
            suffix = content_of(suffix, "seal.suffix")
        self._answer_is_forgotten = True
        return AnswerStream(self._seal(message_of(SealContext(suffix), "seal")))

    async def answer(self, suffix: Content | None = None) -> Answer:
        """Seals, and returns the whole answer."""
        return await self.seal(suffix).answer()

    def events(self) -> AsyncIterator[Event]:
        """Yields Accepted, Progress and OversizedDocument until the seal; raises on failure.

        A newer Progress replaces an unread one. One reader.
        """
        return self._opened().before_seal

    async def _seal(self, message: pb.SealContext) -> AsyncGenerator[Event, None]:
        self._answer_is_forgotten = False
        self._opened().check_seal(message)  # before the session counts as sealed
        rpc = self._rpc_for(SessionEvent.SEAL)
        await rpc.seal(message)
        async for event in rpc.after_seal:
            yield event
            if isinstance(event, Finished):
                return

    def _rpc_for(self, event: SessionEvent) -> SessionRpc:
        rpc = self._opened()
        self._life.apply(event)  # raises when the event does not fit
        return rpc

    def _opened(self) -> SessionRpc:
        if self._rpc is None:
            raise EventOrderError(
                "the session is not open: it opens where its block begins, `async with "
                "client.session(...) as session:` (the synchronous client's with `with`)",
                reason="SESSION_NOT_OPEN",
            )
        return self._rpc
