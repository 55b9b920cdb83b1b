"""The router's view of the workers, and its channels to them.

The controller's view lists the workers; the data path is first to notice a lost one. A
worker whose RPC broke at transport level, or that reports its engine dead, is suspect:
it gets no new sessions until it answers again, or until a view brings its successor
(another address or other processes). One that left the view gets no new sessions either,
but keeps its channel until its last session here has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc

from router.background import Background
from router.placement import WorkerView, pick
from router.status import WORKER_LOST, worker_error
from stream2llm.api.errors import InvalidRequestError, Stream2LLMError
from stream2llm.api.grpc_options import channel_options
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.serving.worker_spec import ClusterView, Role, WorkerAddress

_logger = logging.getLogger(__name__)
_PROBE_TIMEOUT_S = 10.0
_PROBE_AGAIN_AFTER_S = 1.0
_RELEASE_TIMEOUT_S = 5.0
# Pauses before a release that no worker took is tried again: one may be back by then.
# After the last try the lease ends the hand-over.
_RELEASE_PAUSES_S = (0.1, 0.4, 1.6)


class Worker:
    """One worker process: its channel, and the number of this router's sessions there."""

    def __init__(self, address: WorkerAddress, max_message_bytes: int) -> None:
        self.address = address
        self.is_suspect = False
        self.num_sessions = 0
        # Runs while the worker is suspect.
        self.probe: asyncio.Task[None] | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.channel = grpc.aio.insecure_channel(
            address.grpc_address, options=channel_options(max_message_bytes)
        )
        self.prefill: Any = worker_pb2_grpc.PrefillServiceStub(self.channel)
        self.decode: Any = worker_pb2_grpc.DecodeServiceStub(self.channel)
        self.status: Any = worker_pb2_grpc.WorkerServiceStub(self.channel)

    @property
    def worker_id(self) -> str:
        return self.address.worker_id

    def acquire(self) -> Lease:
        """Adds one session."""
        self.num_sessions += 1
        self.idle.clear()
        return Lease(self)

    def view(self) -> WorkerView:
        """Returns the properties that placement considers."""
        return WorkerView(self.worker_id, self.address.role, not self.is_suspect, self.num_sessions)

    def stop_probe(self) -> None:
        """Stops checking whether the worker answers."""
        if self.probe is not None:
            self.probe.cancel()

    def is_same_process(self, address: WorkerAddress) -> bool:
        """Whether an address of a newer view still means this process."""
        return (self.address.grpc_address, self.address.pids) == (
            address.grpc_address,
            address.pids,
        )


class Lease:
    """One session's place at a worker; `release` may be called again."""

    def __init__(self, worker: Worker) -> None:
        self._worker: Worker | None = worker

    def release(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.num_sessions -= 1
        if worker.num_sessions == 0:
            worker.idle.set()


class WorkerPool:
    """The workers of the latest view."""

    def __init__(
        self,
        max_message_bytes: int,
        background: Background,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sleep = sleep
        self._max_message_bytes = max_message_bytes
        self._background = background
        self._workers: dict[str, Worker] = {}
        self._version = -1
        self.controller_address = ""

    def __iter__(self) -> Iterator[Worker]:
        return iter(sorted(self._workers.values(), key=lambda worker: worker.worker_id))

    def set_view(self, view: ClusterView) -> None:
        """Sets a newer view; an older one that arrives late is ignored."""
        if view.version < self._version:
            return
        self._version = view.version
        self.controller_address = view.controller_address
        addresses = {address.worker_id: address for address in view.workers}
        for worker in list(self._workers.values()):
            address = addresses.get(worker.worker_id)
            if address is None or not worker.is_same_process(address):
                self._retire(worker)
        for worker_id, address in addresses.items():
            if worker_id not in self._workers:
                self._workers[worker_id] = Worker(address, self._max_message_bytes)

    def has_role(self, role: Role) -> bool:
        """Whether the view has a worker of the role, suspect or not."""
        return any(worker.address.role == role for worker in self._workers.values())

    def pick(self, role: Role) -> Worker | None:
        """Returns the worker for a new session; None if none is usable."""
        worker_id = pick((worker.view() for worker in self._workers.values()), role)
        return None if worker_id is None else self._workers[worker_id]

    def pick_but(self, role: Role, tried: set[str]) -> Worker | None:
        """Returns a worker outside `tried` for a session; None if none is usable."""
        views = (w.view() for w in self._workers.values() if w.worker_id not in tried)
        worker_id = pick(views, role)
        return None if worker_id is None else self._workers[worker_id]

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

    def stop_probes(self) -> None:
        """Stops all probes when the router ends."""
        for worker in self._workers.values():
            worker.stop_probe()

    async def close(self) -> None:
        """Closes every channel, which ends RPCs on them."""
        workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            await worker.channel.close()

    def _retire(self, worker: Worker) -> None:
        del self._workers[worker.worker_id]
        worker.stop_probe()
        self._background.start(_close_when_idle(worker), f"retire-{worker.worker_id}")

    def _suspect(self, worker: Worker) -> None:
        if worker.is_suspect or self._workers.get(worker.worker_id) is not worker:
            return
        _logger.warning("worker_suspect worker_id=%s", worker.worker_id)
        worker.is_suspect = True
        worker.probe = self._background.start(self._probe(worker), f"probe-{worker.worker_id}")

    async def _probe(self, worker: Worker) -> None:
        while worker.is_suspect:
            if await _answers(worker):
                _logger.info("worker_answers_again worker_id=%s", worker.worker_id)
                worker.is_suspect = False
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
        tried: set[str] = set()
        while (worker := self.pick_but("decode", tried)) is not None:
            tried.add(worker.worker_id)
            try:
                await worker.decode.ReleaseHandover(request, timeout=_RELEASE_TIMEOUT_S)
                return True
            except grpc.aio.AioRpcError as error:
                failure = self.failure(worker, error)
                if isinstance(failure, InvalidRequestError):
                    raise failure from error
        return False


async def _answers(worker: Worker) -> bool:
    """Whether it serves again; may take as long as gRPC needs to connect."""
    try:
        response = await worker.status.GetWorkerStatus(
            worker_pb2.GetWorkerStatusRequest(),
            wait_for_ready=True,  # gRPC reconnects, with its own back-off
            timeout=_PROBE_TIMEOUT_S,
        )
    except grpc.aio.AioRpcError as error:
        # The worker itself has sent any other status.
        is_gone = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return error.code() not in is_gone
    return bool(response.worker.ready)  # otherwise its engine is dead, and the actor ends soon


async def _close_when_idle(worker: Worker) -> None:
    await worker.idle.wait()
    await worker.channel.close()
