"""A whole cluster with TLS and API keys on a real Ray; its workers have no engine.

Its parts have certificates of one authority, its clients of another one, and a key. Every listener
of the cluster is asked, by its clients and by those who are none.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import grpc
import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from openai.types.chat import ChatCompletionMessageParam

from stream2llm.api.credentials import ClientSecurity, credentials_of
from stream2llm.api.errors import UnauthenticatedError, UnavailableError
from stream2llm.api.tls import ClientTls, http_context
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.client import AsyncClient, SamplingParameters, TokenDelta
from stream2llm.client.channels import channel_credentials
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config_file import parse_config
from stream2llm.cluster.controller_http import SCOPES as CONTROLLER_SCOPES
from stream2llm.cluster.layout import Factories
from stream2llm.security.principal import Scope
from stream2llm.security.tls_files import TlsFiles
from stream2llm.serving.http.own_http import open_url
from stream2llm.workload.traces.format import Content, Document, Event
from stream2llm.workload.traces.write import write_trace
from tests import prometheus
from tests.command_lines import cli
from tests.credentials import Keys
from tests.listening import NOT_THERE, RAY_CALLS, Listener, codes_of, listeners, page_of
from tests.polling import eventually
from tests.routes import GATEWAY_SCOPES, RPCS
from tests.tiny_model import make_tiny_model
from tests.tls_files import Authority, certificate_of, client_context, der
from tests.traces import a_header, a_session

# The same over one connection each is in tests/unit/security and tests/unit/router.
pytestmark = pytest.mark.slow

READY_S = 120.0
SAMPLING = SamplingParameters(max_tokens=4)
WORKER = "tests.fakes.answering_workers:AnsweringWorker"
# Our routes, by the scope that they need.
SCOPES = {**CONTROLLER_SCOPES, **GATEWAY_SCOPES}
ROUTES = {(method, path.format(name="tiny")) for method, path in SCOPES if method != "WS"}
# Those of Ray's dashboard, and of its job agent.
ROUTES_OF_RAY = {("GET", path) for path in ("/", "/api/jobs/", "/api/job_agent/jobs/", "/nodes")}
# 0: no HTTP.
NO_PAGE = {0, 400, 401, 403, 404, 405}
FACTORIES = Factories(prefill=WORKER, decode=WORKER)


@dataclass(frozen=True, slots=True)
class Encrypted:
    """The cluster, who signs, and what a client of it has."""

    cluster: Cluster
    authority: Authority
    files: TlsFiles
    client: ClientTls
    # A client of another authority: the cluster's own, which is for its parts alone.
    part: ClientTls
    # With the client's key, which may do everything.
    key_file: Path

    @property
    def key(self) -> str:
        return self.key_file.read_text()

    @property
    def router(self) -> str:
        return self.cluster.router_addresses[0]

    def addresses(self, what: str) -> list[str]:
        """The addresses of all replicas; `what` is grpc_address or metrics_address."""
        replicas = self.cluster.status()["replicas"]
        return [each["address"][what] for each in replicas if what in each["address"]]

    @property
    def workers(self) -> list[str]:
        """Where prefill and decode listen for routers."""
        return [each for each in self.addresses("grpc_address") if each != self.router]

    @property
    def http(self) -> list[str]:
        """Every HTTP listener."""
        return [self.cluster.http_address, *self.addresses("metrics_address")]


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("encrypted")
    authority, clients = Authority(), Authority()
    security = authority.security(folder / "cluster", clients)
    model = make_tiny_model(folder / "model")
    keys, key_file = Keys(folder), folder / "key"
    key_file.write_text(keys.create("a", *Scope))
    ca = security.tls.ca
    client, part = clients.client(folder / "client", ca), authority.client(folder / "part", ca)
    shown = {"client_certificate": client.certificate, "client_key": client.key}
    config = parse_config(
        {
            "model": str(model),
            "served_model_name": "tiny",
            "router": {"port": 0, "drain_timeout_s": 5},
            "gateway": {"port": 0, **shown},
            "prefill": {"num_cpus": 0.1, "engine": {"num_gpu_blocks_override": 8}},
            "decode": {"num_cpus": 0.1, "engine": {"num_gpu_blocks_override": 8}},
            "handover": "at_seal",
            "controller": {"http_port": 0},
            "security": {**security.model_dump(), "auth": {"keys_file": keys.path}},
        },
        source="test",
    )
    with Cluster.start(config, factories=FACTORIES) as cluster:
        cluster.wait_ready(READY_S)
        yield Encrypted(cluster, authority, security.tls.files, client, part, key_file)


async def tokens_of(router: str, tls: ClientTls | None, key: str = "") -> list[int]:
    """The answer to a session that streams its context in."""
    async with (
        AsyncClient(router, tls=tls, api_key=key) as client,
        client.session(prefix="hello ", sampling=SAMPLING) as session,
    ):
        await session.append("quick")
        await session.append("brown")
        events = [event async for event in session.seal()]
    return [token for each in events if isinstance(each, TokenDelta) for token in each.token_ids]


async def test_a_session_streams_over_tls(encrypted: Encrypted) -> None:
    assert len(await tokens_of(encrypted.router, encrypted.client, encrypted.key)) == 4


async def test_a_client_without_a_key_is_refused(encrypted: Encrypted) -> None:
    with pytest.raises(UnauthenticatedError):
        await tokens_of(encrypted.router, encrypted.client)


@pytest.mark.parametrize("who", ["plain text", "no certificate", "one of the cluster's authority"])
async def test_a_router_refuses_whoever_is_no_client(encrypted: Encrypted, who: str) -> None:
    shown = {
        "plain text": None,
        "no certificate": ClientTls(encrypted.client.ca),
        "one of the cluster's authority": encrypted.part,
    }
    with pytest.raises(UnavailableError, match="hung up in the handshake"):
        await tokens_of(encrypted.router, shown[who])


def channel(address: str, tls: ClientTls | None) -> grpc.aio.Channel:
    """As a client has it, to a worker's address."""
    if tls is None:
        return grpc.aio.insecure_channel(address)
    return grpc.aio.secure_channel(address, channel_credentials(tls))


async def status_of(address: str, tls: ClientTls | None) -> str:
    """The name that a worker says it has."""
    async with channel(address, tls) as opened:
        stub = worker_pb2_grpc.WorkerServiceStub(opened)
        response = await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest(), timeout=30)
    return str(response.worker.worker_id)


async def test_workers_answer_parts_of_the_cluster_alone(encrypted: Encrypted) -> None:
    answered = [await status_of(address, encrypted.part) for address in encrypted.workers]
    assert sorted(answered) == ["decode-0", "prefill-0"]
    for address in encrypted.workers:
        for tls in (None, ClientTls(encrypted.client.ca), encrypted.client):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await status_of(address, tls)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def page(url: str, tls: ClientTls | None, key: str = "") -> str:
    with open_url(url, 30, ClientSecurity(tls, credentials_of(key, None))) as answer:
        return str(answer.read(), "utf-8")


def test_every_page_is_for_clients_over_tls(encrypted: Encrypted) -> None:
    assert len(encrypted.http) == 5
    for address in encrypted.http:
        assert "# TYPE" in page(f"https://{address}/metrics", encrypted.client, encrypted.key)
        with pytest.raises(HTTPError, match="401"):
            page(f"https://{address}/metrics", encrypted.client)
        for tls in (ClientTls(encrypted.client.ca), encrypted.part):
            with pytest.raises(OSError):
                page(f"https://{address}/metrics", tls, encrypted.key)
        with pytest.raises(OSError):
            page(f"http://{address}/metrics", None)
    url = f"https://{encrypted.cluster.http_address}/sd"
    groups = json.loads(page(url, encrypted.client, encrypted.key))
    assert {group["labels"]["__scheme__"] for group in groups} == {"https"}


# Their pages of metrics, which Ray gives no token, answer every path.
METRICS_OF_RAY = {"ray::DashboardAgent", "dashboard.py", "monitor.py"}


def test_no_listener_serves_plain_text_without_credentials(encrypted: Encrypted) -> None:
    """Ours and those of Ray's processes: no RPC, and no page but counts of Ray's."""
    found = listeners(encrypted.cluster.cluster_id)
    assert {encrypted.router, *encrypted.workers, *encrypted.http} <= {x.address for x in found}
    served = [what for listener in found for what in served_by(listener)]
    assert not served, "\n".join(served)


def served_by(listener: Listener) -> Iterator[str]:
    """The RPCs and pages that a listener gives to anyone, without those of METRICS_OF_RAY."""
    refusals = {grpc.StatusCode.UNAUTHENTICATED, *NOT_THERE}
    for call, code in codes_of(listener, (*RPCS, *RAY_CALLS)):
        if code not in refusals:
            yield f"{listener} {call} {code}"
    for method, path in sorted(ROUTES | ROUTES_OF_RAY):
        status, text = page_of(listener, path, method)
        # None yet, or as Prometheus reads them.
        is_count = listener.process in METRICS_OF_RAY and text[:2].strip() in (b"", b"#")
        if status not in NO_PAGE and not is_count:
            yield f"{listener} {method} {path} {status} {text[:80]!r}"


def test_no_rpc_of_a_router_is_served_over_tls_without_a_key(encrypted: Encrypted) -> None:
    """The handshake succeeds. Real workers are in `test_listening.py`: these here know no token."""
    (router,) = [
        x for x in listeners(encrypted.cluster.cluster_id) if x.address == encrypted.router
    ]
    codes = {code for _, code in codes_of(router, RPCS, encrypted.client)}
    assert codes == {grpc.StatusCode.UNAUTHENTICATED}


def test_no_page_is_served_over_tls_without_a_key(encrypted: Encrypted) -> None:
    gateway = urlsplit(encrypted.cluster.gateway_urls[0]).netloc
    asked = [x for x in listeners(encrypted.cluster.cluster_id) if x.address in encrypted.http]
    assert len(asked) == len(encrypted.http)
    for listener in asked:
        statuses = {
            (method, path): page_of(listener, path, method, encrypted.client)[0]
            for method, path in ROUTES
        }
        # A gateway says first what it does not serve, and what is no request.
        allowed = {401, 400, 404, 405} if listener.address == gateway else {401}
        served = {route for route, status in statuses.items() if status not in allowed}
        assert served <= {route for route, scope in SCOPES.items() if scope is None}, listener
        assert 401 in statuses.values(), listener


def commands(encrypted: Encrypted, folder: Path) -> dict[str, list[str]]:
    """Every command that asks a running cluster and changes nothing of it."""
    router = ["--address", encrypted.router]
    controller = ["--controller", encrypted.cluster.http_address]
    document, trace = folder / "document.txt", folder / "trace.jsonl"
    document.write_text("quick brown")
    texts = {"prefix": Content(text="hello "), "suffix": Content(text="quick")}
    documents, events = (Document("a", "brown", 1),), (Event(0, "append", ("a",)), Event(0, "seal"))
    write_trace(trace, a_header(), [a_session(documents=documents, events=events, **texts)])
    return {
        "status": [*router, *controller],
        "top": ["--once", "--interval", "0.1", *controller],
        "policy": controller,
        "generate": ["-q", "hello", "--prefix", "quick ", *router, str(document)],
        "bench replay": ["-t", str(trace), "-o", str(folder / "out"), *router, "--max-tokens", "2"],
    }


@pytest.mark.parametrize("has_key", [True, False], ids=["with a key", "without"])
def test_commands_ask_over_tls_and_with_a_key(
    encrypted: Encrypted, tmp_path: Path, has_key: bool
) -> None:
    tls = encrypted.client
    options = ["--tls-ca", tls.ca, "--tls-cert", tls.certificate, "--tls-key", tls.key]
    options += ["--api-key-file", encrypted.key_file] if has_key else []
    ended = {
        name: cli(*name.split(), *words, *options)
        for name, words in commands(encrypted, tmp_path).items()
    }
    output = {name: result.output for name, result in ended.items()}
    succeeded = {name for name, result in ended.items() if result.exit_code == 0}
    assert succeeded == (set(ended) if has_key else set()), output
    if has_key:
        assert "4 of 4 ready" in output["top"]
        assert "no answer" not in output["top"]


async def test_prometheus_scrapes_every_process_over_tls(
    encrypted: Encrypted, tmp_path: Path
) -> None:
    address, tls = encrypted.cluster.http_address, encrypted.client
    with prometheus.running(address, tmp_path, tls, encrypted.key_file) as server:

        async def targets() -> dict[str, str]:
            found = await asyncio.to_thread(server.query, "up")
            return {each["metric"]["worker"]: each["value"][1] for each in found}

        names = ("controller", "decode-0", "gateway-0", "prefill-0", "router-0")
        wanted = dict.fromkeys(names, "1")
        await eventually(targets, lambda now: now == wanted, 60.0)


async def chat_of(encrypted: Encrypted, key: str) -> str:
    """What OpenAI's own SDK gets of the gateway."""
    context = http_context(encrypted.client)
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
    async with AsyncOpenAI(
        base_url=encrypted.cluster.gateway_urls[0],
        api_key=key,
        http_client=DefaultAsyncHttpxClient(verify=context),
    ) as sdk:
        done = await sdk.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
        stream = await sdk.chat.completions.create(
            model="tiny", messages=messages, max_tokens=4, stream=True
        )
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert streamed == done.choices[0].message.content
    return streamed


async def test_openai_s_sdk_is_answered_over_https_and_by_a_gateway_s_successor(
    encrypted: Encrypted,
) -> None:
    answer = await chat_of(encrypted, encrypted.key)
    with pytest.raises(openai.AuthenticationError):
        await chat_of(encrypted, "none")
    status = encrypted.cluster.status()
    gateway = next(each for each in status["replicas"] if each["role"] == "gateway")
    for pid in gateway["address"]["pids"]:
        os.kill(pid, signal.SIGKILL)

    async def restarts() -> int:
        found = await asyncio.to_thread(encrypted.cluster.status)
        one = next(each for each in found["replicas"] if each["role"] == "gateway")
        return one["restarts"] if one["phase"] == "ready" else 0

    await eventually(restarts, lambda count: count == 1, 60.0)
    await asyncio.to_thread(encrypted.cluster.wait_ready, READY_S)
    assert await chat_of(encrypted, encrypted.key) == answer


async def test_a_certificate_is_replaced_everywhere_while_a_session_is_open(
    encrypted: Encrypted, tmp_path: Path
) -> None:
    async with (
        AsyncClient(encrypted.router, tls=encrypted.client, api_key=encrypted.key) as client,
        client.session(prefix="hello ", sampling=SAMPLING) as session,
    ):
        await session.append("quick")
        signed = encrypted.authority.renew(encrypted.files)
        context = client_context(encrypted.authority, None, tmp_path)
        clients = (encrypted.client, [encrypted.router, *encrypted.http])
        for tls, addresses in (clients, (encrypted.part, encrypted.workers)):
            context.load_cert_chain(str(tls.certificate), str(tls.key))
            for address in addresses:
                shown = await asyncio.to_thread(certificate_of, address, context)
                assert shown == der(signed), address
        assert len(await tokens_of(encrypted.router, encrypted.client, encrypted.key)) == 4
        await session.append("brown")
        events = [event async for event in session.seal()]
    assert sum(len(each.token_ids) for each in events if isinstance(each, TokenDelta)) == 4


def test_a_name_that_no_address_has_is_expected_where_it_is_asked_for(encrypted: Encrypted) -> None:
    url = f"https://{encrypted.cluster.http_address}/healthz"
    with pytest.raises(OSError, match="certificate is not valid for 'other'"):
        page(url, replace(encrypted.client, server_name="other"))
    assert page(url, replace(encrypted.client, server_name="localhost"))
