"""Credentials at the HTTP listeners: the controller and the pages of metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client import CollectorRegistry

from stream2llm.cluster.controller_http import SCOPES
from stream2llm.security.certificates import CertificateStore
from stream2llm.security.principal import Scope
from stream2llm.security.tls import http_server_context
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.http.metrics_http import MetricsServer
from stream2llm.serving.settings.security_options import AuthOptions, ProxyOptions
from stream2llm.serving.system.clock import SystemClock
from tests.credentials import Keys
from tests.fakes.controller import a_controller, controller_http
from tests.routes import may
from tests.tls_files import Authority, client_context

# The only routes that need no credentials.
OPEN = {("GET", "/healthz")}
Serve = Callable[..., AbstractAsyncContextManager[str]]


def controller(
    auth: AuthOptions, registry: CollectorRegistry, store: CertificateStore | None = None
) -> AbstractAsyncContextManager[str]:
    guards = Guards(auth, SystemClock())
    registry.register(guards.metrics)
    guard = guards.of("controller")
    return a_controller(lambda: {"ready": True}, registry=registry, store=store, guard=guard)


@asynccontextmanager
async def metrics(
    auth: AuthOptions, registry: CollectorRegistry, store: CertificateStore | None = None
) -> AsyncIterator[str]:
    guards = Guards(auth, SystemClock())
    registry.register(guards.metrics)
    tls = http_server_context(store)
    with MetricsServer("127.0.0.1", 0, registry, tls, guards.of("metrics")) as server:
        yield server.address


each_server = pytest.mark.parametrize("serve", [metrics, controller], ids=lambda s: s.__name__)


async def ask(
    url: str,
    method: str = "GET",
    key: str = "",
    headers: dict[str, str] | None = None,
    tls: object = None,
) -> tuple[int, str]:
    """Status and text of the answer."""
    sent = {**(headers or {}), **({"Authorization": f"Bearer {key}"} if key else {})}
    request = Request(url, method=method, headers=sent, data=b"{}" if method == "PUT" else None)

    def get() -> tuple[int, str]:
        try:
            with urlopen(request, timeout=10, context=tls) as answer:  # type: ignore[arg-type]
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def test_every_route_of_the_controller_needs_its_scope(keys: Keys) -> None:
    auth, registry = keys.security().auth, CollectorRegistry()
    by_scope = {scope: keys.create("a", scope) for scope in Scope}
    app = controller_http(guard=Guards(auth, SystemClock()).of("controller"))._app()
    routes = {
        (route.method, route.resource.canonical) for route in app.router.routes() if route.resource
    }
    routes -= {("HEAD", path) for method, path in routes if method == "GET"}
    assert routes == SCOPES.keys()
    async with controller(auth, registry) as address:
        for method, path in sorted(routes):
            url = f"http://{address}{path}"
            status, text = await ask(url, method)
            if (method, path) in OPEN:
                assert status == 200
                continue
            assert (status, json.loads(text)["reason"]) == (401, "NO_CREDENTIALS")
            for scope, key in by_scope.items():
                status, text = await ask(url, method, key)
                is_let_in = may(scope, SCOPES[method, path])
                assert (status != 403) is is_let_in, (method, path, scope)
                assert status in (200, 400, 403)
        for method, path in (("GET", "/nowhere"), ("DELETE", "/policy"), ("HEAD", "/status")):
            assert (await ask(f"http://{address}{path}", method))[0] == 401
    labels = {"listener": "controller", "reason": "NO_CREDENTIALS"}
    refused = registry.get_sample_value("stream2llm_calls_not_admitted_total", labels)
    assert refused == len(routes - {*OPEN}) + 3


async def test_metrics_need_the_scope_read_on_every_path(keys: Keys) -> None:
    registry = CollectorRegistry()
    async with metrics(keys.security().auth, registry) as address:
        for path in ("/metrics", "/", "/-/anything"):
            assert (await ask(f"http://{address}{path}"))[0] == 401
        assert (await ask(f"http://{address}/metrics", key=keys.create("a")))[0] == 403
        status, text = await ask(f"http://{address}/metrics", key=keys.create("a", Scope.READ))
        assert status == 200
    refused = 'stream2llm_calls_not_admitted_total{listener="metrics",reason="NO_CREDENTIALS"} 3.0'
    assert refused in text


@each_server
async def test_keys_are_read_again_without_a_restart(serve: Serve, keys: Keys) -> None:
    async with serve(keys.security().auth, CollectorRegistry()) as address:
        url = f"http://{address}/metrics"
        key = keys.create("a", Scope.READ)
        assert (await ask(url, key=key))[0] == 200
        good = keys.path.read_bytes()
        keys.path.write_bytes(b"half of a li")
        status, text = await ask(url, key=key)
        assert (status, "stream2llm_keys_reload_failures_total 1.0" in text) == (200, True)
        keys.path.write_bytes(b"")
        assert (await ask(url, key=key))[0] == 401
        keys.path.write_bytes(good)
        assert (await ask(url, key=key))[0] == 200


@each_server
async def test_the_header_of_a_proxy_counts_from_its_certificate_alone(
    serve: Serve, tmp_path: Path
) -> None:
    ours, theirs = Authority(), Authority()
    store = CertificateStore(ours.files(tmp_path / "server", client_ca=theirs))
    proxy = ProxyOptions(tenant_header="x-tenant", peers=("gateway",), scopes=(Scope.READ,))
    async with serve(AuthOptions(proxy=proxy), CollectorRegistry(), store) as address:
        url, tenant = f"https://{address}/metrics", {"X-Tenant": "a"}
        for name, expected in (("gateway", 200), ("intruder", 401)):
            context = client_context(ours, theirs.sign(name), tmp_path)
            assert (await ask(url, headers=tenant, tls=context))[0] == expected
        context = client_context(ours, theirs.sign("gateway"), tmp_path)
        assert (await ask(url, tls=context))[0] == 401


@each_server
async def test_the_header_of_a_proxy_counts_from_loopback_where_that_is_said(serve: Serve) -> None:
    proxy = ProxyOptions(tenant_header="x-tenant", peers=("loopback",), scopes=(Scope.READ,))
    async with serve(AuthOptions(proxy=proxy), CollectorRegistry()) as address:
        url = f"http://{address}/metrics"
        assert (await ask(url, headers={"X-Tenant": "a"}))[0] == 200
        assert (await ask(url, headers={"X-Tenant": "a b"}))[0] == 401
        assert (await ask(url, headers={"X_Tenant": "a"}))[0] == 401
        assert (await ask(url, headers={"X-Other": "a"}))[0] == 401
