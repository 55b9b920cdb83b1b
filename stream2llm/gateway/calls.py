"""The headers of a request that go on to the router as metadata, where they are judged.

The router admits the caller: by the same API key or token as on gRPC, with the same quotas
and deadlines. The gateway itself decides only whose tenant header counts, because the router
sees the gateway's connection, and no longer the proxy's.
"""

from __future__ import annotations

from collections.abc import Iterator

from starlette.requests import HTTPConnection

from stream2llm.api.call_metadata import TTFT_SLO_NAMES, Metadata
from stream2llm.api.errors import InvalidRequestError, Stream2LLMError
from stream2llm.api.loopback import is_loopback
from stream2llm.security.access import AUTHORIZATION, Peer, Presented
from stream2llm.security.guard import Guard
from stream2llm.security.principal import Principal, Scope

_PASSED_ON = (AUTHORIZATION, *TTFT_SLO_NAMES, "traceparent", "tracestate")


def metadata_of(request: HTTPConnection, guard: Guard) -> Metadata:
    """What goes on with a request's RPC; raises InvalidRequestError for what no RPC can carry."""
    return tuple(_pairs(request, guard))


async def admitted(request: HTTPConnection, guard: Guard, scope: Scope) -> Principal:
    """The caller of a request, by the rules of the routers; raises what refuses it."""
    try:
        return await guard.admit_soon(_presented_by(request, guard), scope)
    except Stream2LLMError as error:
        what = f"{request.scope.get('method', 'WebSocket')} {request.url.path}"
        guard.refused(error, what, request.client.host if request.client else "")
        raise


def _presented_by(request: HTTPConnection, guard: Guard) -> Presented:
    """The credentials of a request, for a guard of this process."""
    tenant = guard.tenant_header
    return Presented(
        request.headers.getlist(AUTHORIZATION),
        request.headers.getlist(tenant) if tenant else (),
        lambda: _peer(request),
    )


def _pairs(request: HTTPConnection, guard: Guard) -> Iterator[tuple[str, str]]:
    names = _PASSED_ON
    proxy = None if guard.access is None else guard.access.proxy
    if proxy is not None and proxy.trusts(_peer(request)):
        names = (*names, proxy.tenant_header)
    for name in names:
        for value in request.headers.getlist(name):
            if not (value.isascii() and value.isprintable()):
                raise InvalidRequestError(
                    f"the header {name} has characters beside printable ASCII", field=name
                )
            yield name, value


def _peer(request: HTTPConnection) -> Peer:
    """Without names: the server does not say which certificate a connection has shown."""
    return Peer(request.client is not None and is_loopback(request.client.host))
