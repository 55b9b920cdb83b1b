"""HTTP listeners with TLS: the pages of metrics, and the controller."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry

from stream2llm.security.certificates import CertificateStore
from stream2llm.security.tls import http_server_context
from stream2llm.security.tls_metrics import TlsMetrics
from stream2llm.serving.http.metrics_http import MetricsServer
from tests.fakes.controller import a_controller
from tests.tls_files import Authority, certificate_of, client_context, der, replace

Serve = Callable[[CertificateStore], AbstractAsyncContextManager[str]]


@asynccontextmanager
async def metrics(store: CertificateStore) -> AsyncIterator[str]:
    registry = CollectorRegistry()
    registry.register(TlsMetrics(store))
    with MetricsServer("127.0.0.1", 0, registry, http_server_context(store)) as server:
        yield server.address


@asynccontextmanager
async def controller(store: CertificateStore) -> AsyncIterator[str]:
    registry = CollectorRegistry()
    registry.register(TlsMetrics(store))
    async with a_controller(registry=registry, store=store) as address:
        yield address


each_server = pytest.mark.parametrize("serve", [metrics, controller], ids=lambda s: s.__name__)


async def page(address: str, context: ssl.SSLContext | None, path: str = "/metrics") -> str:
    scheme = "http" if context is None else "https"

    def get() -> str:
        with urlopen(f"{scheme}://{address}{path}", timeout=10, context=context) as answer:
            return str(answer.read(), "utf-8")

    return await asyncio.to_thread(get)


@each_server
async def test_a_page_is_read_over_tls_alone(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    store = CertificateStore(authority.files(tmp_path / "server"))
    async with serve(store) as address:
        trusting = client_context(authority, None, tmp_path)
        shown = await page(address, trusting)
        assert 'stream2llm_tls_certificate_expiry_timestamp_seconds{file="certificate"}' in shown
        with pytest.raises(OSError):
            await page(address, None)
        with pytest.raises(URLError, match="certificate verify failed"):
            await page(address, client_context(Authority(), None, tmp_path))


@each_server
async def test_new_connections_get_the_new_certificate(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    files = authority.files(tmp_path / "server")
    context = client_context(authority, None, tmp_path)
    async with serve(CertificateStore(files)) as address:
        for _ in range(3):
            signed = authority.renew(files)
            assert await asyncio.to_thread(certificate_of, address, context) == der(signed)
        replace(files.key, b"half of a key")
        assert await asyncio.to_thread(certificate_of, address, context) == der(signed)


@each_server
async def test_clients_show_a_certificate_where_an_authority_of_theirs_is_set(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    clients = Authority()
    files = authority.files(tmp_path / "server", client_ca=clients)
    async with serve(CertificateStore(files)) as address:
        for shown in (None, authority.sign(), clients.sign(days=-1)):
            with pytest.raises(OSError):
                await page(address, client_context(authority, shown, tmp_path))
        assert await page(address, client_context(authority, clients.sign(), tmp_path))
        # An authority that is replaced counts at once.
        assert files.client_ca is not None
        replace(files.client_ca, authority.signer.certificate_pem)
        assert await page(address, client_context(authority, authority.sign(), tmp_path))
        with pytest.raises(OSError):
            await page(address, client_context(authority, clients.sign(), tmp_path))


@pytest.fixture
def silent() -> Iterator[Callable[[str], None]]:
    """Connects, and never says anything."""
    held: list[socket.socket] = []

    def connect(address: str) -> None:
        host, _, port = address.rpartition(":")
        held.append(socket.create_connection((host, int(port)), 10))

    yield connect
    for each in held:
        each.close()


@each_server
async def test_peers_that_say_nothing_or_nonsense_hold_up_nobody(
    serve: Serve, authority: Authority, tmp_path: Path, silent: Callable[[str], None]
) -> None:
    store = CertificateStore(authority.files(tmp_path / "server"))
    async with serve(store) as address:
        for _ in range(20):
            silent(address)
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), 10) as rude:
            rude.sendall(b"\x16\x03\x01\x00\x05hello" * 100)
        assert await page(address, client_context(authority, None, tmp_path))


async def test_prometheus_learns_that_the_targets_have_tls(
    authority: Authority, tmp_path: Path
) -> None:
    store = CertificateStore(authority.files(tmp_path / "server"))
    async with controller(store) as address:
        (own,) = json.loads(await page(address, client_context(authority, None, tmp_path), "/sd"))
    assert own["targets"] == [address]
    assert own["labels"]["__scheme__"] == "https"
