"""The RPC under a session that has decode fetch ahead, where its other end does not keep up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.ahead import Ahead
from router.context import Splice
from router.fetch_leg import FetchLeg
from stream2llm.errors import UnavailableError
from stream2llm.prefix import as_tokens
from stream2llm.v1 import worker_pb2 as pb

pytestmark = pytest.mark.unit

FIRST, SECOND = (pb.Handover(kv_transfer_params_json=name) for name in ("one", "two"))


class StuckCall:
    """A call of grpc.aio whose other end takes no message until the test lets it."""

    def __init__(self) -> None:
        self.may_write = asyncio.Event()
        self.writing = asyncio.Event()
        self.written: list[Any] = []
        self.has_fetch = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def write(self, message: Any) -> None:
        self.writing.set()
        if self.cancelled.is_set():
            raise asyncio.InvalidStateError("RPC already finished.")
        await self.may_write.wait()
        self.written.append(message)
        if message.WhichOneof("event") == "fetch":
            self.has_fetch.set()

    def __aiter__(self) -> StuckCall:
        return self

    async def __anext__(self) -> Any:
        await self.cancelled.wait()
        raise asyncio.CancelledError  # so does grpc.aio, whoever reads

    def add_done_callback(self, callback: Any) -> None:
        pass

    def done(self) -> bool:
        return self.cancelled.is_set()

    def cancel(self) -> None:
        self.cancelled.set()

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    async def details(self) -> str:
        return "cancelled here"

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()


class Side:
    """A session that streams its hand-over, and the only decode worker."""

    def __init__(self) -> None:
        self.calls: list[StuckCall] = []
        self.has_second_call = asyncio.Event()
        self.released: list[str] = []
        self.places = 0
        self.worker = SimpleNamespace(
            worker_id="decode-0",
            acquire=self._acquire,
            decode=SimpleNamespace(FetchAhead=self._call),
        )
        pool = SimpleNamespace(
            pick=lambda role: self.worker,
            release_handover=lambda request: self.released.append(
                request.handover.kv_transfer_params_json
            ),
            failure=lambda worker, error: ConnectionError(error.details()),
        )
        metrics = SimpleNamespace(fetch_ended=lambda end: None)
        parts = SimpleNamespace(workers=pool, metrics=metrics)
        self.live: Any = SimpleNamespace(session_id="s", parts=parts)

    def _call(self) -> StuckCall:
        self.calls.append(StuckCall())
        if len(self.calls) == 2:
            self.has_second_call.set()
        return self.calls[-1]

    def _acquire(self) -> Any:
        self.places += 1
        return SimpleNamespace(release=self._release)

    def _release(self) -> None:
        self.places -= 1

    def leg(self) -> FetchLeg:
        return FetchLeg(self.live.parts.workers, self.worker, "s-1")  # type: ignore[arg-type]


@pytest.fixture
def side() -> Side:
    return Side()


async def offered(side: Side) -> tuple[Ahead, asyncio.Task[None], StuckCall]:
    """A session whose first offer is being written to decode."""
    ahead = Ahead(side.live, "streamed")
    ahead.began(4)
    await ahead.spliced(1, Splice(0, as_tokens([1, 2, 3, 4]), 4, False), as_tokens([1, 2, 3, 4]))
    ahead.seen(1)
    ahead.offered(pb.HandoverOffer(revision=1, num_tokens=4, handover=FIRST))
    running = asyncio.create_task(ahead.run())
    (call,) = side.calls
    await asyncio.wait_for(call.writing.wait(), 5)
    return ahead, running, call


async def test_an_abort_that_decode_does_not_take_ends_the_rpc(side, monkeypatch):
    monkeypatch.setattr("router.fetch_leg.ABORT_TIMEOUT_S", 0.01)
    leg = side.leg()
    await asyncio.wait_for(leg.abort(), 5)
    assert side.calls[0].cancelled.is_set()


async def test_an_abort_waits_no_longer_for_a_fetch_that_decode_does_not_take(side, monkeypatch):
    monkeypatch.setattr("router.fetch_leg.ABORT_TIMEOUT_S", 0.01)
    leg = side.leg()
    fetching = asyncio.create_task(leg.fetch(as_tokens([1, 2]), FIRST))
    await side.calls[0].writing.wait()
    await asyncio.wait_for(leg.abort(), 5)
    assert side.calls[0].cancelled.is_set()
    side.calls[0].may_write.set()
    with pytest.raises(UnavailableError, match="took no abort"):
        await asyncio.wait_for(fetching, 5)


async def test_a_session_goes_on_when_decode_did_not_take_its_abort(side, monkeypatch):
    """The fetch is over, the offer is left to its lease, and the next one gets a leg of its own."""
    monkeypatch.setattr("router.fetch_leg.ABORT_TIMEOUT_S", 0.01)
    ahead, running, stuck = await offered(side)
    await ahead.spliced(2, Splice(2, as_tokens([9, 9]), 2, False), as_tokens([1, 2, 9, 9]))
    stuck.may_write.set()
    ahead.seen(2)
    ahead.offered(pb.HandoverOffer(revision=2, num_tokens=4, handover=SECOND))
    await asyncio.wait_for(side.has_second_call.wait(), 5)
    await asyncio.wait_for(side.calls[1].writing.wait(), 5)
    assert not running.done()
    assert "one" not in side.released
    running.cancel()
    await asyncio.wait([running])
    ahead.close()
    assert not side.places


async def test_an_abort_that_is_taken_leaves_the_rpc_as_it_is(side):
    leg = side.leg()
    side.calls[0].may_write.set()
    await leg.abort()
    assert [each.WhichOneof("event") for each in side.calls[0].written] == ["abort"]
    assert not side.calls[0].done()


async def test_a_session_that_ends_before_decode_has_its_offer_releases_it(side):
    ahead, running, _ = await offered(side)
    running.cancel()
    await asyncio.wait([running])
    ahead.close()
    assert side.released == ["one"]
    assert not side.places


async def test_a_session_that_ends_when_decode_has_its_offer_leaves_it_to_decode(side):
    ahead, running, call = await offered(side)
    call.may_write.set()
    await call.has_fetch.wait()
    running.cancel()
    await asyncio.wait([running])
    ahead.close()
    assert not side.released
    assert not side.places


async def test_offers_that_nobody_looked_at_are_released_with_the_session(side):
    ahead, running, _ = await offered(side)
    ahead.offered(pb.HandoverOffer(revision=1, num_tokens=4, handover=SECOND))
    running.cancel()
    await asyncio.wait([running])
    ahead.close()
    assert sorted(side.released) == ["one", "two"]
