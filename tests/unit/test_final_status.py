"""The true status of an RPC, in each order in which grpc.aio may report it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from stream2llm.api.errors import OverloadedError
from stream2llm.api.final_status import FinalStatus
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.rpc import RpcFailedError, SessionRpc

PROVISIONAL = (grpc.StatusCode.INTERNAL, "Internal error from Core")
TRUE = (grpc.StatusCode.RESOURCE_EXHAUSTED, "at most 60000 are allowed")


class ScriptedCall:
    """A call of grpc.aio whose statuses the test sets; callbacks get only the first."""

    def __init__(self) -> None:
        self._status: tuple[grpc.StatusCode, str] | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._ended = asyncio.Event()

    def set_status(self, status: tuple[grpc.StatusCode, str]) -> None:
        first, self._status = self._status is None, status
        if first:
            self._ended.set()
            for callback in self._callbacks:
                callback(self)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def done(self) -> bool:
        return self._status is not None

    def cancel(self) -> None:
        pass

    async def code(self) -> grpc.StatusCode:
        return self.now()[0]

    async def details(self) -> str:
        return self.now()[1]

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    async def read(self) -> Any:
        await self._ended.wait()
        raise self.error()

    async def write(self, _: Any) -> None:
        self.set_status(PROVISIONAL)
        try:
            raise self.error()
        finally:  # the server's own comes when the writer and the reader have failed
            asyncio.get_running_loop().call_later(0.02, self.set_status, TRUE)

    def now(self) -> tuple[grpc.StatusCode, str]:
        assert self._status is not None
        return self._status

    def error(self) -> grpc.aio.AioRpcError:
        code, details = self.now()
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize("order", [(PROVISIONAL, TRUE), (TRUE, PROVISIONAL)])
async def test_the_other_sides_status_is_told_in_either_order(order):
    call = ScriptedCall()
    status = FinalStatus(call)
    call.set_status(order[0])
    error = call.error()
    call.set_status(order[1])
    true = await status.of(error)
    assert (true.code(), true.details()) == TRUE


async def test_an_error_of_the_other_side_is_told_at_once():
    call = ScriptedCall()
    status = FinalStatus(call)
    call.set_status(TRUE)
    error = call.error()
    assert await status.of(error) is error


async def test_a_client_whose_write_fails_first_is_told_the_servers_reason():
    rpc = SessionRpc(ScriptedCall())
    assert not await rpc.write(pb.StreamGenerateRequest(append=pb.AppendContext()))
    with pytest.raises(RpcFailedError, match="at most 60000") as caught:
        await rpc.read(None, lambda: "")
    assert isinstance(caught.value.error, OverloadedError)
