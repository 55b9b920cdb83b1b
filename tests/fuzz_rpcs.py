"""The well-formed RPC of each kind that fuzzing starts from, and how a case of it ends."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import Message

from stream2llm.api.call_metadata import CallsWith
from stream2llm.api.final_status import FinalStatus
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import worker_pb2 as worker
from stream2llm.serving.mux.channel import MuxChannel
from stream2llm.serving.sessions.prefix import as_tokens
from stream2llm.serving.sessions.token_bytes import to_bytes
from tests.rpc_fuzz import Case

PROMPT = list(range(100, 164))
SAMPLING = pb.SamplingParameters(max_tokens=4, temperature=0, ignore_eos=True)
DEADLINE_S = 60.0
# An answer may be as long as the model allows, and is not read to its end.
MOST_RESPONSES = 12
# One that never ends by itself, and sends a message every few seconds, is cancelled after the first.
ENDLESS = "CacheService/WatchCache"
# What grpc.aio says when an RPC ends while it is written to, see stream2llm/api/final_status.py.
_OF_OUR_SIDE, _TRIES = "Internal error from Core", 3
# A client's fault has a status of its own, and every RPC ends before its deadline.
_NEVER = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED)


def packed(token_ids: list[int]) -> bytes:
    """Token ids as the messages between routers and workers have them."""
    return to_bytes(as_tokens(token_ids))


def prefill_session(_: object = None) -> list[Message]:
    kind = worker.PrefillSessionRequest
    splices = [
        worker.SplicePrefill(revision=1, token_ids=packed(PROMPT[:40]), stable_tokens=40),
        worker.SplicePrefill(
            revision=2, keep_tokens=30, token_ids=packed(PROMPT[30:50]), stable_tokens=50
        ),
        worker.SplicePrefill(
            revision=3, keep_tokens=50, token_ids=packed(PROMPT[50:]), stable_tokens=64
        ),
    ]
    return [
        kind(open=worker.OpenPrefill(session_id="fuzz", sampling=SAMPLING)),
        kind(splice=splices[0]),
        kind(splice=splices[1]),
        kind(seal=worker.SealPrefill(splice=splices[2], hand_over=True)),
    ]


def decode(first: worker.FirstToken) -> list[Message]:
    return [
        worker.DecodeRequest(
            session_id="fuzz",
            token_ids=packed([*PROMPT, *first.step.token_ids]),
            sampling=SAMPLING,
            handover=first.handover,
            fetch_session_id="fuzz-none",
            refuse_when_full=True,
            answer_tokens=1,
        )
    ]


def prefetch_kv(first: worker.FirstToken) -> list[Message]:
    kind = worker.PrefetchKvRequest
    fetch = worker.FetchKv(token_ids=packed(PROMPT), handover=first.handover)
    # Unique, since several cases run at once.
    name = str(json.loads(first.handover.kv_transfer_params_json)["remote_request_id"])
    return [
        kind(open=worker.OpenPrefetch(fetch_session_id=name)),
        kind(fetch=fetch),
        kind(abort=worker.AbortFetch()),
    ]


def connect(_: object = None) -> list[Message]:
    """A stream with one call."""
    opening = worker.CallOpening(method="/stream2llm.v1.PrefillService/PrefillSession")
    opening.metadata.add(key="traceparent", value=b"00-1-1-00")
    data = [message.SerializeToString() for message in prefill_session()]
    frames = [
        worker.Frame(call_id=1, opening=opening),
        worker.Frame(call_id=1, message=data[0]),
        worker.Frame(call_id=1, piece=data[1][:9]),
        worker.Frame(call_id=1, message=data[1][9:]),
        worker.Frame(call_id=1, half_close=worker.HalfClose()),
        worker.Frame(call_id=1, cancel=worker.CallCancel()),
    ]
    return [
        worker.ConnectRequest(frames=frames[:3]),
        *(worker.ConnectRequest(frames=[f]) for f in frames[3:]),
    ]


def release(first: worker.FirstToken) -> list[Message]:
    return [worker.ReleaseHandoverRequest(session_id="fuzz", handover=first.handover)]


def stream_generate(_: object = None) -> list[Message]:
    kind = pb.StreamGenerateRequest
    content = pb.Content(token_ids=pb.TokenIds(ids=PROMPT[:7]))
    opening = pb.OpenSession(
        session_id="fuzz",
        plain=pb.PlainTemplate(prefix=content, suffix=pb.Content(text="why?")),
        sampling=SAMPLING,
        ordering=pb.DOCUMENT_ORDERING_STABLE,
        ranking_note="",
        handover=pb.HANDOVER_MODE_STREAMED,
    )
    documents = [
        pb.Document(id="a", token_ids=pb.TokenIds(ids=PROMPT), stays=0.5),
        pb.Document(id="b", text="a text"),
    ]
    return [
        kind(sequence=1, open=opening),
        kind(sequence=2, append=pb.AppendContext(documents=documents)),
        kind(sequence=3, update=pb.UpdateContext(documents=documents[:1])),
        kind(sequence=4, seal=pb.SealContext(suffix=content)),
    ]


def generate(_: object = None) -> list[Message]:
    call = pb.ToolCall(id="1", name="look", arguments='{"up": 1}')
    messages = [
        pb.ChatMessage(role="user", content="why?", name="me"),
        pb.ChatMessage(role="assistant", tool_calls=[call], reasoning="hm"),
        pb.ChatMessage(
            role="tool", parts=[pb.ChatContentPart(type="text", text="so")], tool_call_id="1"
        ),
    ]
    chat = pb.ChatPrompt(
        messages=messages,
        tools=['{"name": "look"}'],
        chat_template_kwargs='{"enable_thinking": false}',
        add_generation_prompt=True,
    )
    return [pb.GenerateRequest(session_id="fuzz", chat=chat, sampling=SAMPLING)]


def check_codes(codes: Counter[str]) -> None:
    """Cases that all end in the same way, or were not admitted, would show nothing."""
    assert codes["OK"] or codes["CANCELLED"], codes
    assert len(codes) > 1, codes
    assert not codes["UNAUTHENTICATED"], codes


async def end_of(channel: CallsWith | MuxChannel, rpc: str, case: Case) -> tuple[str, str]:
    """The status that a case ends with, and what is wrong with that, "" for nothing.

    Played again where our own gRPC library lost the server's status: it did not fail.
    """
    for _ in range(_TRIES):
        code, told = _judged(await _status_of(channel, f"/stream2llm.v1.{rpc}", case))
        if _OF_OUR_SIDE not in told:
            break
    return code, told


async def _status_of(
    channel: CallsWith | MuxChannel, path: str, case: Case
) -> grpc.aio.AioRpcError:
    if isinstance(channel, MuxChannel):
        call = channel.stream_stream(path, bytes, bytes)()
        with suppress(grpc.aio.AioRpcError):
            async with asyncio.timeout(DEADLINE_S):
                await _exchange(call, case)
        assert call.final is not None
        return call.final
    plain = channel.stream_stream(path)(timeout=DEADLINE_S)
    final, failure = FinalStatus(plain), None
    try:
        await _exchange(plain, case, 1 if path.endswith(ENDLESS) else MOST_RESPONSES)
    except grpc.aio.AioRpcError as error:
        failure = error
    return await final.of(failure)


def _judged(status: grpc.aio.AioRpcError) -> tuple[str, str]:
    """The status, and what is wrong with it."""
    ours = from_rpc_error(status)
    is_lost = status.code() is grpc.StatusCode.UNAVAILABLE and (
        ours is None or ours.reason == "WORKER_LOST"
    )
    is_wrong = is_lost or status.code() in _NEVER
    return status.code().name, f"{status.code().name}: {status.details()}" if is_wrong else ""


async def _exchange(call: Any, case: Case, num_responses: int = MOST_RESPONSES) -> None:
    async def send() -> None:
        try:
            for message in case.messages:
                await call.write(message)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # it has ended

    sending, responses = asyncio.create_task(send()), aiter(call)
    try:
        for _ in range(num_responses):
            if await anext(responses, grpc.aio.EOF) is grpc.aio.EOF:
                return
        call.cancel()
    finally:
        await sending
