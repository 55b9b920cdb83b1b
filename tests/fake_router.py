"""A StreamingInferenceService without engines: real gRPC, scripted answers.

By default it behaves as a router does towards a polite client: admits, echoes
progress, answers "one two three". A test replaces `script` for anything else.
It records what it got and how each session ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from stream2llm.api.grpc_options import server_options
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import inference_pb2_grpc

Script = Callable[["Conversation"], Awaitable[None]]
CREDIT = 1000


class Conversation:
    """The server's end of one session, in a script's words."""

    def __init__(self, requests: AsyncIterator[pb.StreamGenerateRequest], context: Any) -> None:
        self._requests = requests
        self.context = context
        self.received: list[pb.StreamGenerateRequest] = []

    async def next(self) -> pb.StreamGenerateRequest | None:
        """The next event of the client; None when it has closed its half."""
        request = await anext(self._requests, None)
        if request is not None:
            self.received.append(request)
        return request

    async def send(self, **event: Any) -> None:
        await self.context.write(pb.StreamGenerateResponse(**event))

    async def accept(self, credit_tokens: int = CREDIT, *, seal_takes_change: bool = False) -> None:
        """By default as servers did before a seal could bring the last change."""
        opened = await self.next()
        assert opened is not None
        await self.send(
            accepted=pb.SessionAccepted(
                session_id=opened.open.session_id or "made-by-server",
                model="fake",
                credit_tokens=credit_tokens,
                seal_takes_change=seal_takes_change,
            )
        )

    async def progress(self, credit_tokens: int = CREDIT, **counts: int) -> None:
        last = self.received[-1].sequence
        message = pb.Progress(last_sequence=last, credit_tokens=credit_tokens, **counts)
        await self.send(progress=message)

    async def answer_begins(self, text: str) -> None:
        await self.send(delta=pb.TokenDelta(text=text, token_ids=[0]))

    async def answer(self, *texts: str) -> None:
        for number, text in enumerate(texts):
            await self.send(delta=pb.TokenDelta(text=text, token_ids=[number]))
        await self.send(finished=finished(len(texts)))

    async def fail(self, code: grpc.StatusCode, message: str, *details: Any) -> None:
        await self.context.abort(code, message, trailing_metadata=trailers(code, message, *details))


def finished(num_tokens: int = 3) -> pb.GenerationFinished:
    """The last event of an answer that reached max_tokens."""
    return pb.GenerationFinished(
        reason=pb.FINISH_REASON_LENGTH,
        usage=pb.Usage(prompt_tokens=12, completion_tokens=num_tokens, computed_tokens=12),
        timings=pb.Timings(
            ttft_from_open=duration_pb2.Duration(seconds=1, nanos=500_000_000),
            ttft_from_seal=duration_pb2.Duration(nanos=250_000_000),
        ),
    )


def trailers(code: grpc.StatusCode, message: str, *details: Any) -> Any:
    """What the router sends beside a status."""
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return rpc_status.to_status(status).trailing_metadata


def error_info(reason: str, domain: str = "stream2llm") -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain)


def retry_info(retry_after_s: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration(
        seconds=int(retry_after_s), nanos=round(retry_after_s % 1 * 1_000_000_000)
    )
    return error_details_pb2.RetryInfo(retry_delay=delay)


def bad_field(name: str) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation(field=name)
    return error_details_pb2.BadRequest(field_violations=[violation])


async def polite(conversation: Conversation) -> None:
    """Takes everything, shows progress, answers."""
    await conversation.accept()
    received = 0
    while (request := await conversation.next()) is not None:
        if request.WhichOneof("event") == "seal":
            await conversation.answer("one", " two", " three")
            return
        received += 10
        await conversation.progress(received_tokens=received, prefilled_tokens=received - 1)
    await forever()  # gone without a seal: gRPC ends the requests, then cancels us


async def forever() -> None:
    """Until the RPC is cancelled."""
    await asyncio.Event().wait()


class FakeRouter(inference_pb2_grpc.StreamingInferenceServiceServicer):
    """`async with FakeRouter() as router` serves at `router.address`."""

    def __init__(self, script: Script = polite, host: str = "127.0.0.1", port: int = 0) -> None:
        self.script = script
        self._host, self._port = host, port
        self.conversations: list[Conversation] = []
        self.prompts: list[pb.GenerateRequest] = []
        # One entry for each session and prompt.
        self.metadata: list[tuple[tuple[str, str | bytes], ...]] = []
        # One entry for each session that ended: "returned", "cancelled" or "failed".
        self.ends: asyncio.Queue[str] = asyncio.Queue()
        self.has_chat_template = True
        self.address = ""

    async def __aenter__(self) -> FakeRouter:
        self._server = grpc.aio.server(options=server_options(16 * 1024 * 1024))
        inference_pb2_grpc.add_StreamingInferenceServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(f"{self._host}:{self._port}")
        self.address = f"{self._host}:{port}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Takes the server away in the middle of everything; may be called again."""
        await self._server.stop(grace=None)

    async def StreamGenerate(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        conversation = Conversation(request_iterator, context)
        self.metadata.append(tuple(context.invocation_metadata()))
        self.conversations.append(conversation)
        await self._run(self.script, conversation)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        self.prompts.append(request)
        self.metadata.append(tuple(context.invocation_metadata()))
        conversation = Conversation(aiter(_Nothing()), context)
        conversation.send = lambda **event: context.write(pb.GenerateResponse(**event))  # type: ignore[method-assign]
        if self.script is polite:
            await self._run(lambda c: c.answer("one", " two", " three"), conversation)
        else:
            await self._run(self.script, conversation)

    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model not in ("", "fake"):
            code, message = grpc.StatusCode.NOT_FOUND, f"no model {request.model!r}"
            details = trailers(code, message, error_info("NOT_FOUND"))
            await context.abort(code, message, trailing_metadata=details)
        return pb.GetModelInfoResponse(
            model="fake",
            max_model_len=8192,
            vocab_size=49152,
            has_chat_template=self.has_chat_template,
            eos_token_ids=[2],
        )

    async def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        worker = pb.WorkerInfo(worker_id="prefill-0", role="prefill", ready=True, block_size=32)
        return pb.GetServerInfoResponse(
            version="0.2.0", router_id="router-0", sessions_by_phase={"open": 2}, workers=[worker]
        )

    async def _run(self, script: Script, conversation: Conversation) -> None:
        end = "failed"
        try:
            await script(conversation)
            end = "returned"
        except asyncio.CancelledError:
            end = "cancelled"
            raise
        finally:
            self.ends.put_nowait(end)

    @property
    def received(self) -> list[pb.StreamGenerateRequest]:
        """What the only session's client sent."""
        (conversation,) = self.conversations
        return conversation.received


class _Nothing:
    def __aiter__(self) -> _Nothing:
        return self

    async def __anext__(self) -> Any:
        raise StopAsyncIteration
