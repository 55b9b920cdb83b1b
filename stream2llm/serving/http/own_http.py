"""HTTP requests to our own servers: the controller, and pages of metrics.

They never use a proxy: `http_proxy` is meant for the outside, and a proxy there reaches
neither a loopback address nor a cluster's own network.
"""

from __future__ import annotations

from http.client import HTTPException
from typing import Any
from urllib.request import BaseHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.api.tls import explained, http_context

# What `open_url` and reading its answer may raise: no connection, no HTTP, no text or JSON.
UNREAD = (OSError, HTTPException, ValueError)


def open_url(url: str | Request, timeout_s: float, security: ClientSecurity = PLAIN) -> Any:
    """Like `urllib.request.urlopen`, with its errors, but bypasses every proxy.

    TLS is for https addresses; None trusts the authorities of this machine. Raises
    InvalidRequestError rather than send credentials to another machine in plain text; they do
    not follow a redirection.
    """
    request = url if isinstance(url, Request) else Request(url)
    credentials, tls = security.credentials, security.tls
    credentials.require_encryption(request.host, is_encrypted=request.type == "https")
    for name, value in credentials.headers().items():
        request.add_unredirected_header(name, value)
    handlers: list[BaseHandler] = [ProxyHandler({})]
    if tls is not None:
        handlers.append(HTTPSHandler(context=http_context(tls)))
    return build_opener(*handlers).open(request, timeout=timeout_s)


def why_unread(error: Exception) -> str:
    """One of `UNREAD` in words, with what a failed handshake probably means."""
    return explained(str(getattr(error, "reason", error))) or type(error).__name__
