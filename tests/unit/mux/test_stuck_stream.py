"""A stream that takes nothing, until the test lets it: what is sent together, and what never was."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.status import NeverArrivedError, worker_error
from stream2llm.api.v1.worker_pb2 import ConnectRequest, ConnectResponse, Frame
from stream2llm.serving.mux.call import Call
from stream2llm.serving.mux.channel import MuxChannel
from stream2llm.serving.mux.statuses import status

MAX_BYTES = 1 << 20
LOST = status(grpc.StatusCode.UNAVAILABLE, "Socket closed")


class Stream:
    """The stream under a MuxChannel, as a call of grpc.aio."""

    def __init__(self) -> None:
        self.may_write = asyncio.Event()
        self.is_writing = asyncio.Event()
        self.batches: list[list[Frame]] = []
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.come: asyncio.Queue[ConnectResponse] = asyncio.Queue()

    async def write(self, batch: ConnectRequest) -> None:
        self.is_writing.set()
        await self.may_write.wait()
        self.batches.append(list(batch.frames))

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> ConnectResponse:
        coming = asyncio.ensure_future(self.come.get())
        try:
            await asyncio.wait({coming, self._lost}, return_when=asyncio.FIRST_COMPLETED)
            if self._lost.done():
                raise self._lost.exception()
            return coming.result()
        finally:
            coming.cancel()

    def break_off(self) -> None:
        self._lost.set_exception(LOST)

    def add_done_callback(self, _callback: Any) -> None:
        """It ends as the test lets it."""

    def cancel(self) -> None:
        """It is over."""


class Side:
    """A MuxChannel, and its streams."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        channel = SimpleNamespace(stream_stream=lambda *_, **__: self._connect)
        self.calls = MuxChannel(channel, MAX_BYTES)
        self.begin = self.calls.stream_stream("/s/m", bytes, bytes)

    def _connect(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]


async def turns() -> None:
    """What is ready runs, and what that makes ready."""
    for _ in range(10):
        await asyncio.sleep(0)


def kinds(frames: list[Frame]) -> list[tuple[int, str | None]]:
    return [(frame.call_id, frame.WhichOneof("kind")) for frame in frames]


async def test_what_one_turn_of_the_loop_sends_is_one_message() -> None:
    side = Side()
    calls = [side.begin() for _ in range(64)]
    (stream,) = side.streams
    stream.may_write.set()
    await asyncio.gather(*(call.write(b"token") for call in calls))
    assert len(stream.batches) == 1
    await asyncio.gather(*(call.write(b"token") for call in calls))
    assert kinds(stream.batches[1]) == [(call.call_id, "message") for call in calls]
    await side.calls.aclose()


async def test_what_comes_while_the_stream_is_busy_goes_together() -> None:
    side = Side()
    call = side.begin()
    (stream,) = side.streams
    await stream.is_writing.wait()
    writing = [asyncio.create_task(call.write(b"%d" % number)) for number in range(3)]
    await turns()
    stream.may_write.set()
    await asyncio.gather(*writing)
    assert [len(batch) for batch in stream.batches] == [1, 3]
    await side.calls.aclose()


async def ended(call: Call) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(call)
    return worker_error(caught.value, "w")


async def test_a_call_whose_opening_was_never_handed_over_has_not_arrived() -> None:
    side = Side()
    first = side.begin()
    (stream,) = side.streams
    await stream.is_writing.wait()  # its opening: gRPC may have it
    second = side.begin()
    writing = asyncio.create_task(second.write(b"open"))
    await turns()
    stream.break_off()
    assert not isinstance(await ended(first), NeverArrivedError)
    assert isinstance(await ended(second), NeverArrivedError)
    with pytest.raises(grpc.aio.AioRpcError):
        await writing
    assert not second.has_sent_last
    side.begin()
    assert len(side.streams) == 2
    await side.calls.aclose()


async def test_a_call_that_is_cancelled_before_it_is_sent_never_is() -> None:
    side = Side()
    first = side.begin()
    (stream,) = side.streams
    await stream.is_writing.wait()
    second = side.begin()
    writing = asyncio.create_task(second.write(b"open"))
    await turns()
    writing.cancel()
    await asyncio.wait({writing})
    assert second.done()
    assert not second.has_sent_last
    stream.may_write.set()
    await first.write(b"more")
    assert {frame.call_id for batch in stream.batches for frame in batch} == {first.call_id}
    await side.calls.aclose()


async def test_a_message_whose_writer_is_cancelled_is_not_sent_and_ends_its_call() -> None:
    side = Side()
    call = side.begin()
    (stream,) = side.streams
    await stream.is_writing.wait()
    writing = asyncio.create_task(call.write(b"a fetch"))
    await turns()
    writing.cancel()
    await asyncio.wait({writing})
    assert not call.has_sent_last
    stream.may_write.set()
    await turns()
    sent = [each for batch in stream.batches for each in kinds(batch)]
    assert sent == [(1, "opening"), (1, "cancel")]
    await side.calls.aclose()


async def test_what_waits_for_a_stuck_stream_is_bounded() -> None:
    side = Side()
    calls = [side.begin() for _ in range(10)]
    (stream,) = side.streams
    writing = [asyncio.create_task(call.write(bytes(MAX_BYTES))) for call in calls]
    await turns()
    assert sum(call._credit.may_send for call in calls) >= 4  # these wait for room
    stuck = [task for task in writing if not task.done()]
    assert len(stuck) == 10
    stream.may_write.set()
    await asyncio.gather(*writing)
    await side.calls.aclose()


async def test_a_worker_that_breaks_the_protocol_is_a_bug_and_no_loss() -> None:
    side = Side()
    call = side.begin()
    (stream,) = side.streams
    stream.come.put_nowait(ConnectResponse(frames=[Frame(call_id=7, message=b"of no call")]))
    error = await ended(call)
    assert error.reason == "INTERNAL"
    await side.calls.aclose()


async def test_a_call_that_is_read_slowly_still_has_its_messages_before_its_end() -> None:
    side = Side()
    call = side.begin()
    (stream,) = side.streams
    frames = [Frame(call_id=1, message=b"one"), Frame(call_id=1, message=b"two")]
    stream.come.put_nowait(ConnectResponse(frames=[*frames, Frame(call_id=1, end={})]))
    await turns()
    assert not call.done()
    assert [each async for each in call] == [b"one", b"two"]
    assert call.done()
    await side.calls.aclose()
