"""Errors as a client gets them (status, reason, field, message), and engines that live on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from stream2llm.api.errors import (
    EventOrderError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Stream2LLMError,
)
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import inference_pb2_grpc
from stream2llm.client import AsyncClient, Document, SamplingParameters
from stream2llm.cluster.cluster import Cluster
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Stream, play

pytestmark = [pytest.mark.integration, pytest.mark.cluster("sensitive-1x1")]
SMALL = Stream("errors", (("append", ("a",)),), {"a": 40})
MAX_MODEL_LEN = 4096


@pytest.fixture(autouse=True)
async def _the_engines_live_on(
    client: AsyncClient, reference: ReferenceEngine
) -> AsyncIterator[None]:
    yield
    assert (await play(client, SMALL)).token_ids == reference.answer(SMALL.prompt, 8)


async def raw(cluster: Cluster, *events: pb.StreamGenerateRequest) -> grpc.aio.AioRpcError:
    """Sends events as they are and returns the status that ends the RPC."""
    async with grpc.aio.insecure_channel(cluster.router_addresses[0]) as channel:
        stub = inference_pb2_grpc.StreamingInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.StreamGenerate(iter(events)):
                pass
        return caught.value


OPEN = pb.StreamGenerateRequest(
    open=pb.OpenSession(plain=pb.PlainTemplate(prefix=pb.Content(token_ids=pb.TokenIds(ids=[5]))))
)
APPEND = pb.StreamGenerateRequest(append=pb.AppendContext(documents=[pb.Document(text="hello")]))
SEAL = pb.StreamGenerateRequest(seal=pb.SealContext())


async def test_first_event_not_open(cluster: Cluster) -> None:
    error = await raw(cluster, APPEND)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "open" in (error.details() or "")


async def test_half_close_without_a_seal(cluster: Cluster) -> None:
    error = await raw(cluster, OPEN, APPEND)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "seal" in (error.details() or "")


async def test_event_after_the_seal(cluster: Cluster) -> None:
    error = await raw(cluster, OPEN, APPEND, SEAL, APPEND)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "append" in (error.details() or "").lower()


async def test_a_second_open(cluster: Cluster) -> None:
    error = await raw(cluster, OPEN, OPEN)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def refused(
    make: Callable[[], Any], cls: type[Stream2LLMError], *words: str
) -> Stream2LLMError:
    """The error that running `make()` raises; its message has those words."""
    with pytest.raises(cls) as caught:
        await make()
    for word in words:
        assert word in caught.value.message, caught.value.message
    return caught.value


async def test_unknown_model(client: AsyncClient) -> None:
    await refused(lambda: client.generate("x", model="gpt-9").answer(), NotFoundError, "gpt-9")


async def test_a_context_over_the_models_limit_names_both_numbers(client: AsyncClient) -> None:
    async def append_too_much() -> None:
        async with client.session(prefix=[1, 2, 3], sampling=GREEDY) as session:
            await session.append([7] * 4000)
            await session.append([7] * 200)
            await session.answer()

    await refused(append_too_much, InvalidRequestError, "4203", str(MAX_MODEL_LEN))


async def test_a_prompt_as_long_as_the_models_limit_has_no_room(client: AsyncClient) -> None:
    await refused(
        lambda: client.generate([7] * MAX_MODEL_LEN, sampling=GREEDY).answer(),
        InvalidRequestError,
        str(MAX_MODEL_LEN),
    )


async def test_the_longest_prompt_that_fits_gets_one_token(client: AsyncClient) -> None:
    answer = await client.generate([7] * (MAX_MODEL_LEN - 1), sampling=GREEDY).answer()
    assert len(answer.token_ids) == 1


async def test_unknown_document_in_an_update(client: AsyncClient) -> None:
    async def update() -> None:
        async with client.session(prefix=[1], sampling=GREEDY) as session:
            await session.update([Document("text", id="known"), Document(id="never-sent")])
            await session.answer()

    await refused(update, InvalidRequestError, "never-sent")


async def test_empty_context(client: AsyncClient) -> None:
    async def seal() -> None:
        async with client.session(sampling=GREEDY) as session:
            await session.answer()

    await refused(seal, InvalidRequestError, "context is empty")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-40),
        ("logprobs", 21),
        ("stop_strings", ("",)),
        ("stop_strings", ("x",) * 17),
        ("stop_token_ids", (10**6,)),
        ("stop_token_ids", tuple(range(65))),
    ],
)
async def test_bad_sampling_values(client: AsyncClient, field: str, value: Any) -> None:
    sampling = SamplingParameters(**{field: value})
    error = await refused(
        lambda: client.generate("x", sampling=sampling).answer(), InvalidRequestError, field
    )
    assert error.field == f"sampling.{field}"
    assert error.reason == "BAD_SAMPLING"


async def test_a_token_id_outside_the_vocabulary(client: AsyncClient) -> None:
    await refused(
        lambda: client.generate([10**6], sampling=GREEDY).answer(), InvalidRequestError, "1000000"
    )


async def test_message_too_large(cluster: Cluster) -> None:
    text = "x" * (cluster.config.router.limits.max_message_bytes + 1000)
    document = pb.Document(text=text)
    large = pb.StreamGenerateRequest(append=pb.AppendContext(documents=[document]))
    error = await raw(cluster, OPEN, large)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(cluster.config.router.limits.max_message_bytes) in (error.details() or "")


async def test_too_many_tokens_over_a_sessions_life(client: AsyncClient, cluster: Cluster) -> None:
    limit = cluster.config.router.limits.max_session_tokens

    async def update_for_ever() -> None:
        async with client.session(prefix=[1], sampling=GREEDY) as session:
            for i in range(limit // 3000 + 2):
                await session.update([[i + 1] * 3000])
            await session.answer()

    await refused(update_for_ever, OverloadedError, str(limit))


async def test_too_many_open_sessions(client: AsyncClient, cluster: Cluster) -> None:
    limit = cluster.config.router.limits.max_open_sessions
    sessions = [client.session(prefix=[1], sampling=GREEDY) for _ in range(limit)]
    for session in sessions:
        await session.__aenter__()
    one_more = client.session(prefix=[1], sampling=GREEDY)
    error = await refused(one_more.__aenter__, OverloadedError, str(limit))
    assert error.retry_after_s
    for session in sessions:
        await session.__aexit__(None, None, None)


async def test_a_session_of_wrong_order_is_refused_by_the_client_too(client: AsyncClient) -> None:
    async with client.session(prefix=[1], sampling=GREEDY) as session:
        await session.answer()
        with pytest.raises(EventOrderError):
            await session.append("late")


async def test_health_of_each_service(cluster: Cluster) -> None:
    async with grpc.aio.insecure_channel(cluster.router_addresses[0]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "stream2llm.v1.StreamingInferenceService"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_service(cluster: Cluster) -> None:
    with grpc.insecure_channel(cluster.router_addresses[0]) as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "stream2llm.v1.StreamingInferenceService" in services


async def test_model_info(client: AsyncClient) -> None:
    info = await client.model_info()
    assert info.model == "random-llama-sensitive"
    assert info.max_model_len == MAX_MODEL_LEN
    await refused(lambda: client.model_info("other"), NotFoundError, "other")
