"""One session at the router, from its first event to its end.

    input:   client event -> life cycle -> tokens -> context log -> splice to prefill
    output:  prefill's progress and first token -> outbox; then decode's steps -> outbox
    writer:  outbox -> client

The tasks end together. The first failure ends the session with one error; a
cancelled RPC ends it with none. In either case both worker RPCs end, and a hand-over
that no decode worker has taken is released.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from router.admission import admit, chosen_slo_ms, forecast, verdict_of
from router.answers import placed, run_answers
from router.context import ContextLog
from router.event_reader import EventReader
from router.live_session import LiveSession
from router.metrics import InputOp
from router.outbox import Outbox, Send
from router.ranking_note import check_ranking_note
from router.resumed import FIELD, check_opened, other_field
from router.router_parts import RouterParts
from router.session_input import SessionInput, limits_of
from router.sessions import SessionPlace
from stream2llm.api.errors import (
    IdleTimeoutError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    Stream2LLMError,
)
from stream2llm.api.events import Accepted
from stream2llm.api.options import AskedSlo, asked_slo
from stream2llm.api.requests import ClientEvent, OpenSession, PlainTemplate, ResumedSession
from stream2llm.api.sampling import BAD_SAMPLING
from stream2llm.api.session import Event
from stream2llm.api.tasks import TaskGroup
from stream2llm.api.trace_context import TraceContext
from stream2llm.security.principal import caller
from stream2llm.serving.observability.log_context import bind
from stream2llm.serving.rpc.stream_writer import PeerGoneError

_logger = logging.getLogger(__name__)
MAX_SESSION_ID_CHARS = 256


async def run_session(
    parts: RouterParts,
    place: SessionPlace,
    events: AsyncIterator[ClientEvent],
    send: Send,
    parent: TraceContext | None = None,
    slos: Sequence[AskedSlo] = (),
) -> None:
    """Serves one admitted session and frees its place; raises the one error its client gets.

    `parent` is the trace context that the client sent, `slos` the deadlines in the call's metadata.
    Raises PeerGoneError or CancelledError when the client has left.
    """
    live = LiveSession(parts, place, caller(), parts.tracing.begin("session", parent))
    live.asked_slos = tuple(slos)
    bind(live.log_context)
    task = asyncio.current_task()
    assert task is not None
    place.on_evicted = task.cancel
    try:
        await _limited(live, events, send)
    except asyncio.CancelledError:
        if place.eviction is not None:
            task.uncancel()
            raise _failed(live, place.eviction) from None
        live.end(Event.CANCEL, "cancelled")
        raise
    except Exception as raised:
        if any(isinstance(leaf, PeerGoneError) for leaf in _leaves(raised)):
            live.end(Event.CANCEL, "cancelled")
            raise PeerGoneError from raised
        raise _failed(live, _the_error(raised, live.session_id)) from raised
    live.end(Event.FINISH, "ok")


def _failed(live: LiveSession, error: Stream2LLMError) -> Stream2LLMError:
    live.end(Event.FAIL, error.status_name.lower(), error)
    return error


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
    live.read_by(lambda: reader.has_unhandled_content)
    try:
        await _serve_events(live, reader, send)
    finally:
        await reader.close()


async def _serve_events(live: LiveSession, reader: EventReader, send: Send) -> None:
    opened = await reader.open()
    _take_open(live, opened)
    begin_s = live.trace.now_s()
    last_tokens = opened.sampling.truncate_prompt_tokens
    frame = await live.parts.text.frame(opened.template, opened.control_tokens, last_tokens)
    live.bad_words = await live.parts.text.bad_words(opened.sampling.bad_words)
    live.trace.tokenized(InputOp.OPEN, begin_s, len(frame.prefix) + len(frame.suffix))
    # A template may be as long as the context; from here on the frame has its tokens.
    opened = replace(opened, template=PlainTemplate())
    log = ContextLog(frame.prefix, limits_of(live), live.ordering)
    num_tokens = len(frame.prefix) + len(frame.suffix)
    forecast_ms = _admit(live, num_tokens)
    handover = opened.handover or live.parts.spec.handover
    async with placed(live, handover, num_tokens) as answer:
        session_input = SessionInput(live, answer, frame, log, opened)
        await live.outbox.put(_accepted(live, forecast_ms, opened))
        async with _writing(live.outbox, send), TaskGroup() as group:
            reading = group.create_task(session_input.run(reader))
            await run_answers(answer)
            reading.cancel()  # messages after the answers are ignored


@asynccontextmanager
async def _writing(outbox: Outbox, send: Send) -> AsyncIterator[None]:
    """Writes what comes into the outbox; to its end, if the body does not fail.

    The task that writes is not cancelled, because a write must not be: it is stopped, and fails
    the session by cancelling it.
    """
    session = asyncio.current_task()
    assert session is not None
    writing = asyncio.create_task(outbox.drain(send))

    def end_session(_: object) -> None:
        if _failure_of(writing) is not None and not outbox.is_closed:
            outbox.stop()
            session.cancel()

    writing.add_done_callback(end_session)
    try:
        yield
        outbox.close()
        await asyncio.wait({writing})
        writing.result()
    except asyncio.CancelledError:
        failure = _failure_of(writing)
        if failure is None:
            raise
        session.uncancel()
        raise failure from None
    finally:
        outbox.stop()


def _failure_of(task: asyncio.Task[None]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


def _take_open(live: LiveSession, event: OpenSession) -> None:
    live.timeline.opened()
    if len(event.session_id) > MAX_SESSION_ID_CHARS:
        raise InvalidRequestError(
            f"session_id has {len(event.session_id)} characters; at most"
            f" {MAX_SESSION_ID_CHARS} are allowed",
            field="session_id",
        )
    live.record.session_id = event.session_id or uuid.uuid4().hex
    live.log_context.session_id = live.session_id
    check_model(live.parts, event.model)
    event.sampling.validate(live.parts.text.tokenizer.files.vocab_size)
    _check_truncation(event)
    check_ranking_note(event.ranking_note, event.ordering)
    live.ttft_slo_ms = _slo_ms(live, event)
    live.sampling = event.sampling
    live.ordering = event.ordering
    live.lengths = live.parts.lengths().for_answer(event.sampling.max_tokens)
    if event.resumed is not None:
        _take_resumed(live, event.resumed)


def _check_truncation(event: OpenSession) -> None:
    if event.sampling.truncate_prompt_tokens is not None and not event.one_shot:
        raise InvalidRequestError(
            "a session cannot have sampling.truncate_prompt_tokens: the beginning of its context"
            " is prefilled before the end is known",
            reason=BAD_SAMPLING,
            field="sampling.truncate_prompt_tokens",
        )


def _take_resumed(live: LiveSession, resumed: ResumedSession) -> None:
    for index in range(1 + len(resumed.others)):
        field = other_field(index) if index else FIELD
        live.parts.text.tokenizer.check_ids(resumed.answer(index).token_ids, f"{field}.token_ids")
    check_opened(resumed, live.sampling, live.lengths)
    live.resume(resumed)


def _slo_ms(live: LiveSession, event: OpenSession) -> int:
    field = "ttft_slo_ms" if event.one_shot else "open.ttft_slo_ms"
    in_event = () if event.ttft_slo_ms is None else (asked_slo(field, event.ttft_slo_ms),)
    spec = live.parts.spec
    asked = (*live.asked_slos, *in_event)
    return chosen_slo_ms(asked, spec.ttft_slo_ms, spec.security.tenants, live.tenant)


def check_model(parts: RouterParts, model: str) -> None:
    """Raises unless the router serves `model`; an empty name means the only one."""
    if model not in ("", parts.spec.model_name):
        raise NotFoundError(
            f"model {model!r} is not served here; {parts.spec.model_name!r} is",
            reason="UNKNOWN_MODEL",
            field="model",
        )


def _admit(live: LiveSession, num_tokens: int) -> int | None:
    """The forecast to warn of; raises OverloadedError. The session itself brings `num_tokens`."""
    parts, slo_ms = live.parts, live.ttft_slo_ms
    worker = parts.workers.pick("prefill", num_prompt_tokens=num_tokens)
    if worker is None or not slo_ms or parts.spec.admission == "always":
        return None
    now_s = parts.clock.monotonic_s()
    num_before = worker.queue.num_before(live.share, num_tokens, now_s)
    found = forecast(num_before, num_tokens, worker.queue.tokens_per_s(now_s), slo_ms)
    parts.metrics.forecast(verdict_of(found, parts.spec.admission))
    return admit(found, parts.spec.admission, slo_ms)


def _accepted(live: LiveSession, forecast_ms: int | None, opened: OpenSession) -> Accepted:
    return Accepted(
        live.session_id,
        live.parts.spec.model_name,
        live.progress.figures().credit_tokens,
        forecast_ms,
        seal_takes_change=not opened.one_shot,
    )


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
