"""Every RPC of router and workers with requests that nobody of ours sends.

Whatever comes, the RPC ends, with a status that says whose fault it was; nothing of
it is held afterwards, and the engines answer others as before.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from stream2llm.client import AsyncClient
from stream2llm.cluster import Cluster
from stream2llm.rpc_status import from_rpc_error
from stream2llm.v1 import inference_pb2 as pb
from stream2llm.v1 import worker_pb2 as worker
from stream2llm.v1 import worker_pb2_grpc
from tests.cluster_kill import incarnation_of
from tests.cluster_pool import workers
from tests.reference_engine import ReferenceEngine
from tests.rpc_fuzz import Case, mutants
from tests.streams import Stream, play

pytestmark = [pytest.mark.integration, pytest.mark.cluster("sensitive-1x1")]

PROMPT = list(range(100, 164))
SAMPLING = pb.SamplingParameters(max_tokens=4, temperature=0, ignore_eos=True)
ORDINARY = Stream("fuzz", (("append", ("a",)), ("append", ("b",))), {"a": 90, "b": 300})
SEED = 20261128
# Of all cases of an RPC, in the daily test.
NUM_CASES = 60
DEADLINE_S = 60.0
NUM_AT_ONCE = 6
# An answer may be as long as the model allows; nobody reads it to its end.
MOST_RESPONSES = 12


# -- the well-formed RPCs that the cases are made from -----------------------------------


@asynccontextmanager
async def _nothing(_: _Targets) -> AsyncIterator[None]:
    yield None


@asynccontextmanager
async def _a_first_token(targets: _Targets) -> AsyncIterator[worker.FirstToken]:
    """A hand-over that waits for decode, while the block lasts."""
    call = worker_pb2_grpc.PrefillServiceStub(targets.prefill).PrefillSession(timeout=DEADLINE_S)
    for request in _prefill_session(None):
        await call.write(request)
    while not (response := await call.read()).HasField("first_token"):
        assert response is not grpc.aio.EOF
    yield response.first_token
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


def _prefill_session(_: None) -> list[Message]:
    kind = worker.PrefillSessionRequest
    splices = [
        worker.SplicePrefill(revision=1, token_ids=PROMPT[:40], stable_tokens=40),
        worker.SplicePrefill(revision=2, keep_tokens=30, token_ids=PROMPT[30:50], stable_tokens=50),
        worker.SplicePrefill(revision=3, keep_tokens=50, token_ids=PROMPT[50:], stable_tokens=64),
    ]
    return [
        kind(open=worker.OpenPrefill(session_id="fuzz", sampling=SAMPLING)),
        kind(splice=splices[0]),
        kind(splice=splices[1]),
        kind(seal=worker.SealPrefill(splice=splices[2], hand_over=True)),
    ]


def _decode(first: worker.FirstToken) -> list[Message]:
    return [
        worker.DecodeRequest(
            session_id="fuzz",
            prompt_token_ids=[*PROMPT, *first.step.token_ids],
            sampling=SAMPLING,
            handover=first.handover,
            fetch_session_id="fuzz-none",
            refuse_when_full=True,
        )
    ]


def _fetch_ahead(first: worker.FirstToken) -> list[Message]:
    kind = worker.FetchAheadRequest
    fetch = worker.FetchKv(token_ids=PROMPT, handover=first.handover)
    name = f"fuzz-{first.handover.kv_transfer_params_json[-40:]}"
    return [
        kind(open=worker.OpenFetchAhead(fetch_session_id=name)),
        kind(fetch=fetch),
        kind(abort=worker.AbortFetch()),
    ]


def _release(first: worker.FirstToken) -> list[Message]:
    return [worker.ReleaseHandoverRequest(session_id="fuzz", handover=first.handover)]


def _stream_generate(_: None) -> list[Message]:
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


def _generate(_: None) -> list[Message]:
    message = pb.ChatMessage(role="user", content="why?")
    return [
        pb.GenerateRequest(
            session_id="fuzz", chat=pb.ChatPrompt(messages=[message]), sampling=SAMPLING
        )
    ]


@dataclass(frozen=True, slots=True)
class Rpc:
    """How a well-formed one is made: what it needs first, and then its messages."""

    needs: Callable[[_Targets], Any]
    messages: Callable[[Any], Sequence[Message]]


RPCS = {
    "StreamingInferenceService/StreamGenerate": Rpc(_nothing, _stream_generate),
    "StreamingInferenceService/Generate": Rpc(_nothing, _generate),
    "StreamingInferenceService/GetModelInfo": Rpc(_nothing, lambda _: [pb.GetModelInfoRequest()]),
    "StreamingInferenceService/GetServerInfo": Rpc(_nothing, lambda _: [pb.GetServerInfoRequest()]),
    "PrefillService/PrefillSession": Rpc(_nothing, _prefill_session),
    "DecodeService/FetchAhead": Rpc(_a_first_token, _fetch_ahead),
    "DecodeService/Decode": Rpc(_a_first_token, _decode),
    "DecodeService/ReleaseHandover": Rpc(_a_first_token, _release),
    "WorkerService/GetWorkerStatus": Rpc(_nothing, lambda _: [worker.GetWorkerStatusRequest()]),
}


def test_every_rpc_is_tried() -> None:
    services = [each for file in (pb, worker) for each in file.DESCRIPTOR.services_by_name.values()]
    names = {f"{service.name}/{method.name}" for service in services for method in service.methods}
    assert names == RPCS.keys()


# -- a run ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Targets:
    """A channel to each process."""

    router: grpc.aio.Channel
    prefill: grpc.aio.Channel
    decode: grpc.aio.Channel

    def of(self, rpc: str) -> list[grpc.aio.Channel]:
        """Where that RPC is served."""
        match rpc.split("/")[0]:
            case "StreamingInferenceService":
                return [self.router]
            case "PrefillService":
                return [self.prefill]
            case "DecodeService":
                return [self.decode]
        return [self.prefill, self.decode]


@pytest.mark.parametrize("rpc", RPCS)
async def test_no_request_hurts_anybody_else(
    rpc: str, cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    await _fuzz(rpc, cluster, client, reference, NUM_CASES)


@pytest.mark.slow
@pytest.mark.parametrize("rpc", RPCS)
async def test_no_request_of_all_there_are_hurts_anybody_else(
    rpc: str, cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    await _fuzz(rpc, cluster, client, reference, None)


async def _fuzz(
    rpc: str,
    cluster: Cluster,
    client: AsyncClient,
    reference: ReferenceEngine,
    num_cases: int | None,
) -> None:
    before = [incarnation_of(cluster.status(), role) for role in ("router", "prefill", "decode")]
    async with AsyncExitStack() as stack:
        addresses = (
            cluster.router_addresses[0],
            workers(cluster, "prefill")[0].grpc_address,
            workers(cluster, "decode")[0].grpc_address,
        )
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for address in addresses
        ]
        targets = _Targets(*channels)
        wrong = await _wrong_ends(rpc, targets, num_cases)
    assert not wrong, "\n".join(wrong)
    outcome = await play(client, ORDINARY)
    assert outcome.token_ids == reference.answer(ORDINARY.prompt, 8)
    after = [incarnation_of(cluster.status(), role) for role in ("router", "prefill", "decode")]
    assert after == before, "a process had to be replaced"


async def _wrong_ends(rpc: str, targets: _Targets, num_cases: int | None) -> list[str]:
    """Plays the cases, some at once; what became of those that did not end as they should."""
    made = RPCS[rpc]
    async with made.needs(targets) as needed:
        total = sum(1 for _ in mutants(made.messages(needed), random.Random(SEED)))
    numbers = list(range(total))
    if num_cases is not None:
        random.Random(SEED).shuffle(numbers)
        numbers = numbers[:num_cases]
    wrong: list[str] = []
    codes: Counter[str] = Counter()
    at_once = asyncio.Semaphore(NUM_AT_ONCE)

    async def play_one(number: int) -> None:
        async with at_once, made.needs(targets) as needed:
            case = list(mutants(made.messages(needed), random.Random(SEED)))[number]
            for channel in targets.of(rpc):
                code, told = await _call(channel, rpc, case)
                codes[code] += 1
                if told:
                    wrong.append(f"{rpc} {case.name}: {told}")

    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(play_one(number))
    print(rpc, dict(codes))
    # Cases that are all refused for one reason would show nothing.
    return wrong


async def _call(channel: grpc.aio.Channel, rpc: str, case: Case) -> tuple[str, str]:
    """Its status, and what is wrong with that."""
    call = channel.stream_stream(f"/stream2llm.v1.{rpc}")(timeout=DEADLINE_S)
    try:
        await asyncio.wait_for(_exchange(call, case), DEADLINE_S)
        code = await call.code()
    except grpc.aio.AioRpcError as error:
        code = error.code()
    details = (await call.details()) or ""
    is_theirs = code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
    error = grpc.aio.AioRpcError(code, None, await call.trailing_metadata(), details)
    ours = from_rpc_error(error)
    is_lost = code is grpc.StatusCode.UNAVAILABLE and (ours is None or ours.reason == "WORKER_LOST")
    return code.name, f"{code.name}: {details}" if is_theirs or is_lost else ""


async def _exchange(call: Any, case: Case) -> None:
    async def send() -> None:
        try:
            for message in case.messages:
                await call.write(message)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # it has ended

    sending = asyncio.create_task(send())
    try:
        for _ in range(MOST_RESPONSES):
            if await call.read() is grpc.aio.EOF:
                return
        call.cancel()
    finally:
        await sending
