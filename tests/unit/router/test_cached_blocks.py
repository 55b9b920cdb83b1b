"""A router follows what its workers say that they have cached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from router.cache_metrics import CacheMetrics
from router.cache_watch import CacheWatch
from router.cached_blocks import BlockFormat, CachedBlocks
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.engine.cache_log import CacheChange
from stream2llm.engine.cache_service import CacheService
from stream2llm.serving.observability.metric_maker import MetricMaker
from stream2llm.serving.sessions.block_hashes import to_wire
from tests.fake_workers import BLOCK_SIZE, HASH_ROOT, FakeWorker
from tests.polling import eventually
from tests.router_ring import Ring

pytestmark = pytest.mark.unit

FORMAT = BlockFormat(BLOCK_SIZE, HASH_ROOT)


async def until_known(ring: Ring, hashes: list[int], expected: dict[str, int]) -> None:
    async def known() -> dict[str, int]:
        return ring.router._parts.workers.cached.cached_blocks(FORMAT, hashes)

    await eventually(known, lambda found: found == expected)


def tells(worker: FakeWorker, added: list[int], removed: list[int] | None = None) -> None:
    worker.cache.apply(CacheChange(to_wire(added), to_wire(removed or [])))


async def test_what_enters_and_leaves_a_cache_is_known(make_ring: Callable[..., Any]) -> None:
    ring = await make_ring(num_prefill=2)
    prefill, other, decode = ring.workers
    tells(prefill, [1, 2, 3])
    tells(decode, [1])
    await until_known(ring, [1, 2, 3], {prefill.worker_id: 3, decode.worker_id: 1})
    assert ring.metric("stream2llm_cached_blocks_known", role="prefill") == 3
    tells(prefill, [], [3])
    tells(other, [1, 2])
    expected = {prefill.worker_id: 2, other.worker_id: 2, decode.worker_id: 1}
    await until_known(ring, [1, 2, 3], expected)
    assert ring.metric("stream2llm_cache_reports_total", reason="first") == 3


async def test_more_than_a_message_takes_arrives(ring: Ring) -> None:
    prefill = ring.worker("prefill")
    await until_known(ring, [1], {})
    tells(prefill, list(range(1, 10_001)))
    await until_known(ring, list(range(1, 10_001)), {prefill.worker_id: 10_000})
    ring.show(ring.worker("decode"))
    await until_known(ring, [1], {})
    ring.show(*ring.workers)
    await until_known(ring, list(range(1, 10_001)), {prefill.worker_id: 10_000})


async def test_a_worker_that_was_lost_holds_nothing_and_its_successor_what_it_says(
    ring: Ring,
) -> None:
    prefill = ring.worker("prefill")
    tells(prefill, [1])
    await until_known(ring, [1], {prefill.worker_id: 1})
    await prefill.kill()
    await until_known(ring, [1], {})
    assert ring.metric("stream2llm_cached_blocks_known", role="prefill") == 0
    tells(prefill, [2], [1])
    await prefill.start(pid=2)
    ring.show(*ring.workers)
    await until_known(ring, [2], {prefill.worker_id: 1})
    await until_known(ring, [1], {})


# -- streams that go wrong ------------------------------------------------------------------


class Scripted:
    """A worker whose streams are written down: messages, then an end or silence."""

    def __init__(self, *streams: list[Any]) -> None:
        self._streams = list(streams)
        self.address = type(
            "Address", (), {"num_kv_blocks": 10, "worker_id": "w", "role": "prefill"}
        )
        self.worker_id = "w"
        self.link = self.cache = self

    def WatchCache(self, *_: Any, **__: Any) -> Any:  # noqa: N802
        if not self._streams:
            raise asyncio.CancelledError  # the test is over
        self._now = iter(self._streams.pop(0))
        return self

    async def read(self) -> Any:
        message = next(self._now, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    def cancel(self) -> None:
        pass


def begin(*added: int) -> pb.WatchCacheResponse:
    account = pb.CacheBegin(block_size=BLOCK_SIZE, hash_root=HASH_ROOT)
    return pb.WatchCacheResponse(sequence=1, begin=account, added=to_wire(added))


def then(sequence: int, *added: int) -> pb.WatchCacheResponse:
    return pb.WatchCacheResponse(sequence=sequence, added=to_wire(added))


async def known_after(*streams: list[Any]) -> tuple[list[dict[str, int]], CollectorRegistry]:
    """What is known of blocks 1, 2 and 3 as each stream but the first begins, and at its end."""
    cached, registry, seen = CachedBlocks(), CollectorRegistry(), []
    metrics = CacheMetrics(MetricMaker(registry, ("model",)), "tiny")

    async def pause(_: float) -> None:
        seen.append(cached.cached_blocks(FORMAT, [1, 2, 3]))

    watch = CacheWatch(Scripted(*streams), cached, metrics, pause, silent_after_s=0.01)  # type: ignore[arg-type]
    await asyncio.wait([asyncio.create_task(watch.run())])
    return seen, registry


@pytest.mark.parametrize(
    "stream",
    [
        [begin(1, 2), then(3, 3)],
        [begin(1, 2), grpc.aio.EOF],
        [begin(1, 2)],
        [then(1, 1)],
        [begin(1), pb.WatchCacheResponse(sequence=2, added=bytes(9))],
    ],
    ids=["gap", "ended", "silent", "no-account", "no-hashes"],
)
async def test_a_worker_whose_stream_breaks_holds_nothing(stream: list[Any]) -> None:
    seen, registry = await known_after(stream)
    assert seen == [{}]
    known = {"model": "tiny", "role": "prefill"}
    assert registry.get_sample_value("stream2llm_cached_blocks_known", known) == 0


async def test_a_gap_is_counted_and_answered_by_a_full_account() -> None:
    _, registry = await known_after([begin(1), then(4, 3)], [begin(1, 2)])
    lost = registry.get_sample_value("stream2llm_cache_messages_lost_total", {"model": "tiny"})
    assert lost == 2
    why = {"model": "tiny", "reason": "after_gap"}
    assert registry.get_sample_value("stream2llm_cache_reports_total", why) == 1


async def test_a_worker_with_no_news_still_sends() -> None:
    worker = FakeWorker("w", "prefill", None)  # type: ignore[arg-type]
    service = CacheService(worker.cache, BLOCK_SIZE, HASH_ROOT, empty_after_s=0.001)
    messages = service._messages()
    assert (await anext(messages)).HasField("begin")
    assert await anext(messages) == pb.WatchCacheResponse()
    await messages.aclose()
    assert not worker.cache.on_change
