"""Serves one Prometheus registry over HTTP or HTTPS, on a separate port and thread.

Each connection has a thread of its own and a time limit, TLS handshake included: a peer
that connects and says nothing, or too slowly, holds up no other and is gone in the end.
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import threading
from contextlib import suppress
from io import BufferedIOBase
from socketserver import ThreadingMixIn
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app

from stream2llm.api.errors import UnavailableError
from stream2llm.security.guard import Guard
from stream2llm.security.http_access import CERTIFICATE_KEY, guarded
from stream2llm.security.principal import Scope
from stream2llm.serving.system.clock import SystemClock

_log = logging.getLogger(__name__)
# From the connection to the end of the answer.
CONNECTION_LIMIT_S = 30.0


class MetricsServer:
    """Listens from construction until `close`. Port 0 takes any free port; `tls` makes it HTTPS."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry = REGISTRY,
        tls: ssl.SSLContext | None = None,
        guard: Guard | None = None,
        limit_s: float = CONNECTION_LIMIT_S,
    ) -> None:
        """Without a `guard` the page needs no credentials."""
        try:
            self._server = _Server(host, port, registry, tls, guard, limit_s)
        except OSError as error:
            raise UnavailableError(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}"
                " (set metrics_port to another port, or to 0 for any free one)",
                reason="PORT_TAKEN",
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stops listening and waits for the thread; may be called again."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        tls: ssl.SSLContext | None,
        guard: Guard | None,
        limit_s: float,
    ) -> None:
        self._limit_s = limit_s
        self._clock = SystemClock()
        # When each open connection has to end; changed by every thread, one step at a time.
        self._deadlines: dict[socket.socket, float] = {}
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._tls = tls
        super().__init__((host, port), _Handler)
        app = make_wsgi_app(registry)
        self.set_app(app if guard is None else guarded(app, guard, Scope.READ))

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answers one connection, in its own thread."""
        request.settimeout(self._limit_s)
        if self._tls is None:
            self._answer(request, client_address)
            return
        # One that has left already: `wrap_socket` would raise and not close what it has made of it.
        request.getpeername()
        with self._tls.wrap_socket(
            request, server_side=True, do_handshake_on_connect=False
        ) as encrypted:
            self._answer(encrypted, client_address)

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        self._deadlines[request] = self._clock.monotonic_s() + self._limit_s
        try:
            if isinstance(request, ssl.SSLSocket):
                request.do_handshake()
            super().finish_request(request, client_address)
        finally:
            del self._deadlines[request]

    def service_actions(self) -> None:
        """Ends what has taken too long; called twice a second by the listening thread."""
        now_s = self._clock.monotonic_s()
        for request, deadline_s in list(self._deadlines.items()):
            if deadline_s <= now_s:
                with suppress(OSError):  # it has just ended by itself
                    socket.socket.shutdown(request, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs what is an error of ours; peers may speak no TLS, or leave in the middle."""
        if not isinstance(sys.exception(), OSError):  # ssl.SSLError and TimeoutError are
            _log.exception("metrics_request_failed peer=%s", client_address)


class _ToPeer(BufferedIOBase):
    """Writes to a peer. One that leaves in the middle of TLS is gone like any other: wsgiref prints
    a traceback for every error but a ConnectionError."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self._stream.write(data)
        except ssl.SSLError as error:
            raise BrokenPipeError from error


class _Handler(WSGIRequestHandler):
    def setup(self) -> None:
        """Called when the handshake is done."""
        super().setup()
        self.wfile = _ToPeer(self.wfile)
        is_encrypted = isinstance(self.connection, ssl.SSLSocket)
        # After a peer has broken TLS there is none to be had.
        self._verified = self.connection.getpeercert() if is_encrypted else None

    def get_environ(self) -> dict[str, Any]:
        """With the peer's verified certificate; without headers that pass for others.

        An environ spells `-` and `_` alike, so `X_Tenant` would pass for the `X-Tenant` that
        a proxy sets, or removes from what clients send.
        """
        for name in [name for name in self.headers if "_" in name]:
            del self.headers[name]
        return {**super().get_environ(), CERTIFICATE_KEY: self._verified}

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing of each request."""
