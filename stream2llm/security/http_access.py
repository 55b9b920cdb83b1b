"""Credentials of HTTP requests: the same as those of RPCs, for WSGI and aiohttp."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web

from stream2llm.api.errors import NotPermittedError, Stream2LLMError, UnauthenticatedError
from stream2llm.api.loopback import is_loopback
from stream2llm.security.access import AUTHORIZATION, Peer, Presented
from stream2llm.security.guard import Guard
from stream2llm.security.principal import Scope, set_caller

# In the environ of WSGI: what `ssl.SSLSocket.getpeercert` returns, or None.
CERTIFICATE_KEY = "stream2llm.certificate"

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guarded(app: Wsgi, guard: Guard, scope: Scope) -> Wsgi:
    """Lets a request through to `app` if its caller has the scope."""

    def admit_first(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            guard.admit(_presented_to_wsgi(environ, guard), scope)
        except Stream2LLMError as error:
            what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']!r}"
            guard.refused(error, what, environ["REMOTE_ADDR"])
            status = _status_of(error)
            headers = {"Content-Type": "application/json", **_headers_of(error)}
            start_response(f"{status.value} {status.phrase}", list(headers.items()))
            return [json.dumps(answer_of(error)).encode()]
        return app(environ, start_response)

    return admit_first


def middleware(guard: Guard, scopes: Mapping[tuple[str, str], Scope | None]) -> Any:
    """A middleware of aiohttp. `scopes` is by method and path; None: no credentials are needed.

    What is not in it, paths that do not exist too, needs OPERATOR.
    """

    @web.middleware
    async def admit_first(request: web.Request, handler: Handler) -> web.StreamResponse:
        method = "GET" if request.method == "HEAD" else request.method
        scope = scopes.get((method, request.path), Scope.OPERATOR)
        if scope is not None:
            try:
                set_caller(await guard.admit_soon(_presented_to_aiohttp(request, guard), scope))
            except Stream2LLMError as error:
                guard.refused(error, f"{request.method} {request.path!r}", request.remote or "")
                return web.json_response(
                    answer_of(error), status=_status_of(error).value, headers=_headers_of(error)
                )
        return await handler(request)

    return admit_first


def answer_of(error: Stream2LLMError) -> dict[str, Any]:
    """The JSON of a refusal."""
    return {"error": error.message, "reason": error.reason, "field": error.field}


def _status_of(error: Stream2LLMError) -> HTTPStatus:
    if isinstance(error, UnauthenticatedError):
        return HTTPStatus.UNAUTHORIZED
    if isinstance(error, NotPermittedError):
        return HTTPStatus.FORBIDDEN
    return HTTPStatus.SERVICE_UNAVAILABLE


def _headers_of(error: Stream2LLMError) -> dict[str, str]:
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, UnauthenticatedError) else {}


def _presented_to_wsgi(environ: dict[str, Any], guard: Guard) -> Presented:
    def values(name: str) -> list[str]:
        # wsgiref joins headers of one name with a comma.
        value = environ.get(f"HTTP_{name.upper().replace('-', '_')}") if name else None
        return [] if value is None else [value]

    def peer() -> Peer:
        return _peer(environ["REMOTE_ADDR"], environ.get(CERTIFICATE_KEY))

    return Presented(values(AUTHORIZATION), values(guard.tenant_header), peer)


def _presented_to_aiohttp(request: web.Request, guard: Guard) -> Presented:
    header = guard.tenant_header
    tenant = request.headers.getall(header, []) if header else []

    def peer() -> Peer:
        connection = request.get_extra_info("ssl_object")
        return _peer(request.remote or "", connection.getpeercert() if connection else None)

    return Presented(request.headers.getall(AUTHORIZATION, []), tenant, peer)


def _peer(host: str, certificate: Mapping[str, Any] | None) -> Peer:
    """`certificate` as `ssl` shows a verified one; empty or None without."""
    shown = certificate or {}
    subject = (pair for part in shown.get("subject", ()) for pair in part)
    names = {value for key, value in subject if key == "commonName"}
    names |= {value for _, value in shown.get("subjectAltName", ())}
    return Peer(is_loopback(host), frozenset(names))
