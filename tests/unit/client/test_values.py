"""Inputs, buffers, credit and statuses without a server."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from stream2llm.api.errors import (
    InternalError,
    InvalidRequestError,
    NotPermittedError,
    OverloadedError,
    Stream2LLMError,
    UnauthenticatedError,
    UnavailableError,
)
from stream2llm.api.events import OversizedDocument, Progress, TokenDelta
from stream2llm.api.options import OversizedDocuments
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.cli.output import progress_line
from stream2llm.client import DelayReason
from stream2llm.client.inbox import CreditGate, EventBuffer
from stream2llm.client.inputs import Document, DocumentRef, appended, template_of, updated
from stream2llm.client.status import error_from_rpc
from stream2llm.client.stream import Gathered
from stream2llm.client.translate import event_from
from tests import fake_router


def rpc_error(code: grpc.StatusCode, message: str, *details: object) -> grpc.aio.AioRpcError:
    trailing = fake_router.trailers(code, message, *details) if details else ()
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=message
    )


def test_documents_without_a_name_get_one_from_their_content():
    first, second, again, other = updated(["a", [1, 2], "a", Document("b", id="mine")])
    assert first.id == updated(["a"])[0].id
    assert again.id == f"{first.id}-2"
    assert second.id != first.id
    assert other.id == "mine"


def test_an_append_needs_content():
    with pytest.raises(InvalidRequestError, match="only an update"):
        appended([DocumentRef("a")])
    assert appended(["", []]) == (Document(""), Document([]))


def test_a_list_of_texts_is_not_a_document():
    with pytest.raises(InvalidRequestError, match=r"append\(\*documents\)"):
        appended([["a", "b"]])  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="bytes"):
        appended([b"a"])
    with pytest.raises(InvalidRequestError, match="content or an id"):
        updated([Document()])


def test_chat_excludes_prefix_and_suffix():
    with pytest.raises(InvalidRequestError):
        template_of("p", None, [{"role": "user", "content": "x"}], None)
    with pytest.raises(InvalidRequestError):
        template_of("p", None, None, "{{docs}}")


async def test_an_unread_progress_is_replaced_by_a_newer_one():
    buffer = EventBuffer(capacity=2)
    for received in range(100):
        await buffer.put(Progress(received_tokens=received))
    await buffer.put(TokenDelta("x"))
    buffer.close()
    assert [event async for event in buffer] == [Progress(received_tokens=99), TokenDelta("x")]


async def test_reports_never_make_the_writer_wait():
    buffer = EventBuffer(capacity=4)
    for number in range(50):
        document = OversizedDocument(
            sequence=number, index=0, id="", action=OversizedDocuments.REFUSE,
            reason="CONTEXT_TOO_LONG", room_tokens=0, kept_tokens=0,
        )  # fmt: skip
        async with asyncio.timeout(5):
            await buffer.put(document)
            await buffer.put(Progress(received_tokens=number))
    buffer.close()
    seen = [event async for event in buffer]
    assert len(seen) == 4
    assert seen[-1] == Progress(received_tokens=49)


async def test_a_full_buffer_makes_the_writer_wait():
    buffer = EventBuffer(capacity=1)
    await buffer.put(TokenDelta("a"))
    blocked = asyncio.create_task(buffer.put(TokenDelta("b")))
    assert await anext(buffer) == TokenDelta("a")
    await blocked
    assert await anext(buffer) == TokenDelta("b")


async def test_a_closed_buffer_gives_what_it_has_and_then_its_error():
    buffer = EventBuffer(capacity=1)
    await buffer.put(TokenDelta("a"))
    blocked = asyncio.create_task(buffer.put(TokenDelta("b")))
    await asyncio.sleep(0)
    buffer.close(UnavailableError("gone"))
    await blocked
    assert await anext(buffer) == TokenDelta("a")
    with pytest.raises(UnavailableError):
        await anext(buffer)


async def test_credit_opens_closes_and_fails():
    gate = CreditGate()
    gate.grant(5)
    await gate.wait()
    gate.grant(0)
    waiter = asyncio.create_task(gate.wait())
    gate.fail(UnavailableError("gone"))
    gate.grant(0)
    with pytest.raises(UnavailableError):
        await waiter


def test_a_progress_says_what_holds_the_session_up():
    message = pb.Progress(received_tokens=9, delay=pb.DELAY_REASON_KV_MEMORY)
    progress = event_from(pb.StreamGenerateResponse(progress=message))
    assert progress == Progress(received_tokens=9, delay=DelayReason.KV_MEMORY)
    assert progress.delay == "kv_memory"
    assert progress_line(progress).endswith("; waits for memory (kv_memory)")
    moving = event_from(pb.StreamGenerateResponse(progress=pb.Progress()))
    assert moving.delay is None
    assert "waits" not in progress_line(moving)


def test_what_this_client_does_not_know_is_an_internal_error():
    with pytest.raises(InternalError, match="update the client"):
        event_from(pb.StreamGenerateResponse())
    with pytest.raises(InternalError, match="without saying why"):
        event_from(pb.StreamGenerateResponse(finished=pb.GenerationFinished()))
    with pytest.raises(InternalError):
        event_from(pb.StreamGenerateResponse(finished=pb.GenerationFinished(reason=99)))
    with pytest.raises(InternalError):
        Gathered().answer()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNKNOWN, InternalError),
        (grpc.StatusCode.ABORTED, UnavailableError),
        (grpc.StatusCode.PERMISSION_DENIED, NotPermittedError),
        (grpc.StatusCode.UNAUTHENTICATED, UnauthenticatedError),
        (grpc.StatusCode.CANCELLED, Stream2LLMError),
    ],
)
def test_a_status_that_is_not_ours_keeps_its_name(code, expected):
    error = error_from_rpc(rpc_error(code, "hm"))
    assert type(error) is expected
    assert (error.message, error.reason) == ("hm", code.name)


def test_an_error_info_of_somebody_else_is_not_ours():
    info = fake_router.error_info("QUOTA", domain="proxy.example")
    error = error_from_rpc(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", info))
    assert type(error) is OverloadedError
    assert error.reason == "RESOURCE_EXHAUSTED"


def test_broken_trailers_are_no_reason_to_fail():
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    raw = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), metadata, details="oops"
    )
    assert error_from_rpc(raw).message == "oops"
