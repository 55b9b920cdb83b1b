"""The health service alone, with watchers that leave, do not read, or ask for what is not there."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from stream2llm.serving.rpc import health_servicer
from stream2llm.serving.rpc.health_servicer import HealthService
from tests.polling import eventually

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class AbortedError(Exception):
    """What gRPC raises in a handler that aborts."""


class Caller:
    """An RPC's context; `reads` lets its writes through."""

    def __init__(self, *, reads: bool = True) -> None:
        self.seen: list[int] = []
        self._may_write = asyncio.Event()
        if reads:
            self._may_write.set()

    async def write(self, response: health_pb2.HealthCheckResponse) -> None:
        await self._may_write.wait()
        self.seen.append(response.status)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise AbortedError(code, details)


def asked(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def saw(caller: Caller, *statuses: int) -> None:
    async def seen() -> list[int]:
        return caller.seen

    await eventually(seen, lambda now: now == list(statuses))


async def test_one_that_does_not_read_holds_up_no_other_and_no_drain() -> None:
    health = HealthService([""])
    stuck, other = Caller(reads=False), Caller()
    async with asyncio.TaskGroup() as group:
        watches = [group.create_task(health.Watch(asked(), each)) for each in (stuck, other)]
        await saw(other, NOT_SERVING)
        health.set(is_serving=True)
        await saw(other, NOT_SERVING, SERVING)
        health.drain()
        await saw(other, NOT_SERVING, SERVING, NOT_SERVING)
        for watch in watches:
            watch.cancel()
    health.set(is_serving=True)
    assert (await health.Check(asked(), other)).status == NOT_SERVING


async def test_only_services_that_there_are_are_known() -> None:
    health = HealthService(["", "a"])
    assert (await health.Check(asked("a"), Caller())).status == NOT_SERVING
    for call in (health.Check, health.Watch):
        with pytest.raises(AbortedError, match="no such service"):
            await call(asked("x" * 1000), Caller())  # type: ignore[operator]


async def test_watchers_are_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_servicer, "MAX_WATCHERS", 1)
    health = HealthService([""])
    first = Caller()
    watch = asyncio.create_task(health.Watch(asked(), first))
    await saw(first, NOT_SERVING)
    with pytest.raises(AbortedError, match="1 watch already"):
        await health.Watch(asked(), Caller())
    watch.cancel()
    await asyncio.wait([watch])
    again: Any = asyncio.create_task(health.Watch(asked(), second := Caller()))
    await saw(second, NOT_SERVING)
    again.cancel()
