"""Credentials of RPCs: a server refuses calls before it reads anything of them.

A refused call gets a handler that never reads; its status says why.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc

from stream2llm.api.errors import Stream2LLMError, UnauthenticatedError
from stream2llm.api.loopback import host_of, is_loopback
from stream2llm.api.rpc_status import abort
from stream2llm.security.access import AUTHORIZATION, Peer, Presented
from stream2llm.security.guard import Guard
from stream2llm.security.principal import Scope, set_caller

_OURS = "/stream2llm."
# The handlers of a namedtuple of gRPC's, of which one is set.
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

Continuation = Callable[[Any], Awaitable[Any]]


class Authenticate(grpc.aio.ServerInterceptor):
    """Admits callers with the scope of the method; must be the first interceptor.

    `scopes` has the scope of each method by its path ("/package.Service/Method", or
    "/package.Service/" for all of one); None: no credentials are needed. Methods that are
    not in it need OPERATOR.
    """

    def __init__(self, guard: Guard, scopes: Mapping[str, Scope | None]) -> None:
        self._guard = guard
        self._scopes = scopes

    async def intercept_service(self, continuation: Continuation, details: Any) -> Any:
        """Returns the method's handler, or one that refuses."""
        scope = self._scope_of(details.method)
        if scope is None:
            return await continuation(details)
        metadata = details.invocation_metadata
        if _values(metadata, self._guard.tenant_header) and details.method.startswith(_OURS):
            return self._admit_later(await continuation(details), metadata, details.method, scope)
        try:
            set_caller(await self._guard.admit_soon(_presented(metadata), scope))
        except Stream2LLMError as error:
            return _refusal(self._guard, error, details.method)
        return await continuation(details)

    def _scope_of(self, method: str) -> Scope | None:
        of_service = method[: method.rfind("/") + 1]
        return self._scopes.get(method, self._scopes.get(of_service, Scope.OPERATOR))

    def _admit_later(self, handler: Any, metadata: Any, method: str, scope: Scope) -> Any:
        """Only the handler has the peer, whom to know the proxy by."""
        if handler is None:
            return None
        kind = next(name for name in _KINDS if getattr(handler, name) is not None)
        serve = getattr(handler, kind)
        tenant = _values(metadata, self._guard.tenant_header)

        async def handle(request: Any, context: Any) -> Any:
            presented = Presented(
                _values(metadata, AUTHORIZATION), tenant, lambda: peer_of(context)
            )
            try:
                set_caller(await self._guard.admit_soon(presented, scope))
            except Stream2LLMError as error:
                self._guard.refused(error, method, context.peer())
                await abort(context, error)
            return await serve(request, context)

        return handler._replace(**{kind: handle})


class RequireClusterToken(grpc.aio.ServerInterceptor):
    """Serves only callers that know the cluster's token: routers and workers of the same start."""

    def __init__(self, guard: Guard, token: str) -> None:
        self._guard = guard
        self._expected = f"Bearer {token}"

    async def intercept_service(self, continuation: Continuation, details: Any) -> Any:
        """Returns the method's handler, or one that refuses."""
        given = _values(details.invocation_metadata, AUTHORIZATION)
        if len(given) == 1 and hmac.compare_digest(given[0].encode(), self._expected.encode()):
            return await continuation(details)
        error = UnauthenticatedError(
            "a worker serves only the routers of its own cluster", reason="NO_CLUSTER_TOKEN"
        )
        return _refusal(self._guard, error, details.method)


def peer_of(context: Any) -> Peer:
    """The other end of an RPC."""
    address = context.peer()  # "ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000", "unix:/path"
    names: list[bytes] = []
    if context.peer_identities() is not None:  # its certificate was verified
        known = context.auth_context()
        for key in ("x509_common_name", "x509_subject_alternative_name"):
            names += known.get(key, ())
    host = host_of(address.replace("%5B", "[").replace("%5D", "]"))
    is_local = address.startswith("unix:") or is_loopback(host)
    return Peer(is_local, frozenset(name.decode("utf-8", "replace") for name in names))


def _presented(metadata: Iterable[Any] | None) -> Presented:
    return Presented(_values(metadata, AUTHORIZATION))


def _values(metadata: Iterable[Any] | None, name: str) -> list[str]:
    """Every value of the header; bytes, which no text header has, count as an empty one."""
    pairs = [(key, value) for key, value in metadata or () if name and key == name]
    return [value if isinstance(value, str) else "" for _, value in pairs]


def _refusal(guard: Guard, error: Stream2LLMError, method: str) -> Any:
    """A handler for any kind of method: it reads nothing."""

    async def refuse(_requests: Any, context: Any) -> None:
        guard.refused(error, method, context.peer())
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
