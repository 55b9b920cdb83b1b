"""Who may call a router and its workers, over real gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool

from router.service import SCOPES
from stream2llm.api.credentials import ClientSecurity, credentials_of
from stream2llm.api.errors import (
    InvalidRequestError,
    NotPermittedError,
    Stream2LLMError,
    UnauthenticatedError,
    UnavailableError,
)
from stream2llm.api.final_status import FinalStatus
from stream2llm.api.grpc_options import channel_options
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.cli import status
from stream2llm.cli.status import Found
from stream2llm.client import AsyncClient
from stream2llm.security.key_edit import revoke_key
from stream2llm.security.principal import Scope, caller
from stream2llm.serving.settings.security_options import AuthOptions, ProxyOptions, SecurityOptions
from tests.credentials import Keys, sent
from tests.issuer import Issuer, security_of
from tests.issuer import served as served_by
from tests.router_ring import Ring, a_ring, soon
from tests.routes import RPCS, may
from tests.tls_files import Authority

SAMPLING = pb.SamplingParameters(max_tokens=4)
TOKEN = "the-token-of-this-cluster"
# The only methods that need no credentials.
OPEN = {f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")}
REFUSED = "stream2llm_calls_not_admitted_total"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The methods of every gRPC server that starts from now on, by its address."""
    found: dict[Any, list[str]] = {}
    addresses: dict[str, list[str]] = {}
    kind = grpc.aio._server.Server
    add, listen = kind.add_generic_rpc_handlers, kind.add_insecure_port

    def add_and_list(server: Any, handlers: Any) -> None:
        add(server, handlers)
        for handler in handlers:
            service = descriptor_pool.Default().FindServiceByName(handler.service_name())
            paths = [f"/{service.full_name}/{method.name}" for method in service.methods]
            found.setdefault(server, []).extend(paths)

    def listen_and_list(server: Any, address: str) -> int:
        port = listen(server, address)
        addresses[f"{address.rpartition(':')[0]}:{port}"] = found[server]
        return int(port)

    monkeypatch.setattr(kind, "add_generic_rpc_handlers", add_and_list)
    monkeypatch.setattr(kind, "add_insecure_port", listen_and_list)
    return addresses


@pytest.fixture
async def ring(tiny_model: Path, keys: Keys, served: dict[str, list[str]]) -> AsyncIterator[Ring]:
    security = keys.security()
    async with a_ring(tiny_model, security=security, cluster_token=TOKEN) as ring:
        yield ring


async def end_of(address: str, method: str, metadata: Any = None) -> grpc.StatusCode:
    """How a call ends that sends an empty message: with its first answer, or its status."""
    async with grpc.aio.insecure_channel(address, options=channel_options(1 << 20)) as channel:
        call = channel.stream_stream(method)(metadata=metadata)
        final = FinalStatus(call)
        try:
            await soon(call.write(b""))
            await soon(call.done_writing())
            if await soon(call.read()) is not grpc.aio.EOF:
                return grpc.StatusCode.OK
            code: grpc.StatusCode = await soon(call.code())
            return code
        except grpc.aio.AioRpcError as error:
            return (await soon(final.of(error))).code()


async def error_of(call: Any) -> Stream2LLMError:
    """What a call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return from_rpc_error(caught.value)


async def test_no_method_serves_a_caller_without_credentials(
    ring: Ring, served: dict[str, list[str]]
) -> None:
    methods = [(address, each) for address, found in served.items() for each in found]
    assert len(served) == 3  # router, prefill, decode
    health_and_reflection = 3 + 1
    assert len({each for _, each in methods}) == len(RPCS) + health_and_reflection
    assert {*RPCS} < {each for _, each in methods}
    for address, method in methods:
        code = await end_of(address, method)
        if method in OPEN:
            assert code is not grpc.StatusCode.UNAUTHENTICATED, method
        else:
            assert code is grpc.StatusCode.UNAUTHENTICATED, method


async def test_a_method_that_is_not_listed_is_for_operators(ring: Ring, keys: Keys) -> None:
    address = ring.address.grpc_address
    codes = [
        await end_of(address, "/stream2llm.v1.Other/Drain", sent(keys.create("a", scope)))
        for scope in (Scope.SESSION, Scope.READ, Scope.OPERATOR)
    ]
    denied = grpc.StatusCode.PERMISSION_DENIED
    assert codes == [denied, denied, grpc.StatusCode.UNIMPLEMENTED]


async def test_every_listed_method_takes_its_scope_alone(
    ring: Ring, keys: Keys, served: dict[str, list[str]]
) -> None:
    by_scope = {scope: sent(keys.create("a", scope)) for scope in Scope}
    address = ring.address.grpc_address
    for method in served[address]:
        service = method[: method.rfind("/") + 1]
        needed = SCOPES.get(method, SCOPES.get(service))
        for scope, metadata in by_scope.items():
            code = await end_of(address, method, metadata)
            is_let_in = code is not grpc.StatusCode.PERMISSION_DENIED
            assert is_let_in is may(scope, needed), (method, scope)


async def test_a_key_serves_until_it_is_revoked(ring: Ring, keys: Keys) -> None:
    key = keys.create("a")
    async with AsyncClient(ring.address.grpc_address, api_key=key) as client:
        assert (await client.model_info()).model == "tiny"
        async with client.session(prefix="hello ") as session:
            await session.append("quick")
            revoke_key(keys.path, key.split("_")[1])
            # What has begun goes on.
            assert (await session.answer()).token_ids
        with pytest.raises(UnauthenticatedError, match="not valid here") as caught:
            await client.model_info()
    assert caught.value.reason == "BAD_CREDENTIALS"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "NO_CREDENTIALS"),
        (["Bearer s2l_0123456789ab_" + "x" * 43], "BAD_CREDENTIALS"),
        (["Bearer s2l_"], "BAD_CREDENTIALS"),
        (["Bearer a.b.c"], "BAD_CREDENTIALS"),
        (["Bearer "], "BAD_CREDENTIALS"),
        (["Basic {key}"], "BAD_CREDENTIALS"),
        (["{key}"], "BAD_CREDENTIALS"),
        (["Bearer {key}x"], "BAD_CREDENTIALS"),
        (["Bearer {key}", "Bearer {key}"], "BAD_CREDENTIALS"),
    ],
)
async def test_what_is_not_one_valid_key_is_refused_counted_and_logged_without_it(
    ring: Ring, keys: Keys, caplog: pytest.LogCaptureFixture, values: list[str], reason: str
) -> None:
    caplog.set_level(logging.INFO)
    key = keys.create("a")
    metadata = tuple(("authorization", value.format(key=key)) for value in values)
    call = ring.stub.Generate(pb.GenerateRequest(text="x", sampling=SAMPLING), metadata=metadata)
    error = await error_of(call)
    assert isinstance(error, UnauthenticatedError)
    assert error.reason == reason
    labels = {"listener": "grpc", "reason": reason}
    assert ring.router.registry.get_sample_value(REFUSED, labels) == 1
    assert f"reason={reason}" in caplog.text
    assert key.split("_", 2)[2] not in caplog.text + error.message
    assert not ring.prefill.records


async def test_a_refused_stream_is_not_read(ring: Ring) -> None:
    """A caller without credentials cannot fill the router's memory."""
    talk = ring.converse()
    error = from_rpc_error(await talk.failure())  # although nothing was sent
    assert isinstance(error, UnauthenticatedError)


async def test_a_caller_without_the_scope_learns_which_one(ring: Ring, keys: Keys) -> None:
    async with AsyncClient(ring.address.grpc_address, api_key=keys.create("a")) as client:
        with pytest.raises(NotPermittedError, match=r"lacks the scope read.*it has session"):
            await client.server_info()
    async with AsyncClient(
        ring.address.grpc_address, api_key=keys.create("a", Scope.OPERATOR)
    ) as client:
        # The router's own calls to workers carry the cluster's token.
        assert all(worker.ready for worker in (await client.server_info()).workers)
        with pytest.raises(NotPermittedError, match="lacks the scope session"):
            await client.generate("x").answer()


async def test_a_worker_of_another_cluster_is_lost_and_not_the_clients_fault(
    ring: Ring, keys: Keys
) -> None:
    prefill = ring.worker("prefill")
    await prefill.kill()
    prefill._cluster_token = "another one"
    port = int(prefill.address.grpc_address.rpartition(":")[2])
    await prefill.start(port)
    async with AsyncClient(ring.address.grpc_address, api_key=keys.create("a")) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.generate("x", recover=False).answer()
    assert caught.value.reason in ("WORKER_LOST", "NO_PREFILL_WORKER")


async def test_the_cluster_s_token_opens_workers_and_no_router(
    ring: Ring, served: dict[str, list[str]]
) -> None:
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    for address, methods in served.items():
        is_worker = address != ring.address.grpc_address
        for method in methods:
            if method in OPEN:
                continue
            code = await end_of(address, method, sent(TOKEN))
            assert (code is not unauthenticated) is is_worker, method
            assert await end_of(address, method, sent(TOKEN[:-1])) is unauthenticated


# -- a trusted proxy -----------------------------------------------------------------


def proxied(*peers: str, **more: Any) -> SecurityOptions:
    proxy = ProxyOptions(tenant_header="x-tenant", peers=peers)
    return SecurityOptions(auth=AuthOptions(proxy=proxy), **more)


@pytest.mark.parametrize(
    ("values", "reason"),
    [(["b"], None), ([], "NO_CREDENTIALS"), (["a b"], "NO_TENANT"), (["a", "b"], "NO_TENANT")],
)
async def test_a_proxy_of_this_machine_names_the_tenant(
    tiny_model: Path, values: list[str], reason: str | None
) -> None:
    async with a_ring(tiny_model, security=proxied("loopback")) as ring:
        request = pb.GenerateRequest(text="hello", sampling=SAMPLING)
        call = ring.stub.Generate(request, metadata=[("x-tenant", value) for value in values])
        if reason is None:
            assert [m async for m in call][-1].HasField("finished")
            assert ring.record.open.cache_salt == "b"
        else:
            assert (await error_of(call)).reason == reason


async def test_a_proxy_elsewhere_is_known_by_its_certificate(
    tiny_model: Path, tmp_path: Path
) -> None:
    ours, theirs = Authority(), Authority()
    tls = ours.security(tmp_path / "server", theirs).tls
    async with a_ring(tiny_model, security=proxied("gateway", tls=tls)) as ring:
        request = pb.GenerateRequest(text="hello", sampling=SAMPLING)
        for name, is_trusted in (("gateway", True), ("intruder", False)):
            shown = theirs.sign(name)
            credentials = grpc.ssl_channel_credentials(
                ours.signer.certificate_pem, shown.key_pem, shown.certificate_pem
            )
            async with grpc.aio.secure_channel(ring.address.grpc_address, credentials) as channel:
                call = channel.unary_stream(
                    "/stream2llm.v1.StreamingInferenceService/Generate",
                    request_serializer=pb.GenerateRequest.SerializeToString,
                    response_deserializer=pb.GenerateResponse.FromString,
                )(request, metadata=[("x-tenant", "b")])
                if is_trusted:
                    assert [m async for m in call][-1].HasField("finished")
                else:
                    assert (await error_of(call)).reason == "NO_CREDENTIALS"


# -- the client ----------------------------------------------------------------------


async def test_the_environment_s_key_is_sent_unless_another_is_given(
    ring: Ring, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, given = ring.address.grpc_address, iter([keys.create("a"), "expired"])
    monkeypatch.setenv("STREAM2LLM_API_KEY", keys.create("a"))
    async with AsyncClient(address) as client:
        await client.model_info()
    async with AsyncClient(address, api_key="") as client:
        with pytest.raises(UnauthenticatedError, match="needs credentials"):
            await client.model_info()
    async with AsyncClient(address, token=lambda: next(given)) as client:
        await client.model_info()
        with pytest.raises(UnauthenticatedError, match="not valid here"):
            await client.model_info()


def test_no_key_goes_to_another_machine_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s2l_secret"
    for options in ({"api_key": secret}, {"token": secret}, {"token": lambda: secret}):
        AsyncClient("[::1]:50051", **options)
        AsyncClient("10.0.0.1:50051", tls=True, **options)
        with pytest.raises(InvalidRequestError, match=r"10\.0\.0\.1:50051 in plain text") as caught:
            AsyncClient("10.0.0.1:50051", **options)
        assert secret not in caught.value.message
    monkeypatch.setenv("STREAM2LLM_API_KEY", secret)
    with pytest.raises(InvalidRequestError, match="STREAM2LLM_API_KEY"):
        AsyncClient("router.example:50051")
    AsyncClient("router.example:50051", api_key="")
    monkeypatch.setenv("STREAM2LLM_API_KEY", "two words")
    with pytest.raises(InvalidRequestError, match="STREAM2LLM_API_KEY must be") as caught:
        AsyncClient("127.0.0.1:50051")
    assert "words" not in caught.value.message.replace("STREAM2LLM_API_KEY must be", "")


async def test_without_authentication_there_is_one_tenant_without_a_salt(tiny_model: Path) -> None:
    async with a_ring(tiny_model) as ring:
        call = ring.stub.Generate(pb.GenerateRequest(text="hello", sampling=SAMPLING))
        assert [m async for m in call][-1].HasField("finished")
        assert ring.record.open.cache_salt == ""


# -- tokens of an issuer -------------------------------------------------------------


async def test_a_token_is_checked_with_the_issuer_s_keys(tiny_model: Path) -> None:
    issuer = Issuer()
    with served_by(issuer) as jwks:
        async with a_ring(tiny_model, security=security_of(jwks)) as ring:
            address, given = ring.address.grpc_address, [issuer.token()]
            async with AsyncClient(address, token=lambda: given[-1]) as client:
                assert (await client.generate("hello").answer()).token_ids
                assert ring.record.open.cache_salt == "acme"
                given.append(issuer.token(tenant="zeta"))
                assert (await client.generate("hello").answer()).token_ids
                assert ring.record.open.cache_salt == "zeta"
                given.append(issuer.token(scope="s2l:read"))
                with pytest.raises(NotPermittedError):
                    await client.generate("hello").answer()
                given.append(issuer.token(aud="other"))
                with pytest.raises(UnauthenticatedError, match="another audience"):
                    await client.generate("hello").answer()
    assert issuer.num_reads == 1


async def test_status_asks_with_a_key_and_says_what_it_lacks(ring: Ring, keys: Keys) -> None:
    async def find(*scopes: Scope) -> Found:
        credentials = credentials_of(keys.create("a", *scopes) if scopes else "", None)
        address = ring.address.grpc_address
        security = ClientSecurity(credentials=credentials)
        return await asyncio.to_thread(status.find, address, None, 5.0, security)

    assert len((await find(Scope.READ)).router["workers"]) == 2
    with pytest.raises(NotPermittedError, match="lacks the scope read"):
        await find(Scope.SESSION)
    with pytest.raises(UnauthenticatedError, match="needs credentials"):
        await find()


async def test_a_task_that_no_guard_has_admitted_has_no_caller() -> None:
    with pytest.raises(LookupError):
        caller()
