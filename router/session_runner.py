"""One session at the router, from its first event to its end.

    input:   client event -> life cycle -> tokens -> context log -> splice to prefill
    output:  prefill's progress and first token -> outbox; then decode's steps -> outbox
    writer:  outbox -> client

The three tasks end together. The first failure ends the session with one error; a
cancelled RPC ends it with none. In either case both worker RPCs end, and a hand-over
that no decode worker has taken is released.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from router.context import ContextLog
from router.kv_prefetch import KvPrefetch
from router.live_session import LiveSession, RouterParts
from router.outbox import Send
from router.ranking_note import check_ranking_note
from router.session_input import EventReader, SessionInput, limits_of
from router.session_output import SessionOutput
from router.sessions import SessionPlace
from router.status import NeverArrivedError
from router.worker_calls import PrefillCall
from stream2llm.api.errors import (
    IdleTimeoutError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    Stream2LLMError,
    UnavailableError,
)
from stream2llm.api.events import Accepted
from stream2llm.api.requests import ClientEvent, OpenSession, PlainTemplate
from stream2llm.api.session import Event
from stream2llm.serving.stream_writer import PeerGoneError

_logger = logging.getLogger(__name__)
MAX_SESSION_ID_CHARS = 256


async def run_session(
    parts: RouterParts, place: SessionPlace, events: AsyncIterator[ClientEvent], send: Send
) -> None:
    """Serves one admitted session and frees its place; raises the one error its client gets.

    Raises PeerGoneError or CancelledError when the client has left.
    """
    live = LiveSession(parts, place)
    try:
        await _limited(live, events, send)
    except asyncio.CancelledError:
        _cancelled(live)
        raise
    except Exception as raised:
        if any(isinstance(leaf, PeerGoneError) for leaf in _leaves(raised)):
            _cancelled(live)
            raise PeerGoneError from raised
        error = _the_error(raised, live.session_id)
        live.end(Event.FAIL, error.status_name.lower())
        _logger.info(
            "session_failed session_id=%s reason=%s message=%r",
            *(live.session_id, error.reason, error.message),
        )
        raise error from raised
    live.end(Event.FINISH, "ok")


def _cancelled(live: LiveSession) -> None:
    live.end(Event.CANCEL, "cancelled")
    _logger.info("session_cancelled session_id=%s", live.session_id)


async def _limited(live: LiveSession, events: AsyncIterator[ClientEvent], send: Send) -> None:
    limit_s = live.parts.spec.limits.max_session_duration_s
    try:
        async with asyncio.timeout(limit_s) as deadline:
            await _serve(live, events, send)
    except TimeoutError:
        if not deadline.expired():
            raise
        raise IdleTimeoutError(
            f"the session was open for {limit_s:g} s, which is the limit (max_session_duration_s)",
            reason="SESSION_TOO_LONG",
        ) from None


async def _serve(live: LiveSession, events: AsyncIterator[ClientEvent], send: Send) -> None:
    reader = EventReader(live, events)
    try:
        await _serve_events(live, reader, send)
    finally:
        await reader.close()


async def _serve_events(live: LiveSession, reader: EventReader, send: Send) -> None:
    opened = await reader.open()
    _take_open(live, opened)
    frame = await live.parts.text.frame(opened.template, opened.control_tokens)
    # A template may be as long as the context; from here on the frame has its tokens.
    opened = replace(opened, template=PlainTemplate())
    log = ContextLog(frame.prefix, limits_of(live), live.ordering)
    worker_call = await _open_call(live)
    prefetch = KvPrefetch(live, opened.handover or live.parts.spec.handover)
    try:
        output = SessionOutput(live, worker_call, prefetch)
        session_input = SessionInput(live, worker_call, frame, log, output.sealed, prefetch, opened)
        await live.outbox.put(_accepted(live))
        await session_input.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(live.outbox.drain(send))
            reading = group.create_task(session_input.run(reader))
            fetching = group.create_task(prefetch.run())
            await output.run()
            reading.cancel()  # messages after the answer are ignored
            fetching.cancel()
            await live.outbox.close()
    finally:
        prefetch.close()
        worker_call.close()


def _take_open(live: LiveSession, event: OpenSession) -> None:
    live.timeline.opened()
    if len(event.session_id) > MAX_SESSION_ID_CHARS:
        raise InvalidRequestError(
            f"session_id has {len(event.session_id)} characters; at most"
            f" {MAX_SESSION_ID_CHARS} are allowed",
            field="session_id",
        )
    live.session_id = event.session_id or uuid.uuid4().hex
    check_model(live.parts, event.model)
    event.sampling.validate(live.parts.text.tokenizer.files.vocab_size)
    check_ranking_note(event.ranking_note, event.ordering)
    live.sampling = event.sampling
    live.ordering = event.ordering
    live.lengths = live.parts.lengths().for_answer(event.sampling.max_tokens)


def check_model(parts: RouterParts, model: str) -> None:
    """Raises unless the router serves `model`; an empty name means the only one."""
    if model not in ("", parts.spec.model_name):
        raise NotFoundError(
            f"model {model!r} is not served here; {parts.spec.model_name!r} is",
            reason="UNKNOWN_MODEL",
            field="model",
        )


async def _open_call(live: LiveSession) -> PrefillCall:
    """Opens the session at a prefill worker; tries another one if it cannot be reached."""
    workers, tried = live.parts.workers, set[str]()
    worker = workers.pick("prefill")
    if worker is None:
        raise UnavailableError("no prefill worker can be used now", reason="NO_PREFILL_WORKER")
    while True:
        tried.add(worker.worker_id)
        worker_call = PrefillCall(workers, worker)
        try:
            await worker_call.open(live.session_id, live.worker_sampling)
            return worker_call
        except NeverArrivedError:
            worker_call.close()
            worker = workers.pick_but("prefill", tried)
            if worker is None:
                raise
        except BaseException:
            worker_call.close()
            raise


def _accepted(live: LiveSession) -> Accepted:
    credit = live.progress.figures().credit_tokens
    return Accepted(live.session_id, live.parts.spec.model_name, credit)


def _the_error(raised: Exception, session_id: str) -> Stream2LLMError:
    """Returns the one error to report among concurrent ones."""
    leaves = list(_leaves(raised))
    ours = [leaf for leaf in leaves if isinstance(leaf, Stream2LLMError)]
    if len(ours) < len(leaves) or not ours:
        _logger.error("session_broke session_id=%s", session_id, exc_info=raised)
    # A cause is often accompanied by an internal error that follows from it.
    causes = [error for error in ours if not isinstance(error, InternalError)]
    fallback = InternalError(f"internal error in session {session_id or '(unnamed)'}")
    return next(iter([*causes, *ours]), fallback)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
