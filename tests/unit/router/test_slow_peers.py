"""Garbage, slow and half-open peers at every listener: the others are served all the same."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from stream2llm.api.call_metadata import CallsWith, bearer
from stream2llm.api.tls import ClientTls
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.client import AsyncClient
from stream2llm.security.certificates import CertificateStore, open_certificates
from stream2llm.security.principal import Scope
from stream2llm.security.tls import PeerChannels, http_server_context
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.http.metrics_http import MetricsServer
from stream2llm.serving.settings.security_options import SecurityOptions
from stream2llm.serving.system.clock import SystemClock
from tests.credentials import Keys
from tests.fakes.controller import a_controller, controller_http
from tests.gateway_ring import a_gateway
from tests.polling import eventually
from tests.router_ring import TIMEOUT_S, a_ring, soon
from tests.tls_files import Authority, client_context
from tests.unit.security.test_http_access import ask

TOKEN = "the-token-of-this-cluster"
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# An empty SETTINGS frame.
HTTP2_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def garbage(rng: random.Random) -> bytes:
    """What a peer says that is up to no good, or no good at it."""
    kind = rng.randrange(8)
    noise = rng.randbytes(rng.randrange(1, 3000))
    if kind == 0:
        return noise
    if kind == 1:
        return b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + noise
    if kind == 2:
        return b"PUT /policy HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n" + noise
    if kind == 3:
        return b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\n\r\n"
    if kind == 4:
        return b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + noise
    if kind == 5:
        return HTTP2_PREFACE + HTTP2_SETTINGS + noise
    if kind == 6:
        # A frame that says how much comes, and never does.
        return HTTP2_PREFACE + HTTP2_SETTINGS + b"\xff\xff\xff\x01\x04\x00\x00\x00\x01"
    return TLS_HELLO + noise


def _security(keys: Keys, authority: Authority | None) -> SecurityOptions:
    """With keys, and with TLS where there is an authority."""
    folder = keys.path.with_name("tls")
    tls = authority.security(folder).tls if authority is not None else None
    return keys.security(tls=tls)


@asynccontextmanager
async def router(
    model: Path, keys: Keys, authority: Authority | None = None
) -> AsyncIterator[tuple[str, Callable[[], Any]]]:
    security = _security(keys, authority)
    tls = None if security.tls is None else ClientTls(security.tls.ca)
    async with a_ring(model, security=security, cluster_token=TOKEN) as ring:
        address, key = ring.address.grpc_address, keys.create("a")

        async def serves() -> bool:
            async with AsyncClient(address, api_key=key, tls=tls) as client:
                return bool((await client.generate("hello").answer()).token_ids)

        yield address, serves


@asynccontextmanager
async def worker(
    model: Path, keys: Keys, authority: Authority | None = None
) -> AsyncIterator[tuple[str, Callable[[], Any]]]:
    security = _security(keys, authority)
    certificates = open_certificates(security.tls_files)
    async with a_ring(model, security=security, cluster_token=TOKEN) as ring:
        address = ring.worker("prefill").address.grpc_address

        async def serves() -> bool:
            opened, _ = PeerChannels(certificates, 1 << 20).open(address)
            async with opened as channel:
                calls = CallsWith(channel, lambda: bearer(TOKEN))
                stub: Any = worker_pb2_grpc.WorkerServiceStub(calls)
                answer = await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest())
                return bool(answer.worker.ready)

        yield address, serves


@asynccontextmanager
async def controller(
    _model: Path, keys: Keys, authority: Authority | None = None
) -> AsyncIterator[tuple[str, Callable[[], Any]]]:
    security, key = _security(keys, authority), keys.create("a", Scope.READ)
    guard = Guards(security.auth, SystemClock()).of("controller")
    async with a_controller(guard=guard, store=open_certificates(security.tls_files)) as address:
        yield address, lambda: _page(address, "/metrics", key, security)


@asynccontextmanager
async def metrics(
    _model: Path, keys: Keys, authority: Authority | None = None
) -> AsyncIterator[tuple[str, Callable[[], Any]]]:
    security, key = _security(keys, authority), keys.create("a", Scope.READ)
    guard = Guards(security.auth, SystemClock()).of("metrics")
    tls = http_server_context(open_certificates(security.tls_files))
    with MetricsServer("127.0.0.1", 0, CollectorRegistry(), tls, guard) as server:
        yield server.address, lambda: _page(server.address, "/metrics", key, security)


@asynccontextmanager
async def gateway(
    model: Path, keys: Keys, authority: Authority | None = None
) -> AsyncIterator[tuple[str, Callable[[], Any]]]:
    security, key = _security(keys, authority), keys.create("a")
    async with a_gateway(model, security=security, cluster_token=TOKEN) as started:
        address = started.url.partition("://")[2]
        yield address, lambda: _page(address, "/v1/models", key, security)


async def _page(address: str, path: str, key: str, security: SecurityOptions) -> bool:
    tls = security.tls
    trusted = None if tls is None else ssl.create_default_context(cafile=str(tls.ca))
    scheme = "http" if tls is None else "https"
    return (await ask(f"{scheme}://{address}{path}", key=key, tls=trusted))[0] == 200


Listening = Callable[..., AbstractAsyncContextManager[tuple[str, Callable[[], Any]]]]
each_listener = pytest.mark.parametrize(
    "listening", [router, worker, controller, metrics, gateway], ids=lambda each: each.__name__
)


@pytest.fixture
def no_errors(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """What peers do is no error of ours, and nothing prints tracebacks."""
    yield
    errors = [each for each in caplog.get_records("call") if each.levelno >= logging.ERROR]
    # aiohttp calls every request that it cannot parse an error.
    assert not [each for each in errors if each.name != "aiohttp.server"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.usefixtures("no_errors")
@each_listener
async def test_service_goes_on_among_rude_peers(
    listening: Listening, tiny_model: Path, tmp_path: Path
) -> None:
    async with listening(tiny_model, Keys(tmp_path)) as (address, serves):
        await _with_rude_peers(address, serves)


@pytest.mark.usefixtures("no_errors")
@each_listener
async def test_service_goes_on_among_rude_peers_with_tls(
    listening: Listening, tiny_model: Path, tmp_path: Path
) -> None:
    """Some of whom say it in the place of a handshake, some after a right one."""
    authority = Authority()
    async with listening(tiny_model, Keys(tmp_path), authority) as (address, serves):
        context = client_context(authority, authority.sign(), tmp_path)
        context.set_alpn_protocols(["h2", "http/1.1"])
        await _with_rude_peers(address, serves, context)


async def _with_rude_peers(
    address: str, serves: Callable[[], Any], context: ssl.SSLContext | None = None
) -> None:
    rng = random.Random(17)
    host, _, port = address.rpartition(":")
    held = []
    for number in range(60):
        peer = socket.create_connection((host, int(port)), TIMEOUT_S)
        if context is not None and number % 4 >= 2:
            peer = await asyncio.to_thread(context.wrap_socket, peer, server_hostname=host)
        if number % 3:  # the others say nothing at all
            peer.sendall(garbage(rng))
        if number % 2:
            held.append(peer)
        else:
            # Gone without a word: a reset rather than an orderly end.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
        if number % 20 == 0:
            assert await soon(serves())
    assert await soon(serves())
    for peer in held:
        peer.close()
    assert await soon(serves())


async def reads_to_the_end(host: str, port: int, said: bytes) -> bytes:
    """What comes back until the server ends the connection."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(said)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


HALVES = [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-More: ", TLS_HELLO]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("said", HALVES)
async def test_the_controller_gives_up_a_peer_that_sends_no_head(
    said: bytes, tls: bool, tmp_path: Path
) -> None:
    store = CertificateStore(Authority().files(tmp_path)) if tls else None
    http = controller_http(lambda: {"ready": True}, store=store, head_limit_s=0.2)
    host, _, port = (await http.start("127.0.0.1", 0)).rpartition(":")
    await reads_to_the_end(host, int(port), said)
    # A whole head in time is answered, and its connection ended.
    if not tls:
        whole = await reads_to_the_end(host, int(port), b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert whole.startswith(b"HTTP/1.1 200")

        async def num_waiting() -> int:
            return len(http._deadline._waiting)

        await eventually(num_waiting, lambda left: not left, TIMEOUT_S)
    await http.close()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("said", HALVES)
async def test_a_page_of_metrics_gives_up_a_peer_that_is_slow(
    said: bytes, tls: bool, tmp_path: Path
) -> None:
    store = CertificateStore(Authority().files(tmp_path)) if tls else None
    with MetricsServer(
        "127.0.0.1", 0, CollectorRegistry(), http_server_context(store), limit_s=0.2
    ) as server:
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        # It goes on saying a little, which no limit on silence ends.
        async with asyncio.timeout(TIMEOUT_S):
            drip = asyncio.create_task(_drip(writer, said))
            with suppress(ConnectionResetError):
                await reader.read()
            drip.cancel()
        writer.close()


async def _drip(writer: asyncio.StreamWriter, said: bytes) -> None:
    writer.write(said)
    while not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.05)
