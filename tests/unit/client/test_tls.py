"""A client's TLS: against real servers, in Python and from the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import Result

from stream2llm.api.credentials import ClientSecurity
from stream2llm.api.errors import InvalidRequestError, UnavailableError
from stream2llm.api.grpc_options import server_options
from stream2llm.api.tls import tls_of
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import inference_pb2_grpc
from stream2llm.client import AsyncClient, Client, ClientTls
from stream2llm.security.certificates import CertificateStore
from stream2llm.security.tls import add_port
from stream2llm.workload.replay.scrape import expanded, metrics_url
from tests.command_lines import cli
from tests.fakes.controller import a_controller
from tests.tls_files import Authority


class Info(inference_pb2_grpc.StreamingInferenceServiceServicer):
    """Says what it serves, and where its controller is."""

    controller = ""

    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.GetModelInfoResponse(model="tiny")

    async def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.GetServerInfoResponse(router_id="router-0", controller_address=self.controller)


@asynccontextmanager
async def a_router(store: CertificateStore | None) -> AsyncIterator[str]:
    """A router and its controller, both with TLS or neither."""
    server = grpc.aio.server(options=server_options(1 << 20))
    servicer = Info()
    async with a_controller(lambda: {"replicas": [], "ready": True}, store=store) as address:
        servicer.controller = address
        inference_pb2_grpc.add_StreamingInferenceServiceServicer_to_server(servicer, server)
        port = add_port(server, "127.0.0.1:0", store, for_peers=False)
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)


@pytest.fixture
def store(authority: Authority, tmp_path: Path) -> CertificateStore:
    return CertificateStore(authority.files(tmp_path))


@pytest.fixture
async def router(store: CertificateStore) -> AsyncIterator[str]:
    async with a_router(store) as address:
        yield address


async def model_of(address: str, **options: Any) -> str:
    async with AsyncClient(address, **options) as client:
        return (await client.model_info()).model


async def test_a_client_trusts_the_authority_in_a_file(
    router: str, store: CertificateStore
) -> None:
    assert await model_of(router, tls=store.files.ca) == "tiny"
    assert await model_of(router, tls=str(store.files.ca)) == "tiny"
    assert await model_of(router, tls=ClientTls(ca=store.files.ca)) == "tiny"
    credentials = grpc.ssl_channel_credentials(store.files.ca.read_bytes())
    assert await model_of(router, credentials=credentials) == "tiny"

    def in_sync() -> str:
        with Client(router, tls=store.files.ca) as client:
            return client.model_info().model

    assert await asyncio.to_thread(in_sync) == "tiny"


@pytest.mark.parametrize(
    ("options", "meaning"),
    [({}, "it may speak TLS"), ({"tls": True}, "is of no authority in tls=")],
)
async def test_a_client_that_does_not_fit_says_what_may_be_wrong(
    options: dict[str, Any], meaning: str, router: str
) -> None:
    with pytest.raises(UnavailableError, match=meaning):
        await model_of(router, **options)


async def test_tls_where_there_is_none_is_explained(store: CertificateStore) -> None:
    async with a_router(None) as address:
        with pytest.raises(UnavailableError, match="the server speaks no TLS there"):
            await model_of(address, tls=store.files.ca)


async def test_a_certificate_that_has_expired_or_is_for_another_name_is_explained(
    router: str, store: CertificateStore, authority: Authority
) -> None:
    authority.renew(store.files, days=-1)
    with pytest.raises(UnavailableError, match="server's certificate has expired"):
        await model_of(router, tls=store.files.ca)
    authority.renew(store.files, "another.name")
    with pytest.raises(UnavailableError, match="is for other names than this address"):
        await model_of(router, tls=store.files.ca)


async def test_a_client_expects_the_name_that_it_is_given(
    router: str, store: CertificateStore, authority: Authority
) -> None:
    authority.renew(store.files, "cluster.example")
    tls = ClientTls(store.files.ca, server_name="cluster.example")
    assert await model_of(router, tls=tls) == "tiny"
    options = ["--address", router, "--tls-ca", str(store.files.ca)]
    named = await command("status", *options, "--tls-server-name", "cluster.example")
    assert named.exit_code == 0, named.output  # over gRPC and HTTP
    assert (await command("status", *options)).exit_code == 4


async def test_a_client_shows_its_certificate(authority: Authority, tmp_path: Path) -> None:
    clients = Authority()
    shown = clients.files(tmp_path / "client")
    store = CertificateStore(authority.files(tmp_path / "server", client_ca=clients))
    async with a_router(store) as address:
        with pytest.raises(UnavailableError, match="ask for a valid certificate of the client"):
            await model_of(address, tls=store.files.ca)
        tls = ClientTls(store.files.ca, shown.certificate, shown.key)
        assert await model_of(address, tls=tls) == "tiny"
        options = ["--tls-ca", str(store.files.ca)]
        pair = ["--tls-cert", str(shown.certificate), "--tls-key", str(shown.key)]
        assert (await command("status", "--address", address, *options)).exit_code == 4
        ended = await command("status", "--address", address, *options, *pair)
        assert ended.exit_code == 0, ended.output


def test_what_is_no_tls_is_refused(tmp_path: Path) -> None:
    assert (tls_of(None), tls_of(False), tls_of(True)) == (None, None, ClientTls())
    for wrong in (7, "", b"ca"):
        with pytest.raises(InvalidRequestError, match=r"tls is .*; it must be True, a path"):
            AsyncClient("127.0.0.1:1", tls=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="nowhere: No such file") as caught:
        AsyncClient("127.0.0.1:1", tls=tmp_path / "nowhere")
    assert caught.value.field == "tls"
    with pytest.raises(InvalidRequestError, match="certificate and its key are needed together"):
        ClientTls(certificate="client.crt")
    with pytest.raises(InvalidRequestError, match="must be None where `tls` is given"):
        AsyncClient("127.0.0.1:1", tls=True, credentials=grpc.ssl_channel_credentials())


async def command(*args: str, **variables: str) -> Result:
    return await asyncio.to_thread(cli, *args, env=variables)


async def test_commands_ask_the_router_and_the_controller_over_tls(
    router: str, store: CertificateStore
) -> None:
    ca = str(store.files.ca)
    shown = await command("status", "--address", router, "--tls-ca", ca)
    assert (shown.exit_code, "router-0" in shown.stdout) == (0, True), shown.output
    by_variable = await command("status", "--address", router, STREAM2LLM_TLS_CA=ca)
    assert by_variable.stdout == shown.stdout
    async with AsyncClient(router, tls=ca) as client:
        controller = (await client.server_info()).controller_address
    for words in (["policy"], ["workers", "retry"]):
        asked = [*words, "--controller", controller]
        assert (await command(*asked, "--tls-ca", ca)).exit_code == 0
        refused = await command(*asked)
        assert refused.exit_code == 4
        assert "it may speak TLS (tls=, --tls-ca)" in refused.output
    untrusted = await command("policy", "--controller", controller, "--tls-ca", "system")
    assert "is of no authority in tls=, --tls-ca" in untrusted.output


async def test_doctor_asks_the_controller_over_tls(router: str, store: CertificateStore) -> None:
    async with AsyncClient(router, tls=store.files.ca) as client:
        controller = (await client.server_info()).controller_address
    asked = ["doctor", "--fast", "--json", "--controller", controller]

    async def found(*options: str) -> list[tuple[str, str]]:
        findings = json.loads((await command(*asked, *options)).stdout)["findings"]
        of_interest = ("cluster", "clock")
        return [(each["level"], each["what"]) for each in findings if each["what"] in of_interest]

    options = ("--tls-ca", str(store.files.ca))
    assert await found(*options) == [("ok", "clock"), ("ok", "cluster")]
    assert await found() == [("problem", "cluster")]


async def test_generate_and_replay_take_the_same_options(
    router: str, store: CertificateStore, tmp_path: Path
) -> None:
    (tmp_path / "document.txt").write_text("text")
    ask = ["generate", "-q", "?", "--address", router, str(tmp_path / "document.txt")]
    refused = await command(*ask)
    assert (refused.exit_code, "it may speak TLS" in refused.output) == (4, True)
    # It got as far as asking the session of a router that has none.
    reached = await command(*ask, "--tls-ca", str(store.files.ca))
    assert "UNIMPLEMENTED" in reached.output
    alone = await command(*ask, "--tls-cert", "c", "--tls-key", "k")
    assert (alone.exit_code, "need --tls-ca" in alone.output) == (2, True)
    half = await command(*ask, "--tls-ca", "x", "--tls-cert", "c")
    assert (half.exit_code, "are needed together" in half.output) == (3, True)


async def test_metrics_are_found_over_tls(router: str, store: CertificateStore) -> None:
    tls = ClientTls(ca=store.files.ca)
    security = ClientSecurity(tls)
    assert metrics_url("h:1", security) == "https://h:1/metrics"
    assert metrics_url("http://h:1", security) == "http://h:1/metrics"
    async with AsyncClient(router, tls=tls) as client:
        controller = (await client.server_info()).controller_address
    assert await expanded([f"{controller}/sd"], security) == []
    with pytest.raises(OSError):
        await expanded([f"http://{controller}/sd"], security)
