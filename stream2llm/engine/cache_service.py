"""Tells routers which blocks the engine's prefix cache has: one stream to each, see worker.proto."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from typing import Any

from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.engine.cache_log import CacheChange, CacheLog
from stream2llm.serving.rpc.stream_writer import StreamWriter, failures_as_status
from stream2llm.serving.sessions.block_hashes import HASH_BYTES, to_wire

_log = logging.getLogger(__name__)
# A third of what a router waits for (router/cache_watch.py).
EMPTY_MESSAGE_AFTER_S = 5.0
# Half of the smallest message limit that a configuration may set.
_MAX_HASH_BYTES = 4096 * HASH_BYTES


class CacheService(worker_pb2_grpc.CacheServiceServicer):
    """Serves `WatchCache` from the log of an engine's cache."""

    def __init__(
        self,
        log: CacheLog,
        block_size: int,
        hash_root: bytes,
        empty_after_s: float = EMPTY_MESSAGE_AFTER_S,
    ) -> None:
        self._log = log
        self._begin = worker_pb2.CacheBegin(block_size=block_size, hash_root=hash_root)
        self._empty_after_s = empty_after_s

    async def WatchCache(  # noqa: N802 - gRPC names its methods so
        self, request: worker_pb2.WatchCacheRequest, context: Any
    ) -> None:
        """Writes what is held, then what changes, until the router leaves."""
        writer = StreamWriter(context)
        async with (
            failures_as_status(context, writer, _log, repr),
            aclosing(self._messages()) as messages,
        ):
            sequence = 0
            async for message in messages:
                sequence += 1
                message.sequence = sequence
                await writer.write(message)

    async def _messages(self) -> AsyncGenerator[worker_pb2.WatchCacheResponse, None]:
        changed = asyncio.Event()
        self._log.on_change.add(changed.set)
        try:
            version = -1
            while True:
                changed.clear()
                changes, version = self._log.since(version), self._log.version
                for message in self._all() if changes is None else _messages_of(changes):
                    yield message
                if self._log.version == version:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._empty_after_s):
                            await changed.wait()
                            continue
                    yield worker_pb2.WatchCacheResponse()
        finally:
            self._log.on_change.discard(changed.set)

    def _all(self) -> Iterator[worker_pb2.WatchCacheResponse]:
        held = to_wire(self._log.held)
        yield worker_pb2.WatchCacheResponse(begin=self._begin, added=held[:_MAX_HASH_BYTES])
        yield from _messages_of((CacheChange(added=held[_MAX_HASH_BYTES:]),))


def _messages_of(changes: tuple[CacheChange, ...]) -> Iterator[worker_pb2.WatchCacheResponse]:
    """Yields the changes in order, in messages that no limit is too small for."""
    for change in changes:
        for part in _parts(change.removed):
            yield worker_pb2.WatchCacheResponse(removed=part)
        for part in _parts(change.added):
            yield worker_pb2.WatchCacheResponse(added=part)


def _parts(hashes: bytes) -> Iterator[bytes]:
    for start in range(0, len(hashes), _MAX_HASH_BYTES):
        yield hashes[start : start + _MAX_HASH_BYTES]
