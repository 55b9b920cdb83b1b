"""gRPC's health service of a router, which answers without credentials, and of a worker.

Bounded, because of that: only services that there are can be watched, so many at a time, and a
watcher that does not read holds up no other and no drain. (The servicer of `grpc_health` writes
to a watcher inside the lock under which the status changes, and keeps a request for each.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
MAX_WATCHERS = 4096


class HealthService(health_pb2_grpc.HealthServicer):
    """One status for all of the server's services; not serving at first."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services)
        self._is_serving = False
        self._is_draining = False
        self._num_watchers = 0
        # Set, and replaced, when the present status changes.
        self._changed = asyncio.Event()

    def set(self, *, is_serving: bool) -> None:
        """Changes the status, unless the server drains."""
        if is_serving != self._is_serving and not self._is_draining:
            self._is_serving = is_serving
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def drain(self) -> None:
        """Not serving, for good."""
        self.set(is_serving=False)
        self._is_draining = True

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that is not here."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return self._response()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """The status now and at each change, until the caller leaves."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        if self._num_watchers >= MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_WATCHERS} watch already")
        request.Clear()  # gRPC keeps it as long as the RPC
        self._num_watchers += 1
        try:
            while True:
                changed = self._changed
                await context.write(self._response())
                await changed.wait()
        finally:
            self._num_watchers -= 1

    def _response(self) -> health_pb2.HealthCheckResponse:
        status = _SERVING if self._is_serving else _NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)
