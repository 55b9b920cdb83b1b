"""Everything of a router that is no session: start-up, health, information, metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from router.metrics import RouterMetrics
from router.server import Router
from stream2llm.api.errors import InvalidRequestError, UnavailableError
from stream2llm.api.grpc_options import SERVICE_NAME
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.settings.router_spec import RouterSpec
from tests.fake_workers import NUM_BLOCKS
from tests.router_ring import Answered, NoMetricsServer, Ring, a_ring, soon

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(ring: Ring, service: str, until: Any) -> None:
    stub = health_pb2_grpc.HealthStub(ring.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
    while (await soon(watch.read())).status != until:
        pass
    watch.cancel()


@pytest.mark.parametrize("service", ["", SERVICE_NAME])
async def test_it_serves_while_both_kinds_of_workers_are_there(ring: Ring, service: str) -> None:
    await health_of(ring, service, SERVING)
    ring.show(ring.worker("prefill"))
    await health_of(ring, service, NOT_SERVING)
    ring.show(*ring.workers)
    await health_of(ring, service, SERVING)


async def test_reflection_lists_the_service(ring: Ring) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(ring.channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    response = await soon(call.read())
    names = {service.name for service in response.list_services_response.service}
    assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names
    call.cancel()


async def test_model_info(ring: Ring) -> None:
    info = await ring.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (info.model, info.max_model_len, info.vocab_size) == ("tiny", 1000, 512)
    assert info.has_chat_template
    assert list(info.eos_token_ids) == [0, 2]
    assert info.max_message_bytes == 16 << 20
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ring.stub.GetModelInfo(pb.GetModelInfoRequest(model="other"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_server_info_asks_the_workers(ring: Ring) -> None:
    session = await ring.opened("hello")
    await session.next("progress")
    while True:  # until prefill has caught up
        info = await ring.stub.GetServerInfo(pb.GetServerInfoRequest())
        if info.sessions_by_phase == {"waiting_input": 1}:
            break
    assert info.router_id == "router-0"
    assert [worker.worker_id for worker in info.workers] == ["decode-0", "prefill-0"]
    assert {worker.num_kv_blocks_held for worker in info.workers} == {7}
    assert all(worker.ready for worker in info.workers)
    assert (await ring.router.status()).sessions_by_phase == {"waiting_input": 1}
    session.call.cancel()


async def test_server_info_does_without_a_worker_that_is_gone(ring: Ring) -> None:
    await ring.worker("decode").kill()
    info = await ring.stub.GetServerInfo(pb.GetServerInfoRequest())
    ready = {worker.worker_id: worker.ready for worker in info.workers}
    assert ready == {"decode-0": False, "prefill-0": True}
    assert info.workers[0].num_kv_blocks == NUM_BLOCKS


async def test_metrics_count_what_happened(tiny_model: Path) -> None:
    async with a_ring(tiny_model, serve_metrics=True) as ring:
        session = await ring.opened("hello ", sampling=pb.SamplingParameters(max_tokens=3))
        await session.update("quick")
        await session.update("brown")
        answered = await session.finish()
        await ring.nothing_is_open()
        usage = answered.finished.usage
        prefix = "stream2llm_"
        assert ring.metric(f"{prefix}sessions_total", outcome="ok") == 1
        assert ring.metric(f"{prefix}sessions_active", phase="decoding") == 0
        assert ring.metric(f"{prefix}input_chunks_total", op="update") == 2
        tokens = len(ring.encode("quick")) + len(ring.encode("brown"))
        assert ring.metric(f"{prefix}input_tokens_total", op="update") == tokens
        invalidated = ring.metric(f"{prefix}input_tokens_invalidated_total", ordering="as_given")
        assert invalidated == usage.invalidated_tokens
        assert ring.metric(f"{prefix}input_tokens_prefilled_total") == usage.computed_tokens
        assert ring.metric(f"{prefix}output_tokens_total") == 3
        for name in ("time_to_first_token_seconds", "session_ttft_seconds"):
            assert ring.metric(f"{prefix}{name}_count", input_mode="update") == 1
        assert ring.metric(f"{prefix}inter_token_latency_seconds_count") == 2
        assert ring.metric(f"{prefix}e2e_latency_seconds_count") == 1
        url = f"http://{ring.address.metrics_address}/metrics"
        page = await asyncio.to_thread(lambda: urlopen(url).read())
        assert b"stream2llm_sessions_total" in page


async def test_two_sessions_in_a_row_use_one_prefill_after_the_other(ring: Ring) -> None:
    for _ in range(2):
        call = ring.stub.Generate(
            pb.GenerateRequest(text="hello", sampling=pb.SamplingParameters(max_tokens=2))
        )
        Answered.of([message async for message in call])
    await ring.nothing_is_open()


def spec_of(model: Path, **changes: Any) -> RouterSpec:
    fields: dict[str, Any] = {
        "router_id": "router-1",
        "host": "127.0.0.1",
        "port": 0,
        "metrics_port": 0,
        "model_name": "tiny",
        "model_path": str(model),
        "max_model_len": 100,
        "handover": "at_seal",
        "drain_timeout_s": 30.0,
    }
    return RouterSpec(**fields | changes)


async def test_a_taken_port_is_named(ring: Ring, tiny_model: Path) -> None:
    port = int(ring.address.grpc_address.rsplit(":", 1)[1])
    second = Router(spec_of(tiny_model, port=port), serve_metrics=NoMetricsServer)
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}: the port is taken"):
        await second.start()
    await second.stop()


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"nowhere/config.json: cannot be read"):
        Router(spec_of(tmp_path / "nowhere"))


def test_inter_token_latencies_of_few_milliseconds_are_told_apart() -> None:
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry, "tiny")
    name = "stream2llm_inter_token_latency_seconds_bucket"
    for seconds, bound in ((0.0009, "0.001"), (0.002, "0.0025"), (0.004, "0.005")):
        before = registry.get_sample_value(name, {"model": "tiny", "le": bound}) or 0.0
        metrics.decode_step(seconds, is_first=False)
        assert registry.get_sample_value(name, {"model": "tiny", "le": bound}) == before + 1
