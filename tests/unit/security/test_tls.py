"""Real gRPC servers and channels with TLS: who gets in, and what a new certificate changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from stream2llm.api.grpc_options import channel_options, server_options
from stream2llm.security.authority import Signed
from stream2llm.security.certificates import CertificateStore
from stream2llm.security.tls import PeerChannels, add_port
from stream2llm.security.tls_files import TlsFiles
from tests.tls_files import Authority, certificate_of, client_context, der, replace

SIZE = 1 << 20


class Echo(grpc.GenericRpcHandler):
    """Any method sends back what it gets."""

    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(_echo)


async def _echo(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


@dataclass(frozen=True, slots=True)
class Listener:
    """A server, and the files that it reads."""

    address: str
    files: TlsFiles
    authority: Authority

    def channel(self, shown: Signed | None, trusted: Authority | None = None) -> grpc.aio.Channel:
        """With another certificate than the files' own."""
        pair = () if shown is None else (shown.key_pem, shown.certificate_pem)
        roots = (trusted or self.authority).signer.certificate_pem
        credentials = grpc.ssl_channel_credentials(roots, *pair)
        return grpc.aio.secure_channel(self.address, credentials, options=channel_options(SIZE))

    async def shown(self, folder: Path) -> bytes | None:
        context = client_context(self.authority, self.authority.sign(), folder)
        return await asyncio.to_thread(certificate_of, self.address, context)


@asynccontextmanager
async def listening(
    folder: Path, *, for_peers: bool = True, client_ca: Authority | None = None
) -> AsyncIterator[Listener]:
    authority = Authority()
    files = authority.files(folder, client_ca)
    server = grpc.aio.server(options=server_options(SIZE))
    server.add_generic_rpc_handlers((Echo(),))
    port = add_port(server, "127.0.0.1:0", CertificateStore(files), for_peers=for_peers)
    await server.start()
    try:
        yield Listener(f"127.0.0.1:{port}", files, authority)
    finally:
        await server.stop(None)


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[Listener]:
    """A listener for parts of the cluster."""
    async with listening(tmp_path / "server") as listener:
        yield listener


async def exchange(call: grpc.aio.StreamStreamCall, message: bytes = b"x") -> None:
    async with asyncio.timeout(10):
        await call.write(message)
        assert await call.read() == message


async def error_of(channel: grpc.aio.Channel) -> str:
    """Why the channel does not connect."""
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await exchange(channel.stream_stream("/a/b")())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return caught.value.details() or ""


async def test_parts_of_a_cluster_connect_with_each_other(peers: Listener) -> None:
    channel, _ = PeerChannels(CertificateStore(peers.files), SIZE).open(peers.address)
    async with channel:
        await exchange(channel.stream_stream("/a/b")())


async def test_plain_text_is_refused(peers: Listener) -> None:
    channel = grpc.aio.insecure_channel(peers.address, options=channel_options(SIZE))
    assert "Socket closed" in await error_of(channel)


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(lambda _: None, id="none"),
        pytest.param(lambda own: own.sign(days=-1), id="expired"),
        pytest.param(lambda _: Authority().sign(), id="of-another-authority"),
    ],
)
async def test_a_peer_needs_a_valid_certificate_of_the_cluster(
    shown: Callable[[Authority], Signed | None], peers: Listener
) -> None:
    await error_of(peers.channel(shown(peers.authority)))
    async with peers.channel(peers.authority.sign()) as channel:  # but for it, all was well
        await exchange(channel.stream_stream("/a/b")())


async def test_an_expired_certificate_of_a_server_is_refused(peers: Listener) -> None:
    peers.authority.renew(peers.files, days=-1)
    shown = peers.authority.sign()
    assert "certificate has expired" in await error_of(peers.channel(shown))


async def test_a_server_of_another_authority_is_refused(peers: Listener) -> None:
    channel = peers.channel(peers.authority.sign(), trusted=Authority())
    assert "CERTIFICATE_VERIFY_FAILED" in await error_of(channel)


async def test_a_server_must_have_the_address_in_its_certificate_or_the_peer_name(
    peers: Listener,
) -> None:
    peers.authority.renew(peers.files, "stream2llm.internal")
    store = CertificateStore(peers.files)
    await error_of(PeerChannels(store, SIZE).open(peers.address)[0])
    await error_of(PeerChannels(store, SIZE, "another.name").open(peers.address)[0])
    channel, _ = PeerChannels(store, SIZE, "stream2llm.internal").open(peers.address)
    async with channel:
        await exchange(channel.stream_stream("/a/b")())


async def test_a_new_certificate_is_for_new_connections_and_open_streams_go_on(
    peers: Listener, tmp_path: Path
) -> None:
    channels = PeerChannels(CertificateStore(peers.files), SIZE)
    channel, used = channels.open(peers.address)
    async with channel:
        stream = channel.stream_stream("/a/b")()
        await exchange(stream)
        assert channels.newest() is used
        for _ in range(3):
            signed = peers.authority.renew(peers.files)
            assert await peers.shown(tmp_path) == der(signed)
            assert channels.newest() is not used
            await exchange(stream)
        await exchange(channel.stream_stream("/a/b")())  # on the old connection


async def test_after_a_new_authority_only_its_peers_get_in(peers: Listener) -> None:
    before = peers.authority.sign()
    after = Authority()
    after.files(peers.files.ca.parent)
    await error_of(peers.channel(before, trusted=after))
    async with peers.channel(after.sign(), trusted=after) as channel:
        await exchange(channel.stream_stream("/a/b")())


async def test_broken_files_leave_the_certificate_in_use(peers: Listener, tmp_path: Path) -> None:
    first = await peers.shown(tmp_path)
    replace(peers.files.certificate, b"-----BEGIN CERTIFICATE-----\nMIIB")
    assert await peers.shown(tmp_path) == first
    signed = peers.authority.renew(peers.files)
    assert await peers.shown(tmp_path) == der(signed) != first


async def test_clients_need_no_certificate(tmp_path: Path) -> None:
    async with listening(tmp_path, for_peers=False) as listener, listener.channel(None) as channel:
        await exchange(channel.stream_stream("/a/b")())


async def test_clients_need_one_of_the_configured_authority(tmp_path: Path) -> None:
    clients = Authority()
    async with listening(tmp_path, for_peers=False, client_ca=clients) as listener:
        await error_of(listener.channel(None))
        await error_of(listener.channel(listener.authority.sign()))
        async with listener.channel(clients.sign()) as channel:
            await exchange(channel.stream_stream("/a/b")())


async def test_without_files_all_is_plain_text() -> None:
    server = grpc.aio.server(options=server_options(SIZE))
    server.add_generic_rpc_handlers((Echo(),))
    port = add_port(server, "127.0.0.1:0", None, for_peers=True)
    await server.start()
    channels = PeerChannels(None, SIZE)
    channel, used = channels.open(f"127.0.0.1:{port}")
    async with channel:
        await exchange(channel.stream_stream("/a/b")())
    assert channels.newest() is used is None
    await server.stop(None)
