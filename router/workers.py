"""The router's view of the workers, and its channels to them.

The controller's view lists the workers; the data path is first to notice a lost one. A
worker whose RPC broke at transport level, or that reports its engine dead, is suspect:
it gets no new sessions until it answers again, or until a view brings its successor
(another address or other processes). One that left the view gets no new sessions either,
but keeps its channel until its last session here has ended; if the view says that it
drains, those sessions may leave it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any

import grpc

from router.absence import Absences
from router.background import Background
from router.cache_metrics import CacheMetrics
from router.cache_watch import CacheWatch
from router.cached_blocks import CachedBlocks
from router.placement import counts_as, pick, serves_as
from router.status import WORKER_LOST, worker_error
from router.worker import Link, Worker, answers
from stream2llm.api.errors import InvalidRequestError, Stream2LLMError, UnavailableError
from stream2llm.api.v1 import worker_pb2
from stream2llm.security.tls import PeerChannels
from stream2llm.serving.settings.worker_spec import ClusterView, Role, can_answer
from stream2llm.serving.system.clock import Clock, SystemClock

_logger = logging.getLogger(__name__)
_PROBE_AGAIN_AFTER_S = 1.0
_RELEASE_TIMEOUT_S = 5.0
# Pauses before a release that no worker took is tried again: one may be back by then.
# After the last try the lease ends the hand-over.
_RELEASE_PAUSES_S = (0.1, 0.4, 1.6)


class WorkerPool:
    """The workers of the latest view."""

    def __init__(
        self,
        channels: PeerChannels,
        background: Background,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Clock | None = None,
        cache_metrics: CacheMetrics | None = None,
    ) -> None:
        """Without `cache_metrics` it is not followed what the workers have cached."""
        self._cache_metrics = cache_metrics
        # What the workers have cached, as far as they have told it.
        self.cached = CachedBlocks()
        self._sleep = sleep
        self._clock = clock or SystemClock()
        self._absences = Absences()
        # Set, and replaced, when a worker may have become usable.
        self._came = asyncio.Event()
        # Called when workers have begun to drain.
        self.on_drain: set[Callable[[], object]] = set()
        self._channels = channels
        self._background = background
        self._workers: dict[str, Worker] = {}
        self._version = -1
        self.controller_address = ""

    def __iter__(self) -> Iterator[Worker]:
        self._renew_links()
        return iter(sorted(self._workers.values(), key=lambda worker: worker.worker_id))

    def set_view(self, view: ClusterView) -> None:
        """Sets a newer view; an older one that arrives late is ignored."""
        if view.version < self._version:
            return
        self._version = view.version
        self.controller_address = view.controller_address
        addresses = {address.worker_id: address for address in view.workers}
        self._note_draining(view)
        for worker in list(self._workers.values()):
            address = addresses.get(worker.worker_id)
            if address is None or not worker.is_same_process(address):
                self._retire(worker)
        for worker_id, address in addresses.items():
            if worker_id not in self._workers:
                self._workers[worker_id] = worker = Worker(address, self._channels)
                self._watch_cache(worker)
                self._can_be_used(worker_id)

    def _watch_cache(self, worker: Worker) -> None:
        if self._cache_metrics is not None:
            watch = CacheWatch(worker, self.cached, self._cache_metrics, self._sleep)
            name = f"watch-cache-{worker.worker_id}"
            worker.cache_watch = self._background.start(watch.run(), name)

    def _note_draining(self, view: ClusterView) -> None:
        """Those that had left an earlier view are not known any more, and their sessions know."""
        now_s = self._clock.monotonic_s()
        begun = [each for each in view.draining if each.worker_id in self._workers]
        for each in begun:
            self._workers[each.worker_id].drain_by_s = now_s + each.left_s
        if begun:
            for call in tuple(self.on_drain):
                call()

    @property
    def can_answer(self) -> bool:
        """Whether the view has the workers that a session needs, suspect or not."""
        return can_answer(worker.address.role for worker in self._workers.values())

    def pick(
        self,
        role: Role,
        but: Collection[Worker] = (),
        rather_not: Collection[object] = (),
        num_prompt_tokens: int = 0,
    ) -> Worker | None:
        """Returns a worker for a session, none of `but`; None if none is usable.

        It is one of `rather_not` only if no other one is usable. `num_prompt_tokens` are known of
        the session's prompt.
        """
        self._renew_links()
        left = [worker for worker in self._workers.values() if worker not in but]
        rather = (worker.view() for worker in left if worker not in rather_not)
        best = pick(rather, role, num_prompt_tokens)
        worker_id = best or pick((worker.view() for worker in left), role, num_prompt_tokens)
        return None if worker_id is None else self._workers[worker_id]

    async def usable(
        self,
        role: Role,
        within_s: float,
        but: Collection[Worker] = (),
        first: Worker | None = None,
        rather_not: Collection[object] = (),
        num_prompt_tokens: int = 0,
    ) -> Worker | None:
        """Returns a worker for a session, waiting for one if necessary; None if none comes in time.

        `first` is chosen if it has the role and can be used. The others: as for `pick`.
        """
        avoided = (*but, *rather_not)
        is_first = (
            first is not None and serves_as(first.address.role, role) and first not in avoided
        )
        if first is not None and is_first and self.is_usable(first):
            return first
        try:
            async with asyncio.timeout(max(within_s, 0)):
                while (worker := self.pick(role, but, rather_not, num_prompt_tokens)) is None:
                    await self._came.wait()
                return worker
        except TimeoutError:
            return self.pick(role, but, rather_not, num_prompt_tokens)

    def none_of(self, role: Role) -> UnavailableError:
        """Returns the error for a session for which there is no worker of the role."""
        return UnavailableError(
            f"no {role} worker can be used now",
            reason=f"NO_{role.upper()}_WORKER",
            retry_after_s=self.retry_after_s(role),
        )

    def retry_after_s(self, role: Role) -> float:
        """Seconds after which a session that failed for want of a worker may be tried again."""
        if self.pick(role) is not None:
            return UnavailableError.default_retry_after_s or 0.0
        return self._absences.expected_s(counts_as(role), self._clock.monotonic_s())

    def is_usable(self, worker: Worker) -> bool:
        """Whether it is still in the view, and not suspect."""
        return self._workers.get(worker.worker_id) is worker and not worker.is_suspect

    def failure(self, worker: Worker, error: Any) -> Stream2LLMError:
        """Returns the domain error of a failed RPC; marks a lost worker as suspect.

        gRPC reports a lost process, and the worker itself a dead engine.
        """
        translated = worker_error(error, worker.worker_id)
        if translated.reason == WORKER_LOST:
            self._suspect(worker)
        return translated

    def release_handover(self, request: worker_pb2.ReleaseHandoverRequest) -> None:
        """Frees KV that will not be read. Returns at once; the work runs in the background."""
        self._background.start(self._release_handover(request), "release-handover")

    def stop_tasks(self) -> None:
        """Stops what runs for the workers when the router ends."""
        for worker in self._workers.values():
            worker.stop_tasks()

    async def close(self) -> None:
        """Closes every channel, which ends RPCs on them."""
        workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            await worker.link.close()

    def _renew_links(self) -> None:
        """Gives new sessions channels with the newest certificates; the old ones run out."""
        newest = self._channels.newest()  # looks at the files, once for all workers
        for worker in self._workers.values():
            if worker.link.certificates is not newest:
                before, worker.link = worker.link, Link(worker.address, self._channels)
                self._close_when_idle(worker.worker_id, before)

    def _close_when_idle(self, worker_id: str, link: Link) -> None:
        self._background.start(link.close_when_idle(), f"close-{worker_id}")

    def _can_be_used(self, worker_id: str) -> None:
        self._absences.returned(worker_id, self._clock.monotonic_s())
        came, self._came = self._came, asyncio.Event()
        came.set()

    def _cannot_be_used(self, worker: Worker) -> None:
        now_s = self._clock.monotonic_s()
        self._absences.left(worker.worker_id, counts_as(worker.address.role), now_s)

    def _retire(self, worker: Worker) -> None:
        del self._workers[worker.worker_id]
        self._cannot_be_used(worker)
        worker.stop_tasks()
        self._close_when_idle(worker.worker_id, worker.link)

    def _suspect(self, worker: Worker) -> None:
        if worker.is_suspect or self._workers.get(worker.worker_id) is not worker:
            return
        _logger.warning("worker_suspect worker_id=%s", worker.worker_id)
        worker.is_suspect = True
        self._cannot_be_used(worker)
        worker.probe = self._background.start(self._probe(worker), f"probe-{worker.worker_id}")

    async def _probe(self, worker: Worker) -> None:
        while worker.is_suspect:
            self._renew_links()  # the worker may refuse the old certificate
            if await answers(worker):
                _logger.info("worker_answers_again worker_id=%s", worker.worker_id)
                worker.is_suspect = False
                self._can_be_used(worker.worker_id)
            else:
                await self._sleep(_PROBE_AGAIN_AFTER_S)

    async def _release_handover(self, request: worker_pb2.ReleaseHandoverRequest) -> None:
        for pause_s in (*_RELEASE_PAUSES_S, None):
            try:
                if await self._is_released(request):
                    return
            except Stream2LLMError as error:
                _logger.warning(
                    "handover_release_refused session_id=%s error=%s", request.session_id, error
                )
                break
            if pause_s is not None:
                await self._sleep(pause_s)
        _logger.warning(
            "handover_not_released session_id=%s num_blocks=%d (its lease will end)",
            request.session_id,
            request.handover.num_blocks,
        )

    async def _is_released(self, request: worker_pb2.ReleaseHandoverRequest) -> bool:
        """Asks each usable worker once, until one releases the hand-over.

        Raises InvalidRequestError, because no other worker would accept the request either.
        """
        tried: set[Worker] = set()
        while (worker := self.pick("decode", tried)) is not None:
            tried.add(worker)
            try:
                with worker.link.held() as link:
                    await link.handover.ReleaseHandover(request, timeout=_RELEASE_TIMEOUT_S)
                return True
            except grpc.aio.AioRpcError as error:
                failure = self.failure(worker, error)
                if isinstance(failure, InvalidRequestError):
                    raise failure from error
        return False
