"""The RPC under a session that has decode prefetch, where its other end does not keep up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from router.kv_prefetch import KvPrefetch
from router.prefetch_call import PrefetchCall
from router.splice import Splice
from router.status import NeverArrivedError
from stream2llm.api.errors import UnavailableError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.sessions.prefix import as_tokens
from tests.stuck_call import StuckCall

FIRST, SECOND = (pb.Handover(kv_transfer_params_json=name) for name in ("one", "two"))


class Side:
    """A session that streams its hand-over, and the only decode worker."""

    def __init__(self) -> None:
        self.calls: list[StuckCall] = []
        self.has_second_call = asyncio.Event()
        self.released: list[str] = []
        self.has_release = asyncio.Event()
        self.places = 0
        self.worker = SimpleNamespace(
            drain_by_s=None,
            worker_id="decode-0",
            acquire=self._acquire,
            decode=SimpleNamespace(PrefetchKv=self._call),
        )
        pool = SimpleNamespace(
            pick=lambda role: self.worker,
            release_handover=self._release_handover,
            failure=lambda worker, error: ConnectionError(error.details()),
        )
        self.ended: list[str] = []
        metrics = SimpleNamespace(fetch_ended=self.ended.append)
        parts = SimpleNamespace(workers=pool, metrics=metrics)
        trace = SimpleNamespace(metadata=None)
        self.live: Any = SimpleNamespace(
            session_id="s", parts=parts, cache_salt="", trace=trace, sampling=SamplingParameters()
        )

    def _call(self, metadata: Any = None) -> StuckCall:
        self.calls.append(StuckCall())
        if len(self.calls) == 2:
            self.has_second_call.set()
        return self.calls[-1]

    def _acquire(self) -> Any:
        self.places += 1
        return SimpleNamespace(release=self._release)

    def _release_handover(self, request: pb.ReleaseHandoverRequest) -> None:
        self.released.append(request.handover.kv_transfer_params_json)
        self.has_release.set()

    def _release(self) -> None:
        self.places -= 1

    def worker_call(self) -> PrefetchCall:
        return PrefetchCall(self.live.parts.workers, self.worker, "s-1")  # type: ignore[arg-type]


@pytest.fixture
def side() -> Side:
    return Side()


def with_worker(side: Side) -> KvPrefetch:
    """The prefetch of a session that has had an offer."""
    prefetch = KvPrefetch(side.live, "streamed")
    prefetch._next_call()
    return prefetch


async def offered(side: Side) -> tuple[KvPrefetch, asyncio.Task[None], StuckCall]:
    """A session whose first offer is being written to decode."""
    prefetch = with_worker(side)
    prefetch.began(4)
    prefetch.spliced(1, Splice(0, as_tokens([1, 2, 3, 4]), 4, False))
    prefetch.seen(1)
    prefetch.offered(pb.HandoverOffer(revision=1, num_tokens=4, handover=FIRST))
    running = asyncio.create_task(prefetch.run())
    (call,) = side.calls
    await asyncio.wait_for(call.writing.wait(), 5)
    return prefetch, running, call


async def ended(prefetch: KvPrefetch, running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.wait([running])
    prefetch.close()


async def fetching(side: Side) -> tuple[PrefetchCall, StuckCall, asyncio.Task[Any]]:
    """A worker call whose fetch decode has taken."""
    worker_call, call = side.worker_call(), side.calls[0]
    call.may_write.set()
    fetch = asyncio.create_task(worker_call.fetch(as_tokens([1, 2]), FIRST))
    await asyncio.wait_for(call.has_fetch.wait(), 5)
    return worker_call, call, fetch


async def test_an_abort_that_decode_does_not_take_ends_the_rpc(side, monkeypatch):
    monkeypatch.setattr("router.prefetch_call.ABORT_TIMEOUT_S", 0.01)
    worker_call, call, fetch = await fetching(side)
    call.may_write.clear()
    worker_call.abort()
    with pytest.raises(UnavailableError, match="took no abort"):
        await asyncio.wait_for(fetch, 5)
    assert call.cancelled.is_set()


async def test_an_abort_waits_no_longer_for_a_fetch_that_decode_does_not_take(side, monkeypatch):
    monkeypatch.setattr("router.prefetch_call.ABORT_TIMEOUT_S", 0.01)
    worker_call = side.worker_call()
    fetching = asyncio.create_task(worker_call.fetch(as_tokens([1, 2]), FIRST))
    await side.calls[0].writing.wait()
    worker_call.abort()
    await asyncio.wait_for(side.calls[0].cancelled.wait(), 5)
    side.calls[0].may_write.set()
    with pytest.raises(UnavailableError, match="took no abort"):
        await asyncio.wait_for(fetching, 5)


async def test_an_abort_comes_before_the_next_fetch(side):
    """Also when the result of the fetch has arrived but has not been read."""
    worker_call, call, fetch = await fetching(side)
    call.may_write.clear()
    call.ends.put_nowait("first")
    worker_call.abort()

    async def next_fetch() -> Any:
        assert await fetch == "first"
        call.has_fetch.clear()
        return await worker_call.fetch(as_tokens([1, 2, 3]), SECOND)

    following = asyncio.create_task(next_fetch())
    await asyncio.wait_for(call.has_ended.wait(), 5)
    for _ in range(10):  # other tasks may run now
        await asyncio.sleep(0)
    assert call.kinds == ["open", "fetch"]
    call.may_write.set()
    await asyncio.wait_for(call.has_abort.wait(), 5)
    await asyncio.wait_for(call.has_fetch.wait(), 5)
    call.ends.put_nowait("second")
    assert await asyncio.wait_for(following, 5) == "second"
    assert call.kinds == ["open", "fetch", "abort", "fetch"]


async def test_an_abort_when_no_fetch_is_under_way_says_nothing(side):
    worker_call, call = side.worker_call(), side.calls[0]
    call.may_write.set()
    worker_call.abort()
    call.ends.put_nowait("first")
    assert await asyncio.wait_for(worker_call.fetch(as_tokens([1, 2]), FIRST), 5) == "first"
    assert call.kinds == ["open", "fetch"]


async def test_a_session_goes_on_when_decode_did_not_take_its_abort(side, monkeypatch):
    """The fetch is over, the offer is left to its lease, and the next one gets a worker call of its own."""
    monkeypatch.setattr("router.prefetch_call.ABORT_TIMEOUT_S", 0.01)
    prefetch, running, stuck = await offered(side)
    prefetch.spliced(2, Splice(2, as_tokens([1, 2, 9, 9]), 2, False))
    await asyncio.wait_for(stuck.cancelled.wait(), 5)
    stuck.may_write.set()
    prefetch.seen(2)
    prefetch.offered(pb.HandoverOffer(revision=2, num_tokens=4, handover=SECOND))
    await asyncio.wait_for(side.has_second_call.wait(), 5)
    await asyncio.wait_for(side.calls[1].writing.wait(), 5)
    assert not running.done()
    assert "one" not in side.released
    await ended(prefetch, running)
    assert not side.places


async def test_an_abort_that_is_taken_leaves_the_rpc_as_it_is(side):
    worker_call, call, fetch = await fetching(side)
    worker_call.abort()
    await asyncio.wait_for(call.has_abort.wait(), 5)
    call.ends.put_nowait("aborted")
    assert await asyncio.wait_for(fetch, 5) == "aborted"
    assert not call.done()


async def test_a_session_that_ends_before_decode_has_its_offer_releases_it(side):
    prefetch, running, _ = await offered(side)
    await ended(prefetch, running)
    assert side.released == ["one"]
    assert not side.places


async def test_a_session_that_ends_when_decode_has_its_offer_leaves_it_to_decode(side):
    prefetch, running, call = await offered(side)
    call.may_write.set()
    await call.has_fetch.wait()
    await ended(prefetch, running)
    assert not side.released
    assert not side.places


async def test_offers_that_nobody_looked_at_are_released_with_the_session(side):
    prefetch, running, _ = await offered(side)
    prefetch.offered(pb.HandoverOffer(revision=1, num_tokens=4, handover=SECOND))
    await ended(prefetch, running)
    assert sorted(side.released) == ["one", "two"]


async def test_a_splice_releases_the_offers_that_wait_and_aborts_the_fetch_under_way(side):
    prefetch, running, call = await offered(side)
    prefetch.offered(pb.HandoverOffer(revision=1, num_tokens=4, handover=SECOND))
    prefetch.spliced(2, Splice(2, as_tokens([1, 2, 9, 9]), 2, False))
    assert side.released == ["two"]
    call.may_write.set()
    await asyncio.wait_for(call.has_abort.wait(), 5)
    assert call.kinds == ["open", "fetch", "abort"]
    await ended(prefetch, running)
    assert side.released == ["two"], "decode answers for what it has"


async def test_a_splice_that_changes_no_token_of_them_leaves_offers_and_fetches_alone(side):
    prefetch, running, call = await offered(side)
    prefetch.spliced(2, Splice(4, as_tokens([1, 2, 3, 4, 5]), 0, False))
    call.may_write.set()
    await asyncio.wait_for(call.has_fetch.wait(), 5)
    call.ends.put_nowait(pb.PrefetchKvResponse(end=pb.FETCH_END_FETCHED))
    prefetch.offered(pb.HandoverOffer(revision=2, num_tokens=5, handover=SECOND))
    call.has_fetch.clear()
    await asyncio.wait_for(call.has_fetch.wait(), 5)
    assert side.ended == ["FETCH_END_FETCHED"]
    assert call.kinds == ["open", "fetch", "fetch"]
    await ended(prefetch, running)


async def test_a_fetch_that_is_in_vain_before_it_is_sent_is_released(side):
    """Its worker cannot be reached, and a splice comes while that is found out."""
    side.live.parts.workers.failure = lambda *_: NeverArrivedError("gone", reason="WORKER_LOST")
    prefetch = with_worker(side)
    prefetch.began(4)
    prefetch.spliced(1, Splice(0, as_tokens([1, 2, 3, 4]), 4, False))
    prefetch.seen(1)
    first = side.calls[0]
    prefetch.offered(pb.HandoverOffer(revision=1, num_tokens=4, handover=FIRST))
    running = asyncio.create_task(prefetch.run())
    await asyncio.wait_for(first.writing.wait(), 5)
    prefetch.spliced(2, Splice(2, as_tokens([1, 2, 9, 9]), 2, False))
    first.end()
    first.may_write.set()
    await asyncio.wait_for(side.has_release.wait(), 5)
    assert side.released == ["one"]
    assert len(side.calls) == 2
    assert not side.calls[1].writing.is_set()
    await ended(prefetch, running)


async def test_a_worker_is_suspect_when_its_rpc_breaks_and_not_whenever_that_is_found_out(side):
    """By the seal it may be well again."""
    failures: list[Any] = []
    side.live.parts.workers.failure = lambda worker, _: failures.append(worker.worker_id)
    side.live.parts.workers.is_usable = lambda _: True
    prefetch = with_worker(side)
    side.calls[0].end()
    assert failures == ["decode-0"]
    for _ in range(3):
        assert prefetch.take_worker() is None
    assert failures == ["decode-0"]
    prefetch.close()
