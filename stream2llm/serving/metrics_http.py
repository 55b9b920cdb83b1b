"""Serves one Prometheus registry over HTTP, on a separate port."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from stream2llm.api.errors import UnavailableError


class MetricsServer:
    """Listens from construction until `close`. Port 0 takes any free port."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry = REGISTRY) -> None:
        self._server: WSGIServer
        self._thread: threading.Thread
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise UnavailableError(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}"
                " (set metrics_port to another port, or to 0 for any free one)",
                reason="PORT_TAKEN",
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stops listening and waits for the thread; may be called again."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
