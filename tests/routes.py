"""Every RPC of a cluster, every HTTP route of its gateways, and what these ask of their caller."""

from __future__ import annotations

from typing import Any, cast

from fastapi.routing import APIRoute
from starlette.routing import Route, WebSocketRoute

from stream2llm.api.v1 import inference_pb2, worker_pb2
from stream2llm.gateway.app import create_app
from stream2llm.gateway.lanes.routes import lanes_routes
from stream2llm.security.principal import Principal, Scope

# Calls of these have no listener: `MultiplexService.Connect` carries them.
_CARRIED = ("PrefillService", "DecodeService")
# Those that routers, prefill and decode workers listen for.
RPCS = tuple(
    f"/{service.full_name}/{method.name}"
    for file in (inference_pb2, worker_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    if service.name not in _CARRIED
    for method in service.methods
)
# At a gateway the router judges what answers. WS: a WebSocket.
GATEWAY_SCOPES: dict[tuple[str, str], Scope | None] = {
    ("GET", "/health"): None,
    # The schema of the routes, which is public.
    ("GET", "/openapi.json"): None,
    ("GET", "/metrics"): Scope.READ,
    ("GET", "/v1/models"): Scope.SESSION,
    ("GET", "/v1/models/{name}"): Scope.SESSION,
    ("POST", "/v1/chat/completions"): Scope.SESSION,
    ("POST", "/v1/completions"): Scope.SESSION,
    ("POST", "/v1/responses"): Scope.SESSION,
    ("WS", "/v1/responses"): Scope.SESSION,
}


def gateway_routes() -> set[tuple[str, str]]:
    """Method and path of each route of a gateway's application, as GATEWAY_SCOPES has them."""
    nothing = cast(Any, None)
    found: set[tuple[str, str]] = set()
    for route in create_app(nothing, lanes_routes(nothing)).routes:
        assert isinstance(route, APIRoute | Route | WebSocketRoute), route
        path = route.path.replace(":path}", "}")
        if isinstance(route, WebSocketRoute):
            found.add(("WS", path))
        else:
            found |= {(method, path) for method in route.methods or () if method != "HEAD"}
    return found


def may(scope: Scope, needed: Scope | None) -> bool:
    """Whether a caller with one scope gets what needs another one; None: what needs none."""
    return needed is None or Principal("a test", "a", frozenset({scope})).may(needed)
