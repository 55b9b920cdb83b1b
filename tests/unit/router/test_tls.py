"""The whole ring with TLS, while certificates change."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from router.background import Background
from router.workers import WorkerPool
from stream2llm.api.grpc_options import channel_options
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.security.certificates import CertificateStore, open_certificates
from stream2llm.security.tls import PeerChannels
from stream2llm.serving.settings.security_options import SecurityOptions
from stream2llm.serving.settings.worker_spec import ClusterView
from tests.fake_workers import Brain, FakeWorker
from tests.router_ring import a_ring, soon
from tests.tls_files import Authority, replace

SAMPLING = pb.SamplingParameters(max_tokens=4)


async def test_a_session_streams_through_and_goes_on_over_new_certificates(
    tiny_model: Path, tmp_path: Path
) -> None:
    authority = Authority()
    security = authority.security(tmp_path)
    async with a_ring(tiny_model, security=security) as ring:
        (prefill,) = (w for w in ring.router._parts.workers if w.address.role == "prefill")
        old = await ring.opened("hello ", sampling=SAMPLING)
        await old.append("quick")
        await ring.told(1)
        first = prefill.link
        authority.renew(security.tls.files)
        new = await ring.opened("hello ", sampling=SAMPLING)
        await new.append("brown")
        await new.seal()
        assert len((await new.answer()).token_ids) == 4
        # New sessions have another channel; the old one is there for the session on it.
        assert prefill.link is not first
        assert prefill.num_sessions == 1
        await old.append("fox")
        await old.seal()
        assert len((await old.answer()).token_ids) == 4
        await ring.nothing_is_open()
        await ring.router._background.close(5.0)
        assert first.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_broken_files_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    security = Authority().security(tmp_path)
    async with a_ring(tiny_model, security=security, serve_metrics=True) as ring:
        links = {worker.worker_id: worker.link for worker in ring.router._parts.workers}
        replace(security.tls.key, b"half of a key")
        call = ring.stub.Generate(pb.GenerateRequest(text="hello", sampling=SAMPLING))
        assert [m async for m in call][-1].HasField("finished")
        assert {w.worker_id: w.link for w in ring.router._parts.workers} == links
        failures = "stream2llm_tls_reload_failures_total"
        assert ring.router.registry.get_sample_value(failures) == 1


async def test_a_suspect_worker_is_probed_with_the_newest_certificate(tmp_path: Path) -> None:
    """It may be suspect because it refuses the old one."""
    authority, pauses, may_go_on = Authority(), asyncio.Event(), asyncio.Event()
    files = authority.files(tmp_path)
    store, background = CertificateStore(files), Background()

    async def pause(_seconds: float) -> None:
        pauses.set()
        await may_go_on.wait()

    fake = FakeWorker("decode-0", "decode", Brain(), certificates=store)
    fake.is_ready = False
    pool = WorkerPool(PeerChannels(store, 1 << 20), background, pause)
    pool.set_view(ClusterView(1, (await fake.start(),)))
    (worker,) = pool
    before = worker.link
    nothing = grpc.aio.Metadata()
    lost = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "Socket closed")
    pool.failure(worker, lost)
    await soon(pauses.wait())
    authority.renew(files)
    fake.is_ready = True
    may_go_on.set()
    await soon(worker.probe)
    assert worker.link is not before
    assert not worker.is_suspect
    await background.close(5)
    await pool.close()
    await fake.kill()


async def test_what_no_session_owns_keeps_its_channel_too(tmp_path: Path) -> None:
    """A release is under way while its channel is replaced, and no session is on it."""
    authority = Authority()
    files = authority.files(tmp_path)
    store, background = CertificateStore(files), Background()
    fake = FakeWorker("decode-0", "decode", Brain(), certificates=store)
    fake.decode.may_release.clear()
    pool = WorkerPool(PeerChannels(store, 1 << 20), background)
    pool.set_view(ClusterView(1, (await fake.start(),)))
    (worker,) = pool
    before = worker.link
    pool.release_handover(worker_pb2.ReleaseHandoverRequest(session_id="s"))
    await soon(fake.decode.release_called.wait())
    authority.renew(files)
    assert pool.pick("decode") is worker
    assert worker.link is not before
    await soon(worker.link.status.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest()))
    assert before.channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    fake.decode.may_release.set()
    await soon(background.close(5))
    assert len(fake.decode.released) == 1
    assert before.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    await pool.close()
    await fake.kill()


async def test_a_worker_answers_no_client(tiny_model: Path, tmp_path: Path) -> None:
    security = Authority().security(tmp_path)
    roots = security.tls.ca.read_bytes()
    async with a_ring(tiny_model, security=security) as ring:
        address = ring.worker("decode").address.grpc_address
        for channel in (
            grpc.aio.insecure_channel(address, options=channel_options(1 << 20)),
            grpc.aio.secure_channel(
                address, grpc.ssl_channel_credentials(roots), options=channel_options(1 << 20)
            ),
        ):
            async with channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest())
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_without_a_file_a_router_does_not_start(tiny_model: Path, tmp_path: Path) -> None:
    security = Authority().security(tmp_path)
    assert open_certificates(SecurityOptions().tls_files) is None
    security.tls.key.unlink()
    with pytest.raises(Exception, match=r"security.tls.key: .*tls.key cannot be read"):
        open_certificates(security.tls_files)
