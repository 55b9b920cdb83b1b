"""Every error a client can make: status code, message and details."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from stream2llm.api.errors import InternalError, OverloadedError, UnsupportedError
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2 as pb
from tests.router_ring import Answered, Conversation, Ring, a_ring, named, soon
from tests.tiny_model import make_tiny_model

# Each sends an event.
Script = tuple[Callable[[Conversation], Awaitable[None]], ...]
opens, appends, updates, seals, send, closes = (
    partial(methodcaller, name)
    for name in ("open", "append", "update", "seal", "send", "close_half")
)


def details_of(error: Any, message_type: Any) -> Any:
    for packed in rpc_status.from_call(error).details:
        message = message_type()
        if packed.Unpack(message):
            return message
    return None


def chat(*messages: Any, **fields: Any) -> Any:
    """The open of a session with a chat."""
    return send(open=pb.OpenSession(chat=pb.ChatTemplate(messages=messages, **fields)))


def sampled(**parameters: Any) -> Script:
    """A session that is opened with those sampling parameters."""
    return (opens(sampling=pb.SamplingParameters(**parameters)),)


def stays(document_id: str, probability: float) -> Any:
    return pb.Document(id=document_id, text="x", stays=probability)


STABLE = pb.DOCUMENT_ORDERING_STABLE
SLOT = pb.ChatMessage(role="user", content="{{context}}")
PARTS = [pb.ChatContentPart(type="text"), pb.ChatContentPart(type="image_url")]
FIVE_LONG_WORDS = [pb.Content(text=f"{number:0256}") for number in range(5)]
TOO_LONG = (opens("x" * 600), appends("y" * 399), appends("z"))
TWO_SLOTS = (chat(pb.ChatMessage(role="user", content="<> <>"), context_slot="<>"),)


BAD = grpc.StatusCode.INVALID_ARGUMENT
ORDER = grpc.StatusCode.FAILED_PRECONDITION
ROWS: dict[str, tuple[Script, Any, str, str, str]] = {
    # script, code, reason, field, part of the message
    "first_event_append": ((appends("x"),), BAD, "FIRST_EVENT_NOT_OPEN", "event", "must be open, not append"),
    "first_event_seal": ((seals(),), BAD, "FIRST_EVENT_NOT_OPEN", "event", "must be open, not seal"),
    "second_open": ((opens(), opens()), ORDER, "EVENT_OUT_OF_ORDER", "", "open is not allowed: the session is open"),
    "append_after_seal": ((opens("hello"), seals(), appends("x")), ORDER, "EVENT_OUT_OF_ORDER", "", "append is not allowed: the session is"),
    "half_close": ((opens("hello"), appends("x"), closes()), ORDER, "CLOSED_WITHOUT_SEAL", "", "without a seal (session is open)"),
    "half_close_at_once": ((closes(),), ORDER, "CLOSED_WITHOUT_SEAL", "", "without a seal (session is new)"),
    "no_event": ((opens("hello"), send()), BAD, "NO_EVENT", "event", "sequence 2 holds no event"),
    "unknown_model": ((opens(model="other"),), grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL", "model", "'other' is not served"),
    "unknown_document": ((opens("hello"), appends(("a", "x")), updates(named("a"), named("nope"))), BAD, "UNKNOWN_DOCUMENT", "update.documents[1].id", "'nope'"),
    "empty_context": ((opens(), appends("", ""), seals()), BAD, "EMPTY_CONTEXT", "", "context is empty"),
    "too_long": (TOO_LONG, BAD, "CONTEXT_TOO_LONG", "", "has 1000 tokens; with one for the answer the model takes at most 1000"),
    "too_long_with_its_suffix": ((opens("x" * 900, suffix="y" * 100), seals()), BAD, "CONTEXT_TOO_LONG", "", "has 1000 tokens"),
    "appended_by_id_alone": ((opens("hello"), appends(("a", "x")), appends(named("a"))), BAD, "DOCUMENT_WITHOUT_CONTENT", "append.documents[0].content", "no content"),
    "duplicate_document": ((opens("hello"), appends(("a", "x"), ("a", "y"))), BAD, "DUPLICATE_DOCUMENT", "append.documents[1].id", "twice in one event"),
    "sure_of_nothing": ((opens(), updates(stays("a", float("nan")))), BAD, "INVALID_REQUEST", "update.documents[0].stays", "is nan (float); it must be in [0, 1]"),
    "surer_than_sure": ((opens(), updates(("b", "y"), stays("a", 1.5))), BAD, "INVALID_REQUEST", "update.documents[1].stays", "is 1.5 (float); it must be in [0, 1]"),
    "bad_temperature": (sampled(temperature=-1), BAD, "BAD_SAMPLING", "sampling.temperature", "is -1.0; it must be between 0 and 2"),
    "bad_top_p": (sampled(top_p=float("nan")), BAD, "BAD_SAMPLING", "sampling.top_p", "is nan; it must be above 0"),
    "bad_stop_token": (sampled(stop_token_ids=[512]), BAD, "BAD_SAMPLING", "sampling.stop_token_ids", "below the vocabulary size 512"),
    "truncated_session": (sampled(truncate_prompt_tokens=5), BAD, "BAD_SAMPLING", "sampling.truncate_prompt_tokens", "is prefilled before the end"),
    "bad_word_of_space": (sampled(bad_words=[pb.Content(text=" ")]), BAD, "BAD_SAMPLING", "sampling.bad_words[0]", "sampling.bad_words[0] has no token"),
    "bad_words_of_many_tokens": (sampled(bad_words=FIVE_LONG_WORDS), BAD, "BAD_SAMPLING", "sampling.bad_words", "has 1280 tokens; at most 1024"),
    "bad_token_id": ((opens("hello"), appends(pb.Document(token_ids=pb.TokenIds(ids=[1, 512])))), BAD, "BAD_TOKEN_ID", "append.documents[0]", "token id 512"),
    "bad_role": ((chat(pb.ChatMessage(role="bot", content="{{context}}")),), BAD, "BAD_CHAT", "chat.messages[0].role", "'bot'; it must be one of system, user"),
    "no_slot": ((chat(pb.ChatMessage(role="user", content="hi")),), BAD, "BAD_CHAT", "chat.messages", "appears 0 times"),
    "two_slots": (TWO_SLOTS, BAD, "BAD_CHAT", "chat.messages", "appears 2 times"),
    "template_refuses": ((chat(pb.ChatMessage(role="assistant", content="{{context}}")),), BAD, "BAD_CHAT", "chat.messages", "user first"),
    "other_part": ((chat(pb.ChatMessage(role="user", parts=PARTS)),), grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED", "chat.messages[0].parts[1].type", "'image_url'"),
    "bad_tool": ((chat(SLOT, tools=["{}", "{"]),), BAD, "BAD_JSON", "chat.tools[1]", "is not JSON"),
    "suffix_with_chat": ((chat(SLOT), seals(suffix=pb.Content(text="x"))), BAD, "SUFFIX_WITH_CHAT", "seal.suffix", "has its own"),
    "unknown_ordering": ((opens(ordering=7),), BAD, "BAD_ORDERING", "open.ordering", "is 7; it must be as_given or stable"),
    "note_without_stable": ((opens(ranking_note="{ranking}"),), BAD, "BAD_RANKING_NOTE", "open.ranking_note", "needs open.ordering stable"),
    "note_of_nothing": ((opens(ordering=STABLE, ranking_note="best first"),), BAD, "BAD_RANKING_NOTE", "open.ranking_note", "has neither {ranking} nor {ids}"),
    "note_repeats_itself": ((opens(ordering=STABLE, ranking_note="{ids} {ids}"),), BAD, "BAD_RANKING_NOTE", "open.ranking_note", "more than once"),
    "long_note": ((opens(ordering=STABLE, ranking_note="{ids}" + "x" * 1_996),), BAD, "BAD_RANKING_NOTE", "open.ranking_note", "has 2001 characters; at most 2000"),
    "too_long_with_its_note": (
        (opens("y" * 900, "z" * 40, ordering=STABLE, ranking_note="{ranking}" + "x" * 60), updates(("a", "f"), ("b", "g")), updates(named("b"), named("a")), seals()),
        BAD, "CONTEXT_TOO_LONG", "", "has 1006 tokens; with one for the answer"),
    "long_session_id": ((opens(session_id="x" * 257),), BAD, "INVALID_REQUEST", "session_id", "257 characters; at most 256"),
}  # fmt: skip


async def play(session: Conversation, script: Script) -> None:
    for event in script:
        await event(session)


@pytest.fixture
async def shared(ring: Ring) -> Ring:
    ring.prefill.may_sample.clear()  # so that nothing ends before its error
    return ring


@pytest.mark.parametrize("name", ROWS)
async def test_a_wrong_event(shared: Ring, name: str) -> None:
    script, code, reason, field, message = ROWS[name]
    session = shared.converse()
    await play(session, script)
    error = await session.failure()
    assert error.code() is code
    assert message in error.details()
    info = details_of(error, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("stream2llm", reason)
    violations = details_of(error, error_details_pb2.BadRequest)
    assert (violations.field_violations[0].field if violations else "") == field
    assert details_of(error, error_details_pb2.RetryInfo) is None
    outcome = code.name.lower()
    assert shared.metric("stream2llm_sessions_total", outcome=outcome) == 1
    await shared.nothing_is_open()
    for record in shared.prefill.records:
        await soon(record.ended.wait())


async def test_a_context_that_is_too_long_never_reaches_prefill(shared: Ring) -> None:
    session = shared.converse()
    await play(session, TOO_LONG)
    await session.failure()
    assert len(shared.record.sequence) <= 999


@pytest.mark.parametrize(
    "request_",
    [
        pb.GenerateRequest(),
        pb.GenerateRequest(text="x", model="other"),
        pb.GenerateRequest(text=""),
    ],
    ids=["no prompt", "unknown model", "empty prompt"],
)
async def test_a_wrong_complete_prompt(ring: Ring, request_: Any) -> None:
    call = ring.stub.Generate(request_)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        Answered.of([message async for message in call])
    assert raised.value.code() in (BAD, grpc.StatusCode.NOT_FOUND)
    assert from_rpc_error(raised.value) is not None


async def test_a_message_over_the_limit_is_refused(make_ring: Any) -> None:
    ring = await make_ring(max_message_bytes=1 << 16)
    session = await ring.opened("hello")
    await session.next("accepted")
    with contextlib.suppress(grpc.aio.AioRpcError):  # the status may be here before the write ends
        await session.append("x" * (1 << 17))
    error = await session.failure()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in error.details()
    assert "65536" in error.details()
    await ring.nothing_is_open()
    await soon(ring.record.ended.wait())


async def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "plain", with_chat=False)
    async with a_ring(model) as ring:
        session = ring.converse()
        await play(session, TWO_SLOTS)
        error = await session.failure()
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "no chat template" in error.details()


@pytest.mark.parametrize("event", ["open", "splice", "seal", "first_token"])
async def test_a_prefill_workers_own_error_passes_through(ring: Ring, event: str) -> None:
    ring.prefill.failures[event] = UnsupportedError(
        "no penalties here", reason="NO_PENALTIES", field="sampling.presence_penalty"
    )
    session = await ring.opened("hello")
    await session.append("fox")
    await session.seal()
    error = await session.failure()
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details() == "no penalties here"
    assert details_of(error, error_details_pb2.ErrorInfo).reason == "NO_PENALTIES"


async def test_an_exception_in_a_worker_is_an_internal_error(ring: Ring) -> None:
    ring.prefill.failures["seal"] = ValueError("a bug")
    error = await ring.refusal_of("hello")
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "prefill-0 failed" in error.details()


@pytest.mark.parametrize("failure", [OverloadedError("full"), InternalError("a bug")])
async def test_a_decode_rejection_passes_through_and_releases(ring: Ring, failure: Any) -> None:
    ring.decode.rejection = failure
    session = await ring.asked("hello")
    assert list((await session.next("delta")).token_ids)
    error = await session.failure()
    assert error.code().name == failure.status_name
    assert error.details() == failure.message
    await soon(ring.decode.release_called.wait())
    await soon(ring.record.ended.wait())


async def test_a_decode_that_ends_without_a_reason_is_an_internal_error(ring: Ring) -> None:
    ring.decode.ends_without_reason = True
    error = await ring.refusal_of("hello")
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "without a reason" in error.details()
