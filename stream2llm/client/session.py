"""One streaming session, asynchronously.

    async with client.session(prefix=...) as s:     opens; returns when it is admitted
        await s.append(...); await s.update(...)    wait for credit, then send
        async for event in s.seal(): ...            the answer

Leaving the block ends the session in any state. The next call, or one that waits,
raises a failure, but a lost router is none while another one takes the session over. The table in `stream2llm.api.session` defines the allowed order of
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
from stream2llm.client.inputs import DocumentLike, appended, content_of, last_change, updated
from stream2llm.client.placed_session import PlacedSession
from stream2llm.client.recording import SessionRecording
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
        place: Callable[[], PlacedSession],
        open_message: pb.OpenSession,
        recording: SessionRecording | None = None,
    ) -> None:
        """`place` begins the session at a router; `recording` gets what it sends."""
        self._place = place
        self._open_message = open_message
        self._placed: PlacedSession | None = None
        self._recording = recording
        self._life = LifeCycle()
        self._num_answers = max(open_message.sampling.n, 1)
        # `seal` was called, and the iteration that sends it has not begun.
        self._answer_is_forgotten = False

    @property
    def session_id(self) -> str:
        """The id under which the server logs this session."""
        accepted = self._placed.inbox.accepted if self._placed else None
        return accepted.session_id if accepted else self._open_message.session_id

    @property
    def model(self) -> str:
        """The served model's name."""
        accepted = self._placed.inbox.accepted if self._placed else None
        return accepted.model if accepted else self._open_message.model

    @property
    def progress(self) -> Progress:
        """The server's newest progress; never waits."""
        return self._placed.inbox.progress if self._placed else Progress()

    @property
    def oversized_documents(self) -> tuple[OversizedDocument, ...]:
        """Documents that were refused or cut so far; all of them once the answer begins."""
        return tuple(self._placed.inbox.oversized) if self._placed else ()

    async def __aenter__(self) -> Self:
        """Opens the session; raises when the server refuses it."""
        self._life.apply(SessionEvent.OPEN)
        if self._recording is not None:
            self._recording.opened()
        self._placed = self._place()
        try:
            await self._placed.opened()
        except BaseException:
            await self._placed.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        await self.close()
        if kind is None:
            self.warn_of_forgotten_answer(stacklevel=3)

    async def close(self) -> None:
        """Ends the session, whatever state it is in, as leaving the block does."""
        if self._placed is not None:
            await self._placed.close()
        if self._recording is not None:
            self._recording.write(self.session_id)

    def warn_of_forgotten_answer(self, stacklevel: int) -> None:
        """Warns where `seal` was called for nothing; `stacklevel` as that of `warnings.warn`."""
        if self._answer_is_forgotten:
            warnings.warn(_FORGOTTEN, RuntimeWarning, stacklevel=stacklevel)

    async def append(self, *documents: DocumentLike) -> None:
        """Sends documents that follow those sent before, in one event.

        A document is text, a list of token ids, or a Document. Waits while the server
        grants no credit.
        """
        placed = self._placed_for(SessionEvent.APPEND)
        event = AppendContext(appended(documents))
        message = message_of(event, "append")
        self._record(event)
        await placed.inbox.credit.wait()
        await placed.append(message)

    async def update(self, documents: Iterable[DocumentLike]) -> None:
        """Replaces the document list; DocumentRef("id") names one sent before.

        The common beginning of the old and the new list stays prefilled; with the
        ordering "stable", everything before the first document that the new list leaves
        out. Waits for credit when it carries content.
        """
        placed = self._placed_for(SessionEvent.UPDATE)
        event = UpdateContext(updated(documents))
        message = message_of(event, "update")
        self._record(event)
        if any(document.content is not None for document in event.documents):
            await placed.inbox.credit.wait()
        await placed.update(message)

    def seal(
        self,
        suffix: Content | None = None,
        *,
        append: Iterable[DocumentLike] | None = None,
        update: Iterable[DocumentLike] | None = None,
    ) -> AnswerStream:
        """Completes the context; iterate the answer's events, of which Finished is the last.

        With `sampling.n` there are several answers, each with an index and a Finished.

        The seal is sent when the iteration begins. `suffix` replaces the one given at
        the open. `append` or `update` are the last documents: the answer begins earlier than
        behind a call of that name, because no step of prefill comes between the two.
        """
        if suffix is not None:
            suffix = content_of(suffix, "seal.suffix")
        event = SealContext(suffix, last_change(append, update))
        self._answer_is_forgotten = True
        events = self._seal(event, message_of(event, "seal"))
        return AnswerStream(events, self._num_answers)

    async def answer(self, suffix: Content | None = None, **last: Any) -> Answer:
        """Seals, and returns the whole answer; arguments as `seal` takes them."""
        return await self.seal(suffix, **last).answer()

    async def answers(self, suffix: Content | None = None, **last: Any) -> tuple[Answer, ...]:
        """Seals, and returns all `sampling.n` answers in the order of their index."""
        return await self.seal(suffix, **last).answers()

    def events(self) -> AsyncIterator[Event]:
        """Yields Accepted, Progress and OversizedDocument until the seal; raises on failure.

        A newer Progress replaces an unread one. One reader.
        """
        return self._opened().inbox.before_seal

    async def _seal(
        self, seal: SealContext, message: pb.SealContext
    ) -> AsyncGenerator[Event, None]:
        self._answer_is_forgotten = False
        self._opened().check_seal(message)  # before the session counts as sealed
        placed = self._placed_for(SessionEvent.SEAL)
        self._record(seal)
        await placed.seal(message)
        num_left = self._num_answers
        async for event in placed.inbox.after_seal:
            if isinstance(event, Finished):
                self._record_answer(event)
                num_left -= 1
            yield event
            if not num_left:
                return

    def _record(self, event: AppendContext | UpdateContext | SealContext) -> None:
        if self._recording is not None:
            self._recording.sent(event)

    def _record_answer(self, finished: Finished) -> None:
        if self._recording is not None and finished.index == 0:
            self._recording.answered(finished.usage.completion_tokens)

    def _placed_for(self, event: SessionEvent) -> PlacedSession:
        placed = self._opened()
        self._life.apply(event)  # raises when the event does not fit
        return placed

    def _opened(self) -> PlacedSession:
        if self._placed is None:
            raise EventOrderError(
                "the session is not open: it opens where its block begins, `async with "
                "client.session(...) as session:` (the synchronous client's with `with`)",
                reason="SESSION_NOT_OPEN",
            )
        return self._placed
