"""Every error a client can make: status code, message and details."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
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

pytestmark = pytest.mark.unit

Script = Callable[[Conversation], Awaitable[None]]


def details_of(error: Any, message_type: Any) -> Any:
    for packed in rpc_status.from_call(error).details:
        message = message_type()
        if packed.Unpack(message):
            return message
    return None


async def first_event_append(s: Conversation) -> None:
    await s.append("x")


async def first_event_seal(s: Conversation) -> None:
    await s.seal()


async def second_open(s: Conversation) -> None:
    await s.open()
    await s.open()


async def append_after_seal(s: Conversation) -> None:
    await s.open("hello")
    await s.seal()
    await s.append("x")


async def half_close(s: Conversation) -> None:
    await s.open("hello")
    await s.append("x")
    await s.close_half()


async def half_close_at_once(s: Conversation) -> None:
    await s.close_half()


async def no_event(s: Conversation) -> None:
    await s.open("hello")
    await s.send()


async def unknown_model(s: Conversation) -> None:
    await s.open(model="other")


async def unknown_document(s: Conversation) -> None:
    await s.open("hello")
    await s.append(("a", "x"))
    await s.update(named("a"), named("nope"))


async def empty_context(s: Conversation) -> None:
    await s.open()
    await s.append("", "")
    await s.seal()


async def too_long(s: Conversation) -> None:
    await s.open("x" * 600)
    await s.append("y" * 399)
    await s.append("z")


async def too_long_with_its_suffix(s: Conversation) -> None:
    await s.open("x" * 900, suffix="y" * 100)
    await s.seal()


async def appended_by_id_alone(s: Conversation) -> None:
    await s.open("hello")
    await s.append(("a", "x"))
    await s.append(named("a"))


async def duplicate_document(s: Conversation) -> None:
    await s.open("hello")
    await s.append(("a", "x"), ("a", "y"))


async def sure_of_nothing(s: Conversation) -> None:
    await s.open()
    await s.update(pb.Document(id="a", text="x", stays=float("nan")))


async def surer_than_sure(s: Conversation) -> None:
    await s.open()
    await s.update(("b", "y"), pb.Document(id="a", text="x", stays=1.5))


async def bad_temperature(s: Conversation) -> None:
    await s.open(sampling=pb.SamplingParameters(temperature=-1))


async def bad_top_p(s: Conversation) -> None:
    await s.open(sampling=pb.SamplingParameters(top_p=float("nan")))


async def bad_stop_token(s: Conversation) -> None:
    await s.open(sampling=pb.SamplingParameters(stop_token_ids=[512]))


async def truncated_session(s: Conversation) -> None:
    await s.open(sampling=pb.SamplingParameters(truncate_prompt_tokens=5))


async def bad_word_of_space(s: Conversation) -> None:
    await s.open(sampling=pb.SamplingParameters(bad_words=[pb.Content(text=" ")]))


async def bad_words_of_many_tokens(s: Conversation) -> None:
    words = [pb.Content(text=f"{number:0256}") for number in range(5)]
    await s.open(sampling=pb.SamplingParameters(bad_words=words))


async def bad_token_id(s: Conversation) -> None:
    await s.open("hello")
    await s.append(pb.Document(token_ids=pb.TokenIds(ids=[1, 512])))


async def bad_role(s: Conversation) -> None:
    chat = pb.ChatTemplate(messages=[pb.ChatMessage(role="bot", content="{{context}}")])
    await s.send(open=pb.OpenSession(chat=chat))


async def no_slot(s: Conversation) -> None:
    chat = pb.ChatTemplate(messages=[pb.ChatMessage(role="user", content="hi")])
    await s.send(open=pb.OpenSession(chat=chat))


async def two_slots(s: Conversation) -> None:
    chat = pb.ChatTemplate(
        messages=[pb.ChatMessage(role="user", content="<> <>")], context_slot="<>"
    )
    await s.send(open=pb.OpenSession(chat=chat))


async def template_refuses(s: Conversation) -> None:
    chat = pb.ChatTemplate(messages=[pb.ChatMessage(role="assistant", content="{{context}}")])
    await s.send(open=pb.OpenSession(chat=chat))


async def other_part(s: Conversation) -> None:
    parts = [pb.ChatContentPart(type="text"), pb.ChatContentPart(type="image_url")]
    chat = pb.ChatTemplate(messages=[pb.ChatMessage(role="user", parts=parts)])
    await s.send(open=pb.OpenSession(chat=chat))


async def bad_tool(s: Conversation) -> None:
    message = pb.ChatMessage(role="user", content="{{context}}")
    chat = pb.ChatTemplate(messages=[message], tools=["{}", "{"])
    await s.send(open=pb.OpenSession(chat=chat))


async def suffix_with_chat(s: Conversation) -> None:
    chat = pb.ChatTemplate(messages=[pb.ChatMessage(role="user", content="{{context}}")])
    await s.send(open=pb.OpenSession(chat=chat))
    await s.seal(suffix=pb.Content(text="x"))


async def long_session_id(s: Conversation) -> None:
    await s.open(session_id="x" * 257)


async def unknown_ordering(s: Conversation) -> None:
    await s.open(ordering=7)


async def note_without_stable(s: Conversation) -> None:
    await s.open(ranking_note="{ranking}")


async def note_of_nothing(s: Conversation) -> None:
    await s.open(ordering=pb.DOCUMENT_ORDERING_STABLE, ranking_note="best first")


async def note_repeats_itself(s: Conversation) -> None:
    await s.open(ordering=pb.DOCUMENT_ORDERING_STABLE, ranking_note="{ids} {ids}")


async def long_note(s: Conversation) -> None:
    note = "{ids}" + "x" * 1_996
    await s.open(ordering=pb.DOCUMENT_ORDERING_STABLE, ranking_note=note)


async def too_long_with_its_note(s: Conversation) -> None:
    note = "{ranking}" + "x" * 60
    await s.open("y" * 900, "z" * 40, ordering=pb.DOCUMENT_ORDERING_STABLE, ranking_note=note)
    await s.update(("a", "f"), ("b", "g"))
    await s.update(named("b"), named("a"))
    await s.seal()


BAD = grpc.StatusCode.INVALID_ARGUMENT
ORDER = grpc.StatusCode.FAILED_PRECONDITION
ROWS: list[tuple[Script, Any, str, str, str]] = [
    # script, code, reason, field, part of the message
    (first_event_append, BAD, "FIRST_EVENT_NOT_OPEN", "event", "must be open, not append"),
    (first_event_seal, BAD, "FIRST_EVENT_NOT_OPEN", "event", "must be open, not seal"),
    (second_open, ORDER, "EVENT_OUT_OF_ORDER", "", "open is not allowed: the session is open"),
    (append_after_seal, ORDER, "EVENT_OUT_OF_ORDER", "", "append is not allowed: the session is"),
    (half_close, ORDER, "CLOSED_WITHOUT_SEAL", "", "without a seal (session is open)"),
    (half_close_at_once, ORDER, "CLOSED_WITHOUT_SEAL", "", "without a seal (session is new)"),
    (no_event, BAD, "NO_EVENT", "event", "sequence 2 holds no event"),
    (unknown_model, grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL", "model", "'other' is not served"),
    (unknown_document, BAD, "UNKNOWN_DOCUMENT", "update.documents[1].id", "'nope'"),
    (empty_context, BAD, "EMPTY_CONTEXT", "", "context is empty"),
    (too_long, BAD, "CONTEXT_TOO_LONG", "", "has 1000 tokens; with one for the answer the model takes at most 1000"),
    (too_long_with_its_suffix, BAD, "CONTEXT_TOO_LONG", "", "has 1000 tokens"),
    (appended_by_id_alone, BAD, "DOCUMENT_WITHOUT_CONTENT", "append.documents[0].content", "no content"),
    (duplicate_document, BAD, "DUPLICATE_DOCUMENT", "append.documents[1].id", "twice in one event"),
    (sure_of_nothing, BAD, "INVALID_REQUEST", "update.documents[0].stays", "is nan (float); it must be in [0, 1]"),
    (surer_than_sure, BAD, "INVALID_REQUEST", "update.documents[1].stays", "is 1.5 (float); it must be in [0, 1]"),
    (bad_temperature, BAD, "BAD_SAMPLING", "sampling.temperature", "is -1.0; it must be between 0 and 2"),
    (bad_top_p, BAD, "BAD_SAMPLING", "sampling.top_p", "is nan; it must be above 0"),
    (bad_stop_token, BAD, "BAD_SAMPLING", "sampling.stop_token_ids", "below the vocabulary size 512"),
    (truncated_session, BAD, "BAD_SAMPLING", "sampling.truncate_prompt_tokens", "is prefilled before the end"),
    (bad_word_of_space, BAD, "BAD_SAMPLING", "sampling.bad_words[0]", "sampling.bad_words[0] has no token"),
    (bad_words_of_many_tokens, BAD, "BAD_SAMPLING", "sampling.bad_words", "has 1280 tokens; at most 1024"),
    (bad_token_id, BAD, "BAD_TOKEN_ID", "append.documents[0]", "token id 512"),
    (bad_role, BAD, "BAD_CHAT", "chat.messages[0].role", "'bot'; it must be one of system, user"),
    (no_slot, BAD, "BAD_CHAT", "chat.messages", "appears 0 times"),
    (two_slots, BAD, "BAD_CHAT", "chat.messages", "appears 2 times"),
    (template_refuses, BAD, "BAD_CHAT", "chat.messages", "user first"),
    (other_part, grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED", "chat.messages[0].parts[1].type", "'image_url'"),
    (bad_tool, BAD, "BAD_JSON", "chat.tools[1]", "is not JSON"),
    (suffix_with_chat, BAD, "SUFFIX_WITH_CHAT", "seal.suffix", "has its own"),
    (unknown_ordering, BAD, "BAD_ORDERING", "open.ordering", "is 7; it must be as_given or stable"),
    (note_without_stable, BAD, "BAD_RANKING_NOTE", "open.ranking_note", "needs open.ordering stable"),
    (note_of_nothing, BAD, "BAD_RANKING_NOTE", "open.ranking_note", "has neither {ranking} nor {ids}"),
    (note_repeats_itself, BAD, "BAD_RANKING_NOTE", "open.ranking_note", "more than once"),
    (long_note, BAD, "BAD_RANKING_NOTE", "open.ranking_note", "has 2001 characters; at most 2000"),
    (too_long_with_its_note, BAD, "CONTEXT_TOO_LONG", "", "has 1006 tokens; with one for the answer"),
    (long_session_id, BAD, "INVALID_REQUEST", "session_id", "257 characters; at most 256"),
]  # fmt: skip


@pytest.fixture
async def shared(ring: Ring) -> Ring:
    ring.prefill.may_sample.clear()  # so that nothing ends before its error
    return ring


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].__name__)
async def test_a_wrong_event(shared: Ring, row: tuple[Script, Any, str, str, str]) -> None:
    script, code, reason, field, message = row
    session = shared.converse()
    await script(session)
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
    await too_long(session)
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
    session = ring.converse()
    await session.open("hello")
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
        await two_slots(session)
        error = await session.failure()
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "no chat template" in error.details()


@pytest.mark.parametrize("event", ["open", "splice", "seal", "first_token"])
async def test_a_prefill_workers_own_error_passes_through(ring: Ring, event: str) -> None:
    ring.prefill.failures[event] = UnsupportedError(
        "no penalties here", reason="NO_PENALTIES", field="sampling.presence_penalty"
    )
    session = ring.converse()
    await session.open("hello")
    await session.append("fox")
    await session.seal()
    error = await session.failure()
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details() == "no penalties here"
    assert details_of(error, error_details_pb2.ErrorInfo).reason == "NO_PENALTIES"


async def test_an_exception_in_a_worker_is_an_internal_error(ring: Ring) -> None:
    ring.prefill.failures["seal"] = ValueError("a bug")
    session = ring.converse()
    await session.open("hello")
    await session.seal()
    error = await session.failure()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "prefill-0 failed" in error.details()


@pytest.mark.parametrize("failure", [OverloadedError("full"), InternalError("a bug")])
async def test_a_decode_rejection_passes_through_and_releases(ring: Ring, failure: Any) -> None:
    ring.decode.rejection = failure
    session = ring.converse()
    await session.open("hello")
    await session.seal()
    assert list((await session.next("delta")).token_ids)
    error = await session.failure()
    assert error.code().name == failure.status_name
    assert error.details() == failure.message
    await soon(ring.decode.release_called.wait())
    await soon(ring.record.ended.wait())


async def test_a_decode_that_ends_without_a_reason_is_an_internal_error(ring: Ring) -> None:
    ring.decode.ends_without_reason = True
    session = ring.converse()
    await session.open("hello")
    await session.seal()
    error = await session.failure()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "without a reason" in error.details()
