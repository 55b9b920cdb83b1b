"""Follows what one worker has cached: a task for each worker, from its first view to its last.

The worker tells everything at first, then changes (`CacheService` in worker.proto). While it does
not, it holds nothing as far as this router knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc

from router.cache_metrics import CacheMetrics, Told
from router.cached_blocks import BlockFormat, CachedBlocks
from router.worker import Worker
from stream2llm.api.backoff import pause_s
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.tasks import is_cancelled
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.sessions.block_hashes import from_wire

_logger = logging.getLogger(__name__)
# Three times as long as a worker lets pass between two messages.
SILENT_AFTER_S = 15.0


class _BrokenError(Exception):
    """The stream cannot be followed any further; another one begins with everything."""


class CacheWatch:
    """Follows one worker; `run` it in a task of its own."""

    def __init__(
        self,
        worker: Worker,
        cached: CachedBlocks,
        metrics: CacheMetrics,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        silent_after_s: float = SILENT_AFTER_S,
    ) -> None:
        self._worker = worker
        self._cached = cached
        self._metrics = metrics
        self._sleep = sleep
        self._silent_after_s = silent_after_s
        # Counts the messages of the present stream.
        self._sequence = 0
        self._num_failures = 0
        # Why the next full report comes.
        self._why = Told.FIRST
        # As the metrics have it.
        self._num_known = 0

    async def run(self) -> None:
        """Follows until it is cancelled, or the worker turns out not to know the RPC."""
        while await self._follow():
            self._num_failures += 1
            await self._sleep(pause_s(self._num_failures + 1))

    async def _follow(self) -> bool:
        """Follows one stream to its end; returns whether another one may do better."""
        self._sequence = 0
        call = self._worker.link.cache.WatchCache(pb.WatchCacheRequest(), wait_for_ready=True)
        try:
            while True:
                async with asyncio.timeout(self._silent_after_s):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    raise _BrokenError("the worker ended it")
                self._take(message)
        except (TimeoutError, _BrokenError, InvalidRequestError) as error:
            self._note(error)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return False
            self._note(error.code())
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            self._note("its channel was closed")  # a newer one has other certificates
        finally:
            call.cancel()
            self._forget()
        return True

    def _take(self, message: pb.WatchCacheResponse) -> None:
        self._sequence += 1
        if message.sequence != self._sequence:
            self._why = Told.AFTER_GAP
            self._metrics.lost(max(message.sequence - self._sequence, 1))
            raise _BrokenError(f"message {self._sequence} is missing")
        worker_id = self._worker.worker_id
        if message.HasField("begin"):
            self._begin(message.begin)
        elif self._sequence == 1:
            raise _BrokenError("it does not begin with a full report")
        if self._cached.format_of(worker_id) is not None:
            removed = from_wire(message.removed, "removed")
            self._cached.change(worker_id, from_wire(message.added, "added"), removed)
        self._show()

    def _begin(self, begin: pb.CacheBegin) -> None:
        why = self._why if self._sequence == 1 else Told.TOO_SLOW
        self._metrics.told(why)
        self._why, self._num_failures = Told.RECONNECTED, 0
        if begin.hash_root:
            block_format = BlockFormat(begin.block_size, begin.hash_root)
            address = self._worker.address
            self._cached.begin(address.worker_id, block_format, address.num_kv_blocks)

    def _forget(self) -> None:
        self._cached.forget(self._worker.worker_id)
        self._show()

    def _show(self) -> None:
        before, self._num_known = self._num_known, self._cached.num_told(self._worker.worker_id)
        self._metrics.knows(self._worker.address.role, self._num_known - before)

    def _note(self, why: object) -> None:
        _logger.info(
            "cache_not_followed worker_id=%s why=%s", self._worker.worker_id, why or "silent"
        )
