"""Callers, tenants, deadlines and encryption hold over HTTP as on gRPC: the router decides."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import websockets
from openai import AsyncOpenAI

from stream2llm.api.call_metadata import TTFT_SLO_NAMES
from stream2llm.api.tls import http_context
from stream2llm.security.principal import Scope
from stream2llm.serving.settings.security_options import AuthOptions, ProxyOptions, SecurityOptions
from stream2llm.serving.settings.tenant_options import TenantOptions, TenantsOptions
from tests.credentials import Keys
from tests.gateway_ring import GatewayRing
from tests.lane_client import PREPARED
from tests.router_ring import soon
from tests.routes import GATEWAY_SCOPES, gateway_routes, may
from tests.tls_files import Authority

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "tiny", "messages": HELLO}
CHAT_PATH = "/v1/chat/completions"
Make = Callable[..., Any]


async def test_the_router_admits_by_key(make_gateway: Make, keys: Keys) -> None:
    key, reader = keys.create("acme"), keys.create("acme", Scope.READ)
    gateway: GatewayRing = await make_gateway(security=keys.security())
    for given, error in (
        ("s2l_nonsense", openai.AuthenticationError),
        (reader, openai.PermissionDeniedError),
    ):
        async with AsyncOpenAI(base_url=gateway.base_url, api_key=given) as sdk:
            for call in (sdk.models.list(), sdk.chat.completions.create(**CHAT)):
                with pytest.raises(error):
                    await call
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=key) as sdk:
        done = await sdk.chat.completions.create(**CHAT)
        assert gateway.ring.record.open.cache_salt == "acme"
        assert gateway.ring.record.open.session_id == done.id == done._request_id
    async with gateway.http() as http, http.post(CHAT_PATH, json=CHAT) as response:
        assert response.status == HTTPStatus.UNAUTHORIZED
        assert response.headers["WWW-Authenticate"] == "Bearer"


BODIES = {
    CHAT_PATH: CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "hello"},
    "/v1/responses": {"model": "tiny", "input": "hello"},
}


async def status_of(http: aiohttp.ClientSession, method: str, path: str, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if method != "WS":
        async with http.request(method, path, json=BODIES.get(path), headers=headers) as response:
            return response.status
    try:
        async with http.ws_connect(path, headers=headers):
            return HTTPStatus.OK
    except aiohttp.WSServerHandshakeError as refused:
        return refused.status


async def test_every_route_needs_its_scope(make_gateway: Make, keys: Keys) -> None:
    assert gateway_routes() == GATEWAY_SCOPES.keys()
    by_scope = {scope: keys.create("acme", scope) for scope in Scope}
    gateway: GatewayRing = await make_gateway(security=keys.security())
    async with gateway.http() as http:
        for (method, template), needed in GATEWAY_SCOPES.items():
            path = template.format(name="tiny")
            without = HTTPStatus.OK if needed is None else HTTPStatus.UNAUTHORIZED
            assert await status_of(http, method, path, "") == without, (method, path)
            for scope, key in by_scope.items():
                wanted = HTTPStatus.OK if may(scope, needed) else HTTPStatus.FORBIDDEN
                assert await status_of(http, method, path, key) == wanted, (method, path, scope)


async def test_quotas_are_those_of_the_caller_s_tenant(make_gateway: Make, keys: Keys) -> None:
    small, large = keys.create("small"), keys.create("large")
    tenants = TenantsOptions(named={"small": TenantOptions(max_held_tokens=3)})
    gateway: GatewayRing = await make_gateway(security=keys.security(tenants=tenants))
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=small, max_retries=0) as sdk:
        with pytest.raises((openai.RateLimitError, openai.BadRequestError)) as caught:
            await sdk.chat.completions.create(**CHAT)
        assert "quota" in caught.value.message
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=large) as sdk:
        assert (await sdk.chat.completions.create(**CHAT)).choices


async def test_a_gateway_s_deadline_goes_on(gateway: GatewayRing) -> None:
    for name in TTFT_SLO_NAMES:
        await deadline_goes_on(gateway, name)


async def deadline_goes_on(gateway: GatewayRing, name: str) -> None:
    async with gateway.http() as http:
        async with http.post(CHAT_PATH, json=CHAT, headers={name: "60000"}) as response:
            assert response.status == HTTPStatus.OK
        assert 0 < gateway.ring.record.ttft_left_ms <= 60_000
        async with http.post(CHAT_PATH, json=CHAT, headers={name: "soon"}) as response:
            assert response.status == HTTPStatus.BAD_REQUEST
            assert (await response.json())["error"]["param"] == name


def behind_a_proxy(*peers: str) -> SecurityOptions:
    proxy = ProxyOptions(tenant_header="x-tenant", peers=peers)
    return SecurityOptions(auth=AuthOptions(proxy=proxy))


async def test_a_trusted_proxy_of_this_machine_names_the_tenant(make_gateway: Make) -> None:
    gateway: GatewayRing = await make_gateway(security=behind_a_proxy("loopback"))
    async with gateway.http() as http:
        async with http.post(CHAT_PATH, json=CHAT, headers={"X-Tenant": "acme"}) as response:
            assert response.status == HTTPStatus.OK
        assert gateway.ring.record.open.cache_salt == "acme"
        async with http.post(CHAT_PATH, json=CHAT) as response:
            assert response.status == HTTPStatus.UNAUTHORIZED


async def test_the_header_of_other_peers_does_not_count(
    make_gateway: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller from another machine: the router sees only the gateway, which is on its own."""
    monkeypatch.setattr("stream2llm.gateway.calls.is_loopback", lambda host: False)
    gateway: GatewayRing = await make_gateway(security=behind_a_proxy("loopback"))
    async with gateway.http() as http:
        for name in ("X-Tenant", "X_Tenant"):
            async with http.post(CHAT_PATH, json=CHAT, headers={name: "acme"}) as response:
                assert response.status == HTTPStatus.UNAUTHORIZED


async def test_what_no_rpc_can_carry_is_refused(gateway: GatewayRing) -> None:
    async with gateway.http() as http:
        headers = {"Authorization": "Bearer \u00e9"}
        async with http.get("/v1/models", headers=headers) as response:
            assert response.status == HTTPStatus.BAD_REQUEST
            assert (await response.json())["error"]["param"] == "authorization"


async def test_the_trace_of_the_caller_goes_on(gateway: GatewayRing) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    async with gateway.http() as http, http.post(CHAT_PATH, json=CHAT, headers=headers) as response:
        assert response.status == HTTPStatus.OK
    assert trace_id in gateway.ring.record.metadata["traceparent"]


async def test_https_with_the_cluster_s_certificates(
    make_gateway: Make, authority: Authority, tmp_path: Path
) -> None:
    security = authority.security(tmp_path / "tls")
    gateway: GatewayRing = await make_gateway(security=security)
    trusting = ssl.create_default_context(cafile=str(security.tls.ca))
    async with gateway.http() as http, http.post(CHAT_PATH, json=CHAT, ssl=trusting) as response:
        assert response.status == HTTPStatus.OK


async def test_streamed_context_over_tls(
    make_gateway: Make, authority: Authority, tmp_path: Path
) -> None:
    security = authority.security(tmp_path / "tls")
    gateway: GatewayRing = await make_gateway(security=security)
    trusting = ssl.create_default_context(cafile=str(security.tls.ca))
    url = f"wss{gateway.base_url.removeprefix('https')}/responses"
    async with websockets.connect(url, ssl=trusting, proxy=None) as connection:
        prepared = {"type": "response.create", "input": "hello", "generate": False}
        await connection.send(json.dumps({**prepared, "model": "tiny"}))
        events = [json.loads(await soon(connection.recv()))["type"] for _ in range(2)]
    assert events == PREPARED
    with pytest.raises(ssl.SSLCertVerificationError):
        await websockets.connect(url, ssl=ssl.create_default_context(), proxy=None)
    with pytest.raises((websockets.InvalidMessage, OSError)):
        await websockets.connect(url.replace("wss", "ws"), proxy=None)


async def test_where_clients_show_certificates_the_gateway_shows_one_too(
    make_gateway: Make, authority: Authority, tmp_path: Path
) -> None:
    clients = Authority()
    security = authority.security(tmp_path / "tls", clients)
    client = clients.client(tmp_path / "client", security.tls.ca)
    gateway: GatewayRing = await make_gateway(security=security, shown=client)
    async with gateway.http() as http:
        own = http_context(client)
        async with http.post(CHAT_PATH, json=CHAT, ssl=own) as response:
            assert response.status == HTTPStatus.OK
        without = ssl.create_default_context(cafile=str(security.tls.ca))
        with pytest.raises(aiohttp.ClientError):
            await http.post(CHAT_PATH, json=CHAT, ssl=without)
